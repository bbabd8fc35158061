"""Tells from the data alone whether they are texts, and what can be learned of them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tunekit.data import tfds
from tunekit.data.arrow_rows import is_dataset_folder, parquet_columns
from tunekit.data.columns import Columns
from tunekit.data.decode import IMAGE_SUFFIXES
from tunekit.data.examples import Splits, listed
from tunekit.data.rows import as_row
from tunekit.data.spec import DataSpec
from tunekit.data.text_examples import TextSource
from tunekit.data.text_files import SUFFIXES, file_rows, path_rows, split_files, told_by_name
from tunekit.data.text_kinds import TextKind
from tunekit.data.text_scan import columns_of
from tunekit.data.text_values import is_two
from tunekit.errors import DataError

_IMAGES = ("image", "file_name", "image_path", "pixels")
_TEXTS_ALONE = ("jsonl", "json", "text", "conll")


def recognised(data: Any, spec: DataSpec) -> TextKind | None:
    """Returns what can be learned of the data, or None where they are no texts.

    A table with a column of images is none; so is what does not exist, of which the door to images
    tells.

    Args:
        data: as `open_text` takes them; None takes `spec.path`.
        spec: names columns; a text column makes texts of any table.

    Raises:
        DataError: a file of texts has no columns that tell.
    """
    data = spec.path if data is None else data
    data = data.train if isinstance(data, Splits) else data
    if isinstance(data, Mapping) and data:
        data = data.get("train", next(iter(data.values())))
    if isinstance(data, TextSource):
        return data.kind
    if isinstance(data, (str, Path)):
        return _of_path(data, spec) if _may_hold_texts(data, spec) else None
    if is_two(data):
        return "labelled" if len(data[0]) and _is_text(data[0][0]) else None
    if isinstance(data, (list, tuple)) and len(data):
        if isinstance(data[0], str):
            return "plain" if _is_text(data[0]) else None
        return _of_columns(tuple(as_row(data[0])), spec) if isinstance(data[0], Mapping) else None
    return None


def _of_path(path: str | Path, spec: DataSpec) -> TextKind | None:
    suffix = SUFFIXES.get(Path(path).suffix.lower(), "")
    if spec.kind == "text" or (spec.kind == "auto" and suffix == "text"):
        return "plain"
    columns = _columns(path, spec)
    if any(name in columns for name in (*_IMAGES, spec.image_column)) and not spec.text_column:
        return None
    found = _of_columns(columns, spec)
    if found is None and columns and _TEXTS_ALONE.count(suffix):
        raise DataError(
            f"data.path: cannot tell what to learn of {path}, whose columns are "
            f"{listed(columns, 12)}; name a task, and the columns: text_column, label_column, "
            "prompt_column, response_column"
        )
    return found


def _columns(path: str | Path, spec: DataSpec) -> tuple[str, ...]:
    """Returns the columns of the data to train on, of images as little as can be read."""
    root = Path(path).expanduser()
    named = spec.kind == "tfds" or str(path).startswith(tfds.TFDS_PREFIX)
    if named or (root.is_dir() and tfds.prepared_folder(root)):
        return tfds.text_features(path)
    if spec.kind == "datasets" or is_dataset_folder(root):
        return columns_of(path_rows(path, spec)["train"])
    first = split_files(root, spec)["train"][0]
    if spec.kind == "parquet" or SUFFIXES.get(first.suffix.lower()) == "parquet":
        return parquet_columns(first)
    return columns_of(file_rows(first, spec))


def _may_hold_texts(path: str | Path, spec: DataSpec) -> bool:
    """Returns whether the files at a path are of formats that may hold texts."""
    if spec.kind != "auto":
        return spec.kind not in ("arrays", "folder")
    if str(path).startswith(tfds.TFDS_PREFIX):
        return True
    root = Path(path).expanduser()
    if not root.is_dir():
        return root.is_file() and root.suffix.lower() in SUFFIXES
    if is_dataset_folder(root) or told_by_name(root) or tfds.prepared_folder(root):
        return True
    inside = [entry for entry in root.iterdir() if not entry.name.startswith(".")]
    pictures = any(entry.suffix.lower() in IMAGE_SUFFIXES for entry in inside)
    folders = any(entry.is_dir() for entry in inside)
    named = spec.train is not None and Path(spec.train).suffix.lower() in SUFFIXES
    readable = any(entry.suffix.lower() in SUFFIXES for entry in inside)
    return named or (readable and not pictures and not folders)


def _of_columns(there: tuple[str, ...], spec: DataSpec) -> TextKind | None:
    columns = Columns(there, "")

    def has(*parts: str) -> bool:
        return all(columns.guess(part) for part in parts)

    pair = bool(columns.pair()) or spec.pair_column in there
    label = spec.label_column in there or spec.label_column != DataSpec().label_column
    text = spec.text_column in there or has("text")
    if has("messages") or spec.prompt_column or spec.response_column:
        return "dialogue"
    if has("words", "tags") and not (text and label):
        return "tagged"
    if has("question", "context") and columns.guess("answers")[:1] == ["answers"]:
        return "answers"
    if (text or pair) and label:
        return "labelled"
    if has("prompt", "response"):
        return "dialogue"
    if pair and (has("score") or not has("label")):
        return "pairs"
    if (text or pair) and has("label"):
        return "labelled"
    return "plain" if text else None


def _is_text(item: Any) -> bool:
    """Returns whether an item is a text, or a pair of texts, and no path of an image."""
    if isinstance(item, (tuple, list)):
        return len(item) == 2 and all(isinstance(part, str) for part in item)
    if not isinstance(item, (str, np.str_)):
        return False
    return Path(item[-8:]).suffix.lower() not in IMAGE_SUFFIXES
