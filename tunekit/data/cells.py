"""What stands in a cell: a text, a number, labels, words; or a reason why the row is a bad one."""

from __future__ import annotations

import math
from typing import Any

from tunekit.data.rows import BadRow, Row, described

Names = tuple[str, ...]


def cell_of(row: Row, column: str) -> Any:
    """Returns the cell of a column. Raises BadRow."""
    try:
        return row[column]
    except KeyError:
        raise BadRow(f"no column {column!r}") from None


def text_of(row: Row, column: str) -> str:
    """Returns the text of a column. Raises BadRow."""
    cell = cell_of(row, column)
    if not isinstance(cell, str):
        if cell is None or cell != cell:
            raise BadRow(f"{column!r} is null")
        raise BadRow(f"expected text in {column!r}, got {described(cell)}")
    if not cell.strip():
        raise BadRow(f"empty text in {column!r}")
    return cell


def number_of(row: Row, column: str) -> float:
    """Returns the number of a column. Raises BadRow."""
    cell = cell_of(row, column)
    if cell is None or cell == "":
        raise BadRow("no label")
    try:
        number = float(cell) if isinstance(cell, (int, float, str)) else math.nan
    except ValueError:
        number = math.nan
    if isinstance(cell, bool) or not math.isfinite(number):
        raise BadRow(f"expected a number in {column!r}, got {described(cell)}")
    return number


def label_names(cell: Any, separator: str, declared: Names, wanted: Names = ()) -> tuple[str, ...]:
    """Returns the label names of a cell, none where it has none; see `one_name`. Raises BadRow."""
    parts = cell
    if isinstance(cell, str):
        parts = [part.strip() for part in cell.split(separator)]
    elif not isinstance(cell, (list, tuple)):
        parts = [cell]
    found = [one_name(part, declared, wanted) for part in parts]
    names = sorted(name for name in found if name is not None)
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:  # as in [0, 1, 0], which does not name labels
        raise BadRow(f"the label {twice!r} twice; expected the names of the labels that hold")
    return tuple(names)


def one_name(part: Any, declared: Names, wanted: Names = ()) -> str | None:
    """Returns a label's name; None for null, NaN, "" and -1, the class number that stands for none.

    Args:
        part: a name, a whole number, true or false.
        declared: the table's names of its class numbers, if it has them.
        wanted: the user's label names; a number that is not one of them counts in them.

    Raises:
        BadRow: it is nothing of that, or a number beyond the names.
    """
    if part is None or part == "" or part != part:
        return None
    if isinstance(part, bool):
        return str(part).lower()
    if isinstance(part, float) and part.is_integer():
        part = int(part)
    if not isinstance(part, (str, int)):
        raise BadRow(f"expected a label's name or whole number, got {described(part)}")
    if isinstance(part, int) and declared:
        if part == -1:
            return None
        if not 0 <= part < len(declared):
            raise BadRow(f"class number {part}, where there are {len(declared)} classes")
        return declared[part]
    name = str(part)
    if name not in wanted and name.isdecimal() and int(name) < len(wanted):
        return wanted[int(name)]
    return name


def items_of(cell: Any, column: str) -> list[Any]:
    """Returns the items of a list, or of a string that spaces divide (a cell of a CSV).

    Raises:
        BadRow: it is neither.
    """
    if isinstance(cell, str):
        return cell.split()
    if not isinstance(cell, (list, tuple)):
        raise BadRow(f"expected a list in {column!r}, got {described(cell)}")
    return list(cell)


def strings_of(cell: Any, column: str) -> list[str]:
    """Returns the words of a cell. Raises BadRow."""
    items = items_of(cell, column)
    if not items:
        raise BadRow(f"no words in {column!r}")
    for i, item in enumerate(items):
        if not isinstance(item, str) or not item.strip():
            raise BadRow(f"expected a word in {column}[{i}], got {described(item)}")
    return items
