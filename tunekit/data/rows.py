"""Rows: what every format of texts is read as, by index, before examples are made of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol

import numpy as np

Row = Mapping[str, Any]
SPLIT_NAMES = {
    "train": ("train", "training"),
    "validation": ("validation", "val", "valid", "dev"),
    "test": ("test",),
}
"""What files, folders and stored splits are called that are to be found by name."""


class BadRow(Exception):
    """A row that no example can be made of; its message says why, and its reader says where."""


class Rows(Protocol):
    """The rows of one split, in order; threads may read them at once."""

    @property
    def place(self) -> str:
        """What messages call all of them: their file."""
        ...

    @property
    def class_names(self) -> Mapping[str, tuple[str, ...]]:
        """Names of the numbers in a column, where the format gives them."""
        ...

    def __len__(self) -> int:
        """Returns the number of rows, bad ones included."""
        ...

    def read(self, index: int) -> Row:
        """Returns a row: cells by column name. Raises BadRow."""
        ...

    def name(self, index: int) -> str:
        """Returns what a message calls the row: its file and line."""
        ...


@dataclass(frozen=True)
class ListRows:
    """Rows in memory: mappings, or strings that are the text alone."""

    items: Sequence[Any]
    place: str = "data"
    class_names: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def __len__(self) -> int:
        """Returns the number of rows."""
        return len(self.items)

    def read(self, index: int) -> Row:
        """Returns a row. Raises BadRow."""
        return as_row(self.items[index])

    def name(self, index: int) -> str:
        """Returns the place and the index."""
        return f"{self.place}[{index}]"


@dataclass(frozen=True)
class JoinedRows:
    """Rows of several files, or what is read of them, one after the other."""

    parts: tuple[Any, ...]
    """`Rows`, or what else has their length, `read` and `name`."""

    @cached_property
    def _ends(self) -> np.ndarray:
        return np.cumsum([len(part) for part in self.parts])

    @property
    def place(self) -> str:
        """What messages call the first file."""
        return self.parts[0].place

    @property
    def class_names(self) -> Mapping[str, tuple[str, ...]]:
        """Names of the numbers in a column, as the first file gives them."""
        return self.parts[0].class_names

    def __len__(self) -> int:
        """Returns the number of rows of all files."""
        return int(self._ends[-1])

    def read(self, index: int) -> Any:
        """Returns what the part of this row reads. Raises BadRow."""
        part, inside = self._find(index)
        return part.read(inside)

    def name(self, index: int) -> str:
        """Returns the row's name in its own file."""
        part, inside = self._find(index)
        return part.name(inside)

    def _find(self, index: int) -> tuple[Any, int]:
        part = int(np.searchsorted(self._ends, index, side="right"))
        return self.parts[part], index - (int(self._ends[part - 1]) if part else 0)


def as_row(item: Any) -> Row:
    """Returns an item of a list as a row. Raises BadRow."""
    if isinstance(item, str):
        return {"text": item}
    if isinstance(item, Mapping):
        return item
    raise BadRow(f'expected an object such as {{"text": ...}}, got {described(item)}')


def described(value: Any) -> str:
    """Returns what a message calls a value of JSON."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (int, float)):
        return f"the number {value}"
    if isinstance(value, str):
        return repr(value if len(value) <= 30 else f"{value[:30]}...")
    return {list: "a list", tuple: "a list", dict: "an object"}.get(
        type(value), type(value).__name__
    )
