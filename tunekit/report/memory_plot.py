"""The memory of devices as stacked bars, each against its limit."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.axes import Axes

from tunekit.report.figure import INK, SOFT, new_figure, plain, write

GIB = 2**30
COLOURS = {
    "frozen": "#b8c0c9",
    "trained": "#1f5fa8",
    "optimizer": "#8fb1d4",
    "copies": "#d9c9a3",
    "activations": "#d98c4a",
}
"""Of what memory holds, from the axis outwards."""
NAMES = {
    "frozen": "frozen weights",
    "trained": "trained weights",
    "optimizer": "optimizer",
    "copies": "copies of weights",
    "activations": "activations, gradients, temporaries",
}
ALARM = "#b3261e"
WIDTH_INCHES = 8.6
_HALF = 0.31


@dataclass(frozen=True)
class Bar:
    """One device's memory."""

    name: str
    """At the bar's left; may have several lines."""
    memory: Mapping[str, float]
    """Bytes by the keys of `COLOURS`."""
    limit: float
    """Bytes that may be used."""


def plot_memory(bars: Sequence[Bar], path: str | Path, *, title: str = "") -> Path:
    """Writes what devices hold, and what they can, as a PNG; returns its path.

    Args:
        bars: from top to bottom.
        path: of the picture; its folder is made.
        title: above the picture.
    """
    figure = new_figure(WIDTH_INCHES, 1.55 + 0.62 * len(bars))
    axes = figure.subplots()
    draw_memory(axes, bars)
    figure.suptitle(
        textwrap.fill(title, 100), x=0.015, ha="left", fontsize=10, color=INK, parse_math=False
    )
    figure.legend(
        loc="outside lower left", ncols=3, frameon=False, fontsize=8, labelcolor=SOFT,
        handlelength=1.1, handleheight=1.1,
    )  # fmt: skip
    return write(figure, path)


def draw_memory(axes: Axes, bars: Sequence[Bar]) -> None:
    """Draws a bar of what each device holds, a mark where its memory ends, and the share."""
    plain(axes)
    axes.grid(axis="y", visible=False)
    axes.set_yticks(range(len(bars)), [bar.name for bar in bars], parse_math=False)
    axes.tick_params(axis="y", labelsize=8.5, colors=INK)
    axes.set_ylim(len(bars) - 0.45, -0.55)
    longest = max(max(sum(bar.memory.values()), bar.limit) for bar in bars) / GIB
    axes.set_xlim(0, longest * 1.2)
    axes.set_xlabel("GiB of one device", color=SOFT, fontsize=8.5)
    starts = [0.0] * len(bars)
    for kind, colour in COLOURS.items():
        widths = [bar.memory.get(kind, 0) / GIB for bar in bars]
        if any(widths):
            axes.barh(range(len(bars)), widths, 2 * _HALF, starts, color=colour, label=NAMES[kind])
        starts = [start + width for start, width in zip(starts, widths, strict=True)]
    for place, (bar, total) in enumerate(zip(bars, starts, strict=True)):
        _draw_limit(axes, place, bar.limit / GIB, total, is_first=place == 0)
        over = total > bar.limit / GIB
        shown = f"{total:.3g} GiB, {total * GIB / bar.limit:.0%}"
        end = max(total, bar.limit / GIB) + longest * 0.012
        axes.text(
            end, place, shown, va="center", fontsize=8.5, color=ALARM if over else INK,
            fontweight="bold" if over else "normal",
        )  # fmt: skip


def _draw_limit(axes: Axes, place: int, limit: float, total: float, *, is_first: bool) -> None:
    label = "what may be used" if is_first else None
    colour = ALARM if total > limit else INK
    ends = [place - _HALF - 0.09, place + _HALF + 0.09]
    axes.plot([limit, limit], ends, color=colour, lw=1.8, solid_capstyle="butt")
    if label:
        axes.plot([], [], color=INK, lw=1.8, label=label)
