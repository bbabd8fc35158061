"""The new task against what is retained of the old, and the front between them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes

from tunekit.report.figure import FAINT, INK, RATE, SOFT, VALIDATION, new_figure, plain, write

DASHED = (0, (5, 3))
Rows = Sequence[Mapping[str, Any]]


def plot_retention(retention: Mapping[str, Any], path: str | Path) -> Path:
    """Writes the perplexity of the new task against that retained, and the KL, as a PNG.

    Args:
        retention: as from `tunekit.retention.Retention.to_json`.
        path: of the picture; its folder is made.

    Returns:
        The path.
    """
    figure = new_figure(9.6, 4.2)
    front, dial = figure.subplots(1, 2, width_ratios=[3, 2])
    draw_front(front, retention["rows"])
    draw_dial(dial, retention["rows"], turns=retention["turns"])
    return write(figure, path)


def draw_front(axes: Axes, rows: Rows) -> None:
    """Draws each place of the dial, lower left being better, and joins those on the front."""
    plain(axes)
    points = [(row["retained_perplexity"], row["perplexity"]) for row in rows]
    front = sorted(point for point, row in zip(points, rows, strict=True) if row["on_front"])
    beaten = [point for point, row in zip(points, rows, strict=True) if not row["on_front"]]
    axes.plot(*zip(*front, strict=True), "o-", color=VALIDATION, ms=5, lw=1.2, label="front")
    if beaten:
        axes.plot(*zip(*beaten, strict=True), "o", color=FAINT, ms=5, label="beaten by another")
    before = next(row for row in rows if row["scale"] == 0)["retained_perplexity"]
    axes.axvline(before, color=SOFT, lw=1, ls=DASHED, zorder=1, label="base")
    for (x, y), row in zip(points, rows, strict=True):
        axes.annotate(
            f"{row['scale']:g}",
            (x, y),
            (5, 4),
            textcoords="offset points",
            fontsize=8,
            color=INK if row["on_front"] else SOFT,
        )
    axes.margins(0.12)
    axes.set_xlabel("retained perplexity", fontsize=8, color=SOFT)
    axes.set_ylabel("perplexity of the new task", fontsize=8, color=SOFT)
    axes.set_title("new against old, by scale", loc="left", fontsize=10, color=INK)
    axes.legend(frameon=False, fontsize=8, labelcolor=SOFT)


def draw_dial(axes: Axes, rows: Rows, *, turns: str) -> None:
    """Draws how far the model is from its base at each place of the dial."""
    plain(axes)
    scales, kls = [row["scale"] for row in rows], [row["kl"] for row in rows]
    axes.plot(scales, kls, "o-", color=RATE, ms=5, lw=1.2, clip_on=False)
    axes.set_ylim(0, 1.08 * max(kls) or 1)
    axes.set_xlabel(f"scale of the {turns}", fontsize=8, color=SOFT)
    axes.set_title("KL(base || model), nats a token", loc="left", fontsize=10, color=INK)
