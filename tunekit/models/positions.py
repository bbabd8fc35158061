"""Learned position embeddings resized to another grid of patches, as torch would resize them."""

from __future__ import annotations

import numpy as np


def resize_positions(
    table: np.ndarray, grid: tuple[int, int], *, prefix: int, antialias: bool
) -> np.ndarray:
    """Returns `table` [prefix + h*w, D] resized to [prefix + H*W, D], bicubic, float32.

    Hugging Face's ViT and DINOv2 resize without antialiasing, timm and DINOv2 with registers
    with it. The two differ in more than the widened filter: torch's plain bicubic has a = -0.75
    and repeats the border, its antialiased one a = -0.5 and leaves the border out. (Keras' own
    resize has a = -0.5 in both.)

    Args:
        table: one row per position, prefix tokens first, then a square grid in row-major order.
        grid: (rows, columns) of patches wanted.
        prefix: rows that belong to no patch and are kept as they are.
        antialias: whether the filter widens when the grid shrinks.
    """
    kept, patches = np.asarray(table[:prefix]), np.asarray(table[prefix:])
    side = round(len(patches) ** 0.5)
    assert side * side == len(patches), f"{len(patches)} positions are no square grid"
    if grid == (side, side):
        return np.asarray(table, np.float32)
    square = patches.reshape(side, side, -1).astype(np.float64)
    rows, columns = (_bicubic(side, size, antialias=antialias) for size in grid)
    resized = np.einsum("ih,jw,hwd->ijd", rows, columns, square, optimize=True)
    return np.concatenate([kept, resized.reshape(-1, square.shape[-1])]).astype(np.float32)


def _bicubic(source: int, target: int, *, antialias: bool) -> np.ndarray:
    """The matrix [target, source] of a one-dimensional bicubic resize with half-pixel centres."""
    centres = (np.arange(target) + 0.5) * source / target - 0.5
    if antialias:
        stretch = max(source / target, 1.0)
        weights = _cubic((centres[:, None] - np.arange(source)) / stretch, a=-0.5)
        return weights / weights.sum(1, keepdims=True)
    matrix = np.zeros((target, source))
    first = np.floor(centres).astype(int) - 1
    for tap in range(4):
        index = first + tap
        weights = _cubic(centres - index, a=-0.75)
        np.add.at(matrix, (np.arange(target), index.clip(0, source - 1)), weights)
    return matrix


def _cubic(x: np.ndarray, a: float) -> np.ndarray:
    """Keys' convolution kernel (1981), the equation of torch's and Pillow's bicubic."""
    x = np.abs(x)
    near = (a + 2) * x**3 - (a + 3) * x**2 + 1
    far = a * (x**3 - 5 * x**2 + 8 * x - 4)
    return np.where(x <= 1, near, np.where(x < 2, far, 0.0))
