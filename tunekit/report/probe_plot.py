"""A probe as a picture: what each depth knows of the labels, and how clear its gradient is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from tunekit.report.figure import FAINT, GRID, INK, RATE, SOFT, VALIDATION, new_figure, plain, write

DASHED, DOTTED = (0, (5, 3)), (0, (1, 2))
HIGHEST_NAMED = 40
"""More depths than this have no room for the names of all blocks."""

Depths = Sequence[Mapping[str, Any]]


def plot_probe(probe: Mapping[str, Any], path: str | Path) -> Path:
    """Writes accuracy by depth, and the gradient's signal to noise below, as a PNG.

    Args:
        probe: as from `tunekit.probe.Probe.to_json`.
        path: of the picture; its folder is made.

    Returns:
        The path.
    """
    depths = probe["depths"]
    figure = new_figure(float(np.clip(2.5 + 0.3 * len(depths), 7, 14)), 5.6)
    accuracy, gradient = figure.subplots(2, 1, sharex=True, height_ratios=[3, 2])
    draw_accuracy(accuracy, depths, majority=probe["majority"])
    draw_gradient(
        gradient,
        depths,
        batch_size=probe["batch_size"],
        train_examples=probe["train_examples"],
    )
    _name_depths(gradient, [depth["name"] for depth in depths])
    return write(figure, path)


def draw_accuracy(axes: Axes, depths: Depths, *, majority: float) -> None:
    """Draws the accuracy of each depth's probe, and the band that ties with the best."""
    plain(axes)
    places = np.arange(len(depths))
    values = np.array([depth["accuracy"] for depth in depths])
    errors = np.array([depth["standard_error"] for depth in depths])
    best = int(values.argmax())
    band = (values[best] - errors[best], values[best])
    axes.axhspan(*band, color=GRID, lw=0, zorder=0, label="ties with the best")
    axes.axhline(majority, color=SOFT, lw=1, ls=DASHED, label="always the most frequent label")
    axes.plot(places, values, color=FAINT, lw=1.2, zorder=2)
    axes.errorbar(
        places, values, errors, fmt="o", ms=5, color=VALIDATION, elinewidth=1.2, capsize=2.5
    )
    low, high = min(majority, (values - errors).min()), (values + errors).max()
    room = 0.06 * (high - low) + 0.01
    axes.set_ylim(low - room, high + room)
    _head(axes, "accuracy of a linear probe")


def draw_gradient(axes: Axes, depths: Depths, *, batch_size: int, train_examples: int) -> None:
    """Draws the signal to noise of each group's gradient; where there is none, it says so."""
    plain(axes)
    places, values = np.arange(len(depths)), np.array([depth["snr"] for depth in depths])
    found, floor = values > 0, batch_size / train_examples
    shown = [*values[found], 1.0, floor]
    axes.set_yscale("log")
    axes.set_ylim(min(shown) / 3, max(shown) * 2)
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.tick_params(which="minor", length=0)
    axes.axhline(1, color=SOFT, lw=1, ls=DASHED, label=f"equal in a batch of {batch_size}")
    within_all = f"equal in all {train_examples:,} examples"
    axes.axhline(floor, color=SOFT, lw=1, ls=DOTTED, label=within_all)
    axes.plot(places, np.where(found, values, np.nan), "o-", ms=5, lw=1.2, color=RATE)
    for place in places[~found]:
        axes.text(place, min(shown) / 2.6, "none", ha="center", fontsize=7.5, color=SOFT)
    _head(axes, "gradient: signal to noise")


def _head(axes: Axes, title: str) -> None:
    axes.set_title(title, loc="left", fontsize=10, color=INK)
    style: Any = {"frameon": False, "fontsize": 8, "labelcolor": SOFT, "borderaxespad": 0.3}
    axes.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=2, **style)


def _name_depths(axes: Axes, names: Sequence[str]) -> None:
    step = -(-len(names) // HIGHEST_NAMED)
    places = [i for i, name in enumerate(names) if not i % step or "[" not in name]
    axes.set_xticks(places, [names[i] for i in places], rotation=60, ha="right", fontsize=8)
    axes.set_xlim(-0.7, len(names) - 0.3)
