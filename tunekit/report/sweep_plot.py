"""A sweep as a picture: the metric against what was varied, every member a point."""

from __future__ import annotations

import itertools
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.patches import Rectangle
from matplotlib.transforms import blended_transform_factory

from tunekit.report.figure import (
    GRID,
    INK,
    RATE,
    SOFT,
    TRAINING,
    VALIDATION,
    new_figure,
    plain,
    short,
    write,
)

ALARM = "#c0392b"
HIGHEST_TICKED = 8
"""More values than this are not all named on their axis."""
HIGHEST_JOINED = 12
"""More values than this are joined by a line of means only where they repeat."""
HIGHEST_CELLS = 240
"""A map of more cells than this has no room for a number in each."""
COLUMNS = 3
CHARACTERS_PER_INCH = 12

Rows = Sequence[Mapping[str, Any]]


def plot_sweep(
    rows: Rows,
    axes: Sequence[str],
    path: str | Path,
    *,
    metric: str,
    lower_is_better: bool = False,
    title: str = "",
) -> Path:
    """Writes the score against what was varied as a PNG; returns its path.

    One axis: a point a member, with mean and standard deviation. Two that were all combined: a map
    of means. Else a panel an axis.

    Args:
        rows: one a member: "score", `None` where it failed, and a value of every axis; an axis of
            numbers alone is drawn to scale.
        axes: what was varied.
        path: of the picture; its folder is made.
        metric: what the score is.
        lower_is_better: whether the lowest score is the best.
        title: above the picture.
    """
    label = f"{metric} (lower is better)" if lower_is_better else metric
    if len(axes) == 2 and _is_grid(rows, axes):
        wide, high = (len(_distinct(rows, axis)) for axis in axes)
        figure = new_figure(max(2.6 + 0.85 * wide, 5.2), max(1.6 + 0.6 * high, 3.2))
        draw_map(figure.subplots(), rows, axes, lower_is_better=lower_is_better)
        title = title or label
    else:
        columns = min(len(axes), COLUMNS)
        lines = -(-len(axes) // columns)
        high = max(_panel_inches(_distinct(rows, axis)) for axis in axes)
        figure = new_figure(6.4 if columns == 1 else 4.4 * columns, 0.4 + high * lines)
        panels = np.ravel(figure.subplots(lines, columns, squeeze=False))
        for panel, axis in zip(panels, axes, strict=False):
            draw_axis(panel, rows, axis, label)
        for panel in panels[len(axes) :]:
            panel.set_visible(False)
    title = textwrap.fill(title, int(figure.get_figwidth() * CHARACTERS_PER_INCH))
    figure.suptitle(title, x=0.015, ha="left", fontsize=10, color=INK, parse_math=False)
    return write(figure, path)


def draw_axis(axes: Axes, rows: Rows, axis: str, label: str) -> None:
    """Draws the score against one axis: numbers upwards to scale, words as lines of a list."""
    plain(axes)
    if _is_numeric(_distinct(rows, axis)):
        _draw_numbers(axes, rows, axis, label)
    else:
        _draw_words(axes, rows, axis, label)


def draw_map(axes: Axes, rows: Rows, names: Sequence[str], *, lower_is_better: bool) -> None:
    """Draws the mean score of each pair of values, the first axis to the right; best framed."""
    across, up = (_distinct(rows, name) for name in names)
    means = np.full((len(up), len(across)), np.nan)
    spreads = np.full_like(means, np.nan)
    for (row, y), (column, x) in itertools.product(enumerate(up), enumerate(across)):
        cell = [one for one in rows if (one[names[0]], one[names[1]]) == (x, y)]
        means[row, column], spreads[row, column] = _mean_and_spread(cell)
    known = means[np.isfinite(means)]
    norm = Normalize(*((known.min(), known.max()) if len(known) else (0, 1)))
    axes.set_facecolor(GRID)  # shows through where all members failed
    colours = "Blues_r" if lower_is_better else "Blues"
    axes.imshow(means, cmap=colours, norm=norm, origin="lower", aspect="auto", alpha=0.85)
    axes.spines[:].set_visible(False)
    axes.tick_params(colors=SOFT, labelsize=8.5, length=0)
    axes.set_xticks(range(len(across)), map(_name, across), parse_math=False)
    axes.set_yticks(range(len(up)), map(_name, up), parse_math=False)
    axes.set_xlabel(names[0], color=SOFT, parse_math=False)
    axes.set_ylabel(names[1], color=SOFT, parse_math=False)
    if means.size <= HIGHEST_CELLS:
        _write_cells(axes, means, spreads, dark="low" if lower_is_better else "high")
    if len(known):
        best = np.nanargmin(means) if lower_is_better else np.nanargmax(means)
        row, column = np.unravel_index(best, means.shape)
        corner = (float(column) - 0.5, float(row) - 0.5)
        axes.add_patch(Rectangle(corner, 1, 1, fill=False, ec=RATE, lw=2.2, clip_on=False))


def _write_cells(
    axes: Axes, means: np.ndarray, spreads: np.ndarray, *, dark: Literal["low", "high"]
) -> None:
    low, high = (np.nanmin(means), np.nanmax(means)) if np.isfinite(means).any() else (0, 1)
    for (row, column), mean in np.ndenumerate(means):
        spread = spreads[row, column]
        text = "failed" if np.isnan(mean) else f"{mean:.3f}"
        text += "" if np.isnan(spread) else f"\n± {spread:.3f}"
        share = 0.0 if np.isnan(mean) else (mean - low) / max(high - low, 1e-12)
        is_dark = np.isfinite(mean) and (share > 0.6 if dark == "high" else share < 0.4)
        colour = ALARM if np.isnan(mean) else "white" if is_dark else INK
        axes.text(column, row, text, ha="center", va="center", fontsize=8, color=colour)


def _draw_numbers(axes: Axes, rows: Rows, axis: str, label: str) -> None:
    values = _distinct(rows, axis)
    if _is_geometric(values):
        axes.set_xscale("log")
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.minorticks_off()
    if len(values) <= HIGHEST_TICKED:
        axes.set_xticks(values, [f"{value:g}" for value in values])
    axes.set_xlabel(axis, color=SOFT, parse_math=False)
    axes.set_ylabel(label, color=SOFT, parse_math=False)
    _draw_numeric_means(axes, rows, axis)
    scored = [row for row in rows if row["score"] is not None]
    points = [row[axis] for row in scored], [row["score"] for row in scored]
    axes.plot(*points, ls="none", marker="o", ms=5, color=VALIDATION, alpha=0.65, label="member")
    failed = sorted({row[axis] for row in rows if row["score"] is None})
    if failed:
        at_foot = blended_transform_factory(axes.transData, axes.transAxes)
        foot = [0.02] * len(failed)
        axes.plot(failed, foot, "x", color=ALARM, transform=at_foot, label="failed", clip_on=False)
    axes.legend(frameon=False, fontsize=8, labelcolor=SOFT)


def _draw_numeric_means(axes: Axes, rows: Rows, axis: str) -> None:
    values = _distinct(rows, axis)
    groups = [_mean_and_spread([row for row in rows if row[axis] == value]) for value in values]
    if len(values) > HIGHEST_JOINED and all(np.isnan(spread) for _, spread in groups):
        return
    means, spreads = (np.array(column) for column in zip(*groups, strict=True))
    axes.plot(values, means, color=VALIDATION, lw=1.8, label="mean")
    if np.isfinite(spreads).any():
        known = np.nan_to_num(spreads)
        band = {"color": TRAINING, "alpha": 0.3, "lw": 0, "label": "± standard deviation"}
        axes.fill_between(values, means - known, means + known, **band)


def _draw_words(axes: Axes, rows: Rows, axis: str, label: str) -> None:
    values = _distinct(rows, axis)
    axes.set_yticks(range(len(values)), map(_name, values), parse_math=False)
    axes.set_ylim(len(values) - 0.5, -0.5)
    axes.set_xlabel(label, color=SOFT, parse_math=False)
    axes.set_title(axis, loc="left", fontsize=9, color=SOFT, parse_math=False)
    beside = blended_transform_factory(axes.transAxes, axes.transData)
    for place, value in enumerate(values):
        group = [row for row in rows if row[axis] == value]
        scores = [row["score"] for row in group if row["score"] is not None]
        mean, spread = _mean_and_spread(group)
        apart = place + np.linspace(0.0, 0.2, len(scores))
        axes.plot(scores, apart, "o", ls="none", ms=5, color=VALIDATION, alpha=0.65)
        if len(scores) > 1:
            bar = {"xerr": spread, "fmt": "D", "ms": 5, "color": RATE, "capsize": 3}
            axes.errorbar(mean, place - 0.2, **bar)
        if len(scores) < len(group):
            count = f"{len(group) - len(scores)} of {len(group)} failed"
            note = {"va": "center", "fontsize": 8, "color": ALARM, "transform": beside}
            axes.text(0.02, place - 0.3, count, **note)


def _mean_and_spread(rows: Rows) -> tuple[float, float]:
    """Mean and standard deviation of the scores; NaN where there are too few."""
    scores = [row["score"] for row in rows if row["score"] is not None]
    mean = float(np.mean(scores)) if scores else float("nan")
    return mean, float(np.std(scores, ddof=1)) if len(scores) > 1 else float("nan")


def _is_grid(rows: Rows, axes: Sequence[str]) -> bool:
    """Whether every value of one axis was tried with every value of the other."""
    pairs = {tuple(row[axis] for axis in axes) for row in rows}
    sizes = [len(_distinct(rows, axis)) for axis in axes]
    return len(pairs) == sizes[0] * sizes[1] and min(sizes) > 1


def _distinct(rows: Rows, axis: str) -> list[Any]:
    """The values of an axis: numbers in order, words as they came."""
    values = list(dict.fromkeys(row[axis] for row in rows))
    return sorted(values) if _is_numeric(values) else values


def _panel_inches(values: Sequence[Any]) -> float:
    return 4.0 if _is_numeric(values) else float(np.clip(1.0 + 0.6 * len(values), 2.0, 12.0))


def _is_numeric(values: Sequence[Any]) -> bool:
    return all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in values)


def _is_geometric(values: Sequence[float]) -> bool:
    """Whether the values, in order, are spaced more evenly by factors than by differences."""
    if values[0] <= 0 or len(values) < 2:
        return False
    if len(values) == 2:
        return values[1] >= 10 * values[0]
    steps = np.diff(values), np.diff(np.log(values))
    by_difference, by_factor = (np.std(each) / np.mean(each) for each in steps)
    return bool(by_factor < by_difference)


def _name(value: Any) -> str:
    is_number = isinstance(value, float)
    return f"{value:g}" if is_number else short(str(value))
