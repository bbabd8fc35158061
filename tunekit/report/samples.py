"""What base and tuned model answer, side by side: in the terminal and in Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

COLUMNS = ("prompt", "reference", "base", "tuned")
LONGEST_CELL = 160
"""Characters of a text in the terminal; Markdown has all of them."""
_STYLES = {"prompt": "bold", "reference": "dim", "base": "", "tuned": "green"}

Rows = Sequence[Mapping[str, Any]]


def samples_table(rows: Rows) -> Table:
    """Returns prompts, references and the two answers as a table for the terminal.

    Args:
        rows: as from `tunekit.evaluation.generated.samples`.
    """
    table = Table(show_lines=True, expand=True)
    for name in COLUMNS:
        table.add_column(name, ratio=1, overflow="fold")
    for row in rows:
        # As `Text`: what models write is full of [brackets], which rich would take for markup.
        table.add_row(*(Text(_beginning(row[name]), _STYLES[name]) for name in COLUMNS))
    return table


def _beginning(text: str) -> str:
    text = text.strip()
    return text if len(text) <= LONGEST_CELL else text[: LONGEST_CELL - 2].rstrip() + " …"


def print_samples(rows: Rows, console: Console | None = None) -> None:
    """Prints the table of `samples_table`; nothing where there are no rows."""
    if rows:
        (console or Console()).print(samples_table(rows))


def samples_markdown(rows: Rows) -> str:
    """Returns prompts, references and the two answers as a table in Markdown."""
    lines = [COLUMNS, ("---",) * len(COLUMNS)]
    lines += [tuple(_cell(row[name]) for name in COLUMNS) for row in rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _cell(text: str) -> str:
    """Text that stays in its cell: no mark of Markdown or HTML, and lines as breaks."""
    text = text.strip().replace("\\", "\\\\").replace("&", "&amp;").replace("<", "&lt;")
    for mark in "|*_`[]":
        text = text.replace(mark, f"\\{mark}")
    return "<br>".join(text.splitlines())
