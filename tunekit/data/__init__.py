"""Data: sources, checks before training, batches, augmentation."""
