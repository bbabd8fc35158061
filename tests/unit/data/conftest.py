"""Small real images, written to disk as a user's would be."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image


@pytest.fixture
def picture() -> Callable[..., Image.Image]:
    """Returns a maker of noise images, one per seed."""

    def make(seed: int = 0, width: int = 10, height: int = 8) -> Image.Image:
        rng = np.random.default_rng(seed)
        return Image.fromarray(rng.integers(0, 256, (height, width, 3), np.uint8))

    return make


@pytest.fixture
def folder(tmp_path: Path, picture: Callable[..., Image.Image]) -> Callable[..., Path]:
    """Returns a writer of image folders: {"cat": 3} puts three images in cat/."""
    seeds = iter(range(10_000))

    def make(root: str = "photos", **counts: int) -> Path:
        for place, count in counts.items():
            below = tmp_path / root / place.replace("__", "/")
            below.mkdir(parents=True, exist_ok=True)
            for i in range(count):
                picture(next(seeds)).save(below / f"{i}.png")
        return tmp_path / root

    return make
