"""The freeze audit as a picture: how far every depth group moved, and which stood still."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.transforms import blended_transform_factory

from tunekit.report.figure import INK, RATE, SOFT, TRAINING, VALIDATION, new_figure, plain, write

ALARM = "#c0392b"
HIGHEST_NAMED = 75
"""More groups than this have no room for the names of all blocks."""
UNMOVED, UNMOVED_NOTE = "#f1f3f5", "frozen: unmoved"

Rows = Sequence[Mapping[str, Any]]


def plot_audit(audit: Mapping[str, Any], path: str | Path) -> Path:
    """Writes the relative L2 of every depth group as a PNG, the input at the bottom.

    Args:
        audit: as from `tunekit.evaluation.audit.audit`.
        path: of the picture; its folder is made.

    Returns:
        The path.
    """
    rows = audit["groups"]
    figure = new_figure(7.2, picture_height(len(rows)))
    axes = figure.subplots()
    draw_audit(axes, rows)
    axes.set_title(_headline(audit), loc="left", fontsize=10, color=INK, pad=24)
    return write(figure, path)


def picture_height(groups: int) -> float:
    """Returns the inches that a picture with one row a group needs."""
    return float(np.clip(1.5 + 0.22 * groups, 3.0, 14.0))


def name_groups(axes: Axes, names: Sequence[str]) -> None:
    """Writes the group names at the left, the first at the bottom; thinned where there are many."""
    step = -(-len(names) // HIGHEST_NAMED)
    blocks = [place for place, name in enumerate(names) if name.startswith("blocks[")]
    left_out = set(blocks) - set(blocks[::step])
    places = [place for place in range(len(names)) if place not in left_out]
    axes.set_yticks(places, [names[place] for place in places], parse_math=False, fontsize=8.5)
    axes.set_ylim(-0.6, len(names) - 0.4)


def draw_audit(axes: Axes, rows: Rows) -> None:
    """Draws a point for each group that moved, on a logarithmic axis, and bands over the frozen."""
    plain(axes)
    axes.grid(axis="y", visible=False)
    axes.set_xscale("log")
    axes.set_xlabel("relative L2: ‖after − before‖ / ‖before‖", color=SOFT, fontsize=9)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.tick_params(which="minor", length=0)
    name_groups(axes, [row["group"] for row in rows])
    _draw_distances(axes, rows)
    beside = blended_transform_factory(axes.transAxes, axes.transData)
    for first, last, note in _stretches(rows):
        if note == UNMOVED_NOTE:
            axes.axhspan(first - 0.45, last + 0.45, color=UNMOVED, lw=0, zorder=0)
        style = {"va": "center", "fontsize": 8.5, "color": SOFT, "transform": beside}
        axes.text(0.02, (first + last) / 2, note, **style)


def _draw_distances(axes: Axes, rows: Rows) -> None:
    """Draws how far each group moved, and its variable that moved farthest."""
    groups = {place: row["relative_l2"] for place, row in enumerate(rows) if row["relative_l2"]}
    largest = {
        place: row["largest"]["relative_l2"] for place, row in enumerate(rows) if row["largest"]
    }
    axes.set_xlim(*_limits([*groups.values(), *largest.values()]))
    left = axes.get_xlim()[0]
    kinds: dict[str, dict[str, Any]] = {
        "all of it trained": {"color": VALIDATION},
        "a part trained": {"color": VALIDATION, "markerfacecolor": "white"},
        "moved, though frozen": {"color": ALARM},
    }
    for place, value in groups.items():
        axes.plot([left, value], [place, place], color=TRAINING, lw=1.4, zorder=2)
    for kind, style in kinds.items():
        points = {place: x for place, x in groups.items() if _kind(rows[place]) == kind}
        _draw_points(axes, points, label=kind, marker="o", ms=6.5, zorder=3, **style)
    _draw_points(
        axes, largest, label="largest variable", marker="|", ms=9, mew=1.8, color=RATE, zorder=2.5
    )
    if groups:
        axes.legend(
            frameon=False, fontsize=8, labelcolor=SOFT, ncols=4, loc="lower left",
            bbox_to_anchor=(0.0, 1.0), borderpad=0.1, handletextpad=0.1, columnspacing=1.2,
        )  # fmt: skip


def _draw_points(axes: Axes, points: Mapping[int, float], **style: Any) -> None:
    if points:
        axes.plot(list(points.values()), list(points), ls="none", **style)


def _kind(row: Mapping[str, Any]) -> str:
    if not row["trained"]:
        return "moved, though frozen"
    return "all of it trained" if row["trained"] == row["weights"] else "a part trained"


def _stretches(rows: Rows) -> Iterator[tuple[int, int, str]]:
    """Yields (first, last, note) of neighbours that have no point, for the same reason."""
    for note, stretch in groupby(enumerate(rows), key=lambda item: _note(item[1])):
        places = [place for place, _ in stretch]
        if note:
            yield places[0], places[-1], note


def _note(row: Mapping[str, Any]) -> str:
    if row["relative_l2"]:
        return ""
    if not row["weights"]:
        return "no weights"
    if row["moved"]:
        return "moved away from zero"
    return "trained, yet unmoved" if row["trained"] else UNMOVED_NOTE


def _limits(values: Sequence[float]) -> tuple[float, float]:
    """From the decade below the smallest value to a little above the largest."""
    known = [value for value in values if np.isfinite(value)] or [0.01, 1.0]
    low = float(10 ** np.floor(np.log10(0.8 * min(known))))
    return low, max(1.5 * max(known), 12 * low)


def _headline(audit: Mapping[str, Any]) -> str:
    frozen, statistics = audit["frozen"], audit["statistics"]
    count, moved = frozen["variables"], len(frozen["moved"])
    if not count:
        text = "nothing was frozen"
    elif moved:
        text = f"{moved:,} of {count:,} frozen variables moved"
    else:
        text = f"{count:,} frozen variables, none moved"
    if statistics["moved"]:
        text += f"; {len(statistics['moved']):,} running statistics moved"
    return text
