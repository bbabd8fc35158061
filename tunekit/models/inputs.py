"""From what a user hands over, images or token ids, to batches that a model takes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tunekit.data.images import MemoryImages
from tunekit.errors import ModelError
from tunekit.models.backbone import Backbone
from tunekit.models.token_graph import check_token_ids

Inputs = Sequence[Any] | np.ndarray | Image.Image | str | Path
"""Images of any size, one or several; or texts or token ids, one or several."""


def batches(backbone: Backbone, items: Inputs, largest: int) -> tuple[int, Iterator[Any]]:
    """Returns how many examples there are, and batches of them of one size.

    The last batch is filled up with its last example.

    Args:
        backbone: what takes them.
        items: the examples.
        largest: examples of a batch, at most.

    Raises:
        ModelError: token ids are none, or lie outside of the vocabulary.
        DataError: an image cannot be read.
    """
    if backbone.takes == "tokens":
        columns = token_columns(backbone, items)
        count = len(columns["token_ids"])
        return count, _token_batches(columns, _size(count, largest))
    images = MemoryImages(_listed(items))
    return len(images), _pixel_batches(backbone, images, _size(len(images), largest))


def token_columns(backbone: Backbone, items: Any) -> dict[str, np.ndarray]:
    """Returns token ids and padding mask, int32 [N, T]; sequences are padded at their ends.

    Args:
        backbone: whose vocabulary the ids are of.
        items: ids [N, T] or [T]; sequences of several lengths; a mapping with "token_ids" and,
            where some are padding, "padding_mask"; or a text, or several.

    Raises:
        ModelError: ids are no integers, or lie outside of the vocabulary; or there is no tokenizer
            for texts.
    """
    mask = None
    if isinstance(items, str):
        items = [items]
    if isinstance(items, Sequence) and any(isinstance(item, str) for item in items):
        items = [found.ids for found in backbone.text_tokenizer().encode_many(items)]
    if isinstance(items, Mapping):
        items, mask = items["token_ids"], items.get("padding_mask")
    rows = [items] if len(items) and np.ndim(items[0]) == 0 else items
    rows = [np.asarray(row) for row in rows]
    if wrong := [row for row in rows if row.dtype.kind not in "iu" or row.ndim != 1]:
        raise ModelError(
            f"expected sequences of token ids (integers), got {wrong[0].dtype} of shape "
            f"{wrong[0].shape}."
        )
    length = max((len(row) for row in rows), default=0)
    token_ids = np.zeros((len(rows), length), np.int32)
    known = np.zeros((len(rows), length), np.int32)
    for index, row in enumerate(rows):
        token_ids[index, : len(row)], known[index, : len(row)] = row, 1
    if backbone.vocabulary is not None:
        check_token_ids(token_ids, backbone.vocabulary)
    mask = known if mask is None else np.asarray(mask).reshape(known.shape).astype(np.int32)
    return {"token_ids": token_ids, "padding_mask": mask}


def _size(count: int, largest: int) -> int:
    """Powers of two, so that calls with few examples share a handful of programs."""
    return min(largest, 1 << max(count - 1, 0).bit_length())


def _pixel_batches(backbone: Backbone, images: MemoryImages, size: int) -> Iterator[np.ndarray]:
    preprocessing = backbone.preprocessing
    assert preprocessing is not None
    for start in range(0, len(images), size):
        rows = range(start, min(start + size, len(images)))
        batch = [preprocessing.to_pixels(images.read(row)) for row in rows]
        yield np.stack(batch + batch[-1:] * (size - len(batch)))


def _token_batches(columns: Mapping[str, np.ndarray], size: int) -> Iterator[dict[str, np.ndarray]]:
    count = len(columns["token_ids"])
    for start in range(0, count, size):
        rows = np.minimum(np.arange(start, start + size), count - 1)
        yield {name: column[rows] for name, column in columns.items()}


def _listed(images: Inputs) -> Sequence[Any] | np.ndarray:
    if isinstance(images, (str, Path, Image.Image)):
        return [images]
    if isinstance(images, np.ndarray) and (images.ndim == 2 or _is_one_image(images.shape)):
        return [images]
    return images


def _is_one_image(shape: tuple[int, ...]) -> bool:
    return len(shape) == 3 and shape[-1] in (1, 3)
