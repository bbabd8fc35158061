"""Rows from Python: lists of dicts or of strings, texts beside their labels."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from tunekit.data.arrays import read_labels
from tunekit.data.rows import ListRows, Rows
from tunekit.data.text_kinds import TextKind
from tunekit.errors import DataError

_TWO_LISTS: dict[TextKind, tuple[str, str]] = {
    "labelled": ("text", "label"),
    "number": ("text", "label"),
    "tagged": ("tokens", "tags"),
    "pairs": ("sentence1", "sentence2"),
    "dialogue": ("prompt", "response"),
}


def value_rows(data: Any, kind: TextKind, where: str) -> Rows:
    """Returns the rows of one split.

    Args:
        data: dicts or strings by index; or two of equal length: texts (or pairs of texts) and
            labels, words and tags, first and second texts, prompts and responses.
        kind: what they are to become; tells what the second of two is.
        where: the split, for messages.

    Raises:
        DataError: it is nothing of that, or the two are of different lengths.
    """
    if is_two(data):
        return _together(data, kind, where)
    by_index = hasattr(data, "__getitem__") and not hasattr(data, "columns")  # a DataFrame has
    if isinstance(data, (Mapping, bytes)) or not by_index:
        raise DataError(
            f"{where}: expected a path, a list of dicts or strings, (texts, labels), or a dict of "
            f"those under 'train', 'validation' and 'test'; got {type(data).__name__}. "
            "See DataSpec.path"
        )
    if not len(data):
        raise DataError(f"{where}: has no rows")
    return ListRows(data, where)


def is_two(data: Any) -> bool:
    """Returns whether data are two lists side by side, such as texts and labels."""
    return (
        isinstance(data, (tuple, list))
        and len(data) == 2
        and all(isinstance(one, (list, tuple, np.ndarray)) for one in data)
    )


def _together(data: Any, kind: TextKind, where: str) -> Rows:
    if kind not in _TWO_LISTS:
        raise DataError(f"{where}: expected a path or a list of dicts or strings, got two lists")
    names = _TWO_LISTS[kind]
    first, second = list(data[0]), list(data[1])
    if len(first) != len(second):
        raise DataError(
            f"{where}: expected one {names[1]} for each {names[0]}, got {len(first)} and "
            f"{len(second)}"
        )
    if not first:
        raise DataError(f"{where}: has no rows")
    class_names: dict[str, tuple[str, ...]] = {}
    if kind == "labelled":
        try:
            labels, several, declared = read_labels(data[1])
        except DataError as error:
            raise DataError(f"{where}.labels: {error}") from error
        second = [list(one) if several else one[0] for one in labels]
        class_names = {"label": declared} if declared else {}
    elif kind == "number":
        second = np.asarray(data[1]).tolist()
    rows = [_row(*pair, names) for pair in zip(first, second, strict=True)]
    return ListRows(rows, where, class_names)


def _row(first: Any, second: Any, names: tuple[str, str]) -> dict[str, Any]:
    """Returns a row; a text that is a pair of texts takes two columns."""
    if names[0] == "text" and isinstance(first, (tuple, list)) and len(first) == 2:
        return {"sentence1": first[0], "sentence2": first[1], names[1]: second}
    return {names[0]: first, names[1]: second}
