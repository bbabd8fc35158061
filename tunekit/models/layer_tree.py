"""The table that ``print(model.layers())`` shows: what a model is made of, from input to heads."""

from __future__ import annotations

import os.path
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

from tunekit.models.depth import Group, GroupKind

_WIDTH = 80


@dataclass(frozen=True)
class LayerRow:
    """One depth group as the tree shows it."""

    name: str
    """The selector that selects it, such as "blocks[3]"."""
    kind: GroupKind
    depth: int
    """Place in the order of running, from 0."""
    stage: int | None
    parameters: int
    """Numbers that can be trained."""
    share: float
    """Fraction of the model's parameters."""
    trains: float | None
    """Fraction of the group's variables that train; `None` where no selection was given."""
    layers: tuple[str, ...]
    """Structural names of its layers."""
    added: int = 0
    """How many of its parameters are adapters'."""

    @property
    def detail(self) -> str:
        """What the group's layers are called, where they agree."""
        leaves = [name.rsplit("/", 1)[-1] for name in self.layers]
        return os.path.commonprefix(leaves).rstrip("_") if self.kind == "block" else ""


@dataclass(frozen=True)
class LayerTree:
    """The depth groups of a model; prints as a tree of at most 80 columns."""

    rows: tuple[LayerRow, ...]
    """In depth order."""

    def __str__(self) -> str:
        """Returns the tree as text."""
        body = [row for row in self.rows if row.kind != "head"]
        heads = [row for row in self.rows if row.kind == "head"]
        trains = any(row.trains is not None for row in self.rows)
        lines = [_line("name", "depth", "parameters", "share", "trains" if trains else "")]
        for title, rows in (("backbone", body), ("heads", heads)):
            if rows:
                total = sum(row.parameters for row in rows)
                share = sum(row.share for row in rows)
                lines.append(_line(title, "", f"{total:,}", f"{share:.1%}", ""))
                lines += _branches(rows)
        if added := sum(row.added for row in self.rows):
            total = sum(row.parameters for row in self.rows)
            lines.append(_line("of which adapters", "", f"{added:,}", f"{added / total:.1%}", ""))
        return "\n".join(lines)


def layer_tree(groups: Sequence[Group], trains: Collection[str] | None = None) -> LayerTree:
    """Returns the tree of `groups`.

    Args:
        groups: in depth order.
        trains: structural names of the variables that train; `None` leaves the column out.
    """
    total = sum(group.parameters for group in groups) or 1
    rows = []
    for depth, group in enumerate(groups):
        chosen = None if trains is None else sum(name in trains for name in group.variables)
        rows.append(
            LayerRow(
                name=group.name,
                kind=group.kind,
                depth=depth,
                stage=group.stage,
                parameters=group.parameters,
                share=group.parameters / total,
                trains=None if chosen is None else chosen / max(len(group.weights), 1),
                layers=group.layers,
                added=group.added,
            )
        )
    return LayerTree(tuple(rows))


def _branches(rows: Sequence[LayerRow]) -> Iterator[str]:
    stage = None
    for i, row in enumerate(rows):
        branch = "└─" if i == len(rows) - 1 else "├─"
        note = f"stage {row.stage}" if row.stage and row.stage != stage else ""
        stage = row.stage
        trains = "" if not row.trains else "yes" if row.trains == 1 else "in part"
        name = "  ".join(word for word in (f"{branch} {row.name}", row.detail, note) if word)
        share = f"{row.share:.1%}"
        yield _line(name, str(row.depth), f"{row.parameters:,}", share, trains)


def _line(name: str, depth: str, parameters: str, share: str, trains: str) -> str:
    numbers = f" {depth:>5} {parameters:>13} {share:>6}  {trains:<7}"
    room = _WIDTH - len(numbers)
    name = name if len(name) <= room else name[: room - 1] + "…"
    return f"{name:<{room}}{numbers}".rstrip()
