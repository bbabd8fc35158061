"""What base and tuned model answer, side by side: in the terminal and in Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

COLUMNS = ("prompt", "reference", "base", "tuned")
_SCORES = ("bleu", "chrf", "rouge1", "rouge2", "rougeL", "exact_match")
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
        table.add_row(*(Text(row[name].strip(), _STYLES[name]) for name in COLUMNS))
    return table


def scores_table(scores: Mapping[str, Mapping[str, Any]]) -> Table:
    """Returns the metrics of what base and tuned model wrote, as a table for the terminal.

    Args:
        scores: as from `tunekit.evaluation.generated.sample_scores`.
    """
    table = Table("", "base", "tuned")
    for name in _SCORES:
        table.add_row(name, *(f"{scores[side][name]:.3g}" for side in ("base", "tuned")))
    return table


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
