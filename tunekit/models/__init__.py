"""Pretrained backbones, the heads put on them, and the model that holds both."""
