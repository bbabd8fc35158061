"""What commands print: metrics, and other columns of text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def print_metrics(metrics: Mapping[str, Any]) -> None:
    """Prints the numbers, one a line, and those of each class as a table."""
    numbers = {name: value for name, value in metrics.items() if isinstance(value, (int, float))}
    rows = [(name, _number(value)) for name, value in numbers.items()]
    if base := metrics.get("base"):
        rows = [("", "base", "tuned"), *((n, _number(base.get(n)), shown) for n, shown in rows)]
    print_table(rows)
    per_class = metrics.get("per_class")
    if not per_class:
        return
    columns = list(next(iter(per_class.values())))
    rows = [
        (label, *("-" if row[key] is None else f"{row[key]:.4g}" for key in columns))
        for label, row in per_class.items()
    ]
    print()
    print_table([("class", *columns), *rows])


def print_profile(profile: Mapping[str, Any]) -> None:
    """Prints what the time of a run went to, and how fast its steps were."""
    from tunekit.report.profile_text import profile_lines, profile_rows

    print()
    print_table(profile_rows(profile))
    print("\n".join(profile_lines(profile)))


def _number(value: Any) -> str:
    return "" if value is None else f"{value:.4f}" if isinstance(value, float) else str(value)


def print_table(rows: Sequence[Sequence[str]]) -> None:
    """Prints rows of cells in columns."""
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    for row in rows:
        padded = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        print("  ".join(padded).rstrip())
