"""A plan as a picture: time across, depth upwards, the learning rate as colour."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.collections import QuadMesh
from matplotlib.colors import LogNorm
from matplotlib.ticker import LogFormatterSciNotation, MaxNLocator
from matplotlib.transforms import blended_transform_factory

from tunekit.models.depth import Group
from tunekit.plans.resolve import ResolvedPhase
from tunekit.report.audit_plot import name_groups, picture_height
from tunekit.report.figure import INK, SOFT, new_figure, write

FROZEN = "#e9ecef"
COLUMNS = 120
"""Columns that a phase is drawn with, at most; a course of more steps is thinned to so many."""
WIDTH_INCHES = 9.0
FULL, THIN = 0.46, 0.17
"""Half the height of a band in rows: where a whole group trains, and where a part of it does."""


def plot_plan(
    phases: Sequence[ResolvedPhase],
    groups: Sequence[Group],
    epochs: Sequence[float],
    path: str | Path,
    *,
    title: str = "",
) -> Path:
    """Writes what trains when, and how fast, as a PNG; the input is at the bottom.

    Args:
        phases: in order.
        groups: of the model, in depth order.
        epochs: length of each phase.
        path: of the picture; its folder is made.
        title: written above.

    Returns:
        The path.
    """
    figure = new_figure(WIDTH_INCHES, picture_height(len(groups)))
    axes = figure.subplots()
    mesh = draw_plan(axes, phases, groups, epochs)
    axes.set_title(title, loc="left", fontsize=10, color=INK, pad=20, parse_math=False)
    bar = figure.colorbar(mesh, ax=axes, pad=0.015, aspect=32, extend="min")
    bar.set_label("learning rate", color=SOFT, fontsize=9)
    bar.formatter = LogFormatterSciNotation(labelOnlyBase=False, minor_thresholds=(2, 0.5))
    bar.ax.tick_params(colors=SOFT, labelsize=8, length=0, which="both")
    bar.outline.set_visible(False)  # pyright: ignore[reportCallIssue]
    return write(figure, path)


def draw_plan(
    axes: Axes,
    phases: Sequence[ResolvedPhase],
    groups: Sequence[Group],
    epochs: Sequence[float],
) -> QuadMesh:
    """Draws a band for each group where it trains, and a mark where each phase begins."""
    edges, rates, shares = plan_grid(phases, groups, epochs)
    mesh = _draw_bands(axes, edges, rates, shares, LogNorm(*_limits(phases), clip=True))
    axes.set_facecolor(FROZEN)
    axes.spines[:].set_visible(False)
    axes.tick_params(colors=SOFT, labelsize=8, length=0)
    name_groups(axes, [group.name for group in groups])
    axes.set_xlim(edges[0], edges[-1])
    axes.xaxis.set_major_locator(MaxNLocator(integer=edges[-1] >= 4, nbins=12, min_n_ticks=2))
    early = any(phase.patience for phase in phases)
    note = " at most: a phase may stop early" if early else ""
    part = "; thin bands: a part of the group trains" if ((shares > 0) & (shares < 1)).any() else ""
    axes.set_xlabel(f"epochs{note}      grey: frozen{part}", color=SOFT, fontsize=9)
    _mark_phases(axes, phases, np.concatenate([[0.0], np.cumsum(epochs)]))
    return mesh


def plan_grid(
    phases: Sequence[ResolvedPhase], groups: Sequence[Group], epochs: Sequence[float]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns the plan as it is drawn, in N columns of time.

    Returns:
        Edges of the columns in epochs [N + 1]; the highest learning rate within each group [G, N],
        0 where it is frozen; and the fraction of the group's weights that train [G, N].
    """
    edges, rates, shares = [np.zeros(1)], [], []
    for phase, length in zip(phases, epochs, strict=True):
        count = min(phase.steps, COLUMNS)
        steps = ((np.arange(count) + 0.5) * phase.steps / count).astype(int)
        edges.append(edges[-1][-1] + length * np.arange(1, count + 1) / count)
        trained = [[name for name in group.weights if name in phase.trainable] for group in groups]
        factors = [max((phase.multipliers[n] for n in names), default=0.0) for names in trained]
        share = [
            len(names) / max(len(group.weights), 1)
            for names, group in zip(trained, groups, strict=True)
        ]
        rates.append(np.outer(factors, phase.learning_rates[steps]))
        shares.append(np.repeat(np.array(share)[:, None], count, axis=1))
    return np.concatenate(edges), np.hstack(rates), np.hstack(shares)


def _limits(phases: Sequence[ResolvedPhase]) -> tuple[float, float]:
    """The rates that have the palest colour and the darkest.

    A cosine ends at zero: rates are told apart down to a twentieth of the lowest peak of a phase.
    """
    peaks = [
        float(f"{phase.learning_rates.max() * factor:.5g}")  # float32 has 1e-4 a little below it
        for phase in phases
        for factor in set(phase.multipliers.values())
    ]
    peaks = [peak for peak in peaks if peak > 0] or [1e-3]
    return min(peaks) / 20, max(peaks)


def _draw_bands(
    axes: Axes, edges: np.ndarray, rates: np.ndarray, shares: np.ndarray, norm: LogNorm
) -> QuadMesh:
    """Draws one mesh; a group has four rows in it: lower part, core, upper part, gap."""
    places = np.arange(len(rates))[:, None] + np.array([-FULL, -THIN, THIN, FULL])
    shown = np.stack([shares == 1, shares > 0, shares == 1, np.zeros_like(shares)], axis=1) > 0
    # A rate of zero has no logarithm, and is no frozen part either.
    cells = np.where(shown, np.maximum(rates, np.finfo(np.float32).tiny)[:, None], np.nan)
    cells = cells.reshape(-1, rates.shape[1])[:-1]
    return axes.pcolormesh(edges, places.ravel(), cells, norm=norm, cmap=colormaps["YlGnBu"])


def _mark_phases(axes: Axes, phases: Sequence[ResolvedPhase], starts: np.ndarray) -> None:
    """Writes the number of each phase above it, and what trains in it where that fits."""
    above = blended_transform_factory(axes.transData, axes.transAxes)
    letters = 12 * WIDTH_INCHES / starts[-1]
    for start in starts[1:-1]:
        axes.axvline(start, color="white", lw=1.6)
    free = -np.inf
    for number, phase in enumerate(phases, start=1):
        start, width = starts[number - 1], starts[number] - starts[number - 1]
        text = f"{number}  {phase.label}"
        text = text if len(text) + 1 <= letters * width else str(number)
        if start >= free:
            style = {"fontsize": 8, "color": SOFT, "va": "bottom", "parse_math": False}
            axes.text(start, 1.01, text, transform=above, **style)
            free = start + (len(text) + 1) / letters
