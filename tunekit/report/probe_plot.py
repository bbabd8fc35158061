"""A probe as a picture: what each depth knows of the labels, and how clear its gradient is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from tunekit.report.figure import FAINT, GRID, INK, RATE, SOFT, VALIDATION, new_figure, plain, write

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
    figure = new_figure(float(np.clip(2.5 + 0.3 * len(depths), 5.5, 14)), 5.6)
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
    axes.axhspan(values[best] - errors[best], values[best], color=GRID, lw=0, zorder=0)
    axes.axhline(majority, color=SOFT, lw=1, ls=(0, (4, 3)), zorder=1)
    axes.plot(places, values, color=FAINT, lw=1.2, zorder=2)
    axes.errorbar(
        places, values, errors, fmt="o", ms=5, color=VALIDATION, elinewidth=1.2, capsize=2.5
    )
    low = min(majority, float((values - errors).min()))
    high = float((values + errors).max())
    room = 0.08 * (high - low) + 0.01
    axes.set_ylim(low - room, high + room)
    axes.annotate(
        "always guessing the most frequent label",
        (0, majority),
        xytext=(0, 3),
        textcoords="offset points",
        fontsize=8,
        color=SOFT,
    )
    title = "accuracy of a linear probe after each depth (band: ties with the best)"
    axes.set_title(title, loc="left", fontsize=10, color=INK)


def draw_gradient(axes: Axes, depths: Depths, *, batch_size: int, train_examples: int) -> None:
    """Draws the signal to noise of each group's gradient; where no signal is found, no bar."""
    plain(axes)
    places, values = np.arange(len(depths)), np.array([depth["snr"] for depth in depths])
    floor = batch_size / train_examples
    positive = values[values > 0]
    shown = [*positive, 1.0, floor]
    axes.set_yscale("log")
    low, high = min(shown) / 2, max(shown) * 2
    axes.bar(places, np.maximum(values - low, 0), 0.62, bottom=low, color=RATE)
    for place in places[values <= 0]:
        axes.text(place, low * 1.15, "none", ha="center", va="bottom", fontsize=7, color=SOFT)
    for level, said in (
        (1.0, f"a batch of {batch_size} is half signal"),
        (floor, f"all {train_examples:,} examples are half signal"),
    ):
        axes.axhline(level, color=SOFT, lw=1, ls=(0, (4, 3)))
        axes.annotate(
            said, (0, level), xytext=(0, 3), textcoords="offset points", fontsize=8, color=SOFT
        )
    axes.set_ylim(low, high)
    title = f"gradient signal to noise in a batch of {batch_size}"
    axes.set_title(title, loc="left", fontsize=10, color=INK)


def _name_depths(axes: Axes, names: Sequence[str]) -> None:
    step = -(-len(names) // HIGHEST_NAMED)
    places = [i for i, name in enumerate(names) if not i % step or "[" not in name]
    axes.set_xticks(places, [names[i] for i in places], rotation=60, ha="right", fontsize=8)
    axes.set_xlim(-0.7, len(names) - 0.3)
