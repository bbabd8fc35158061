"""Pictures of a run: its curves, and where its mistakes are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator
from matplotlib.transforms import blended_transform_factory

from tunekit.report.figure import (
    FAINT,
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

HIGHEST_NAMED = 60
"""More labels than this have no room for their names."""
HIGHEST_SHARED = 8
"""More labels than this have no room for a percentage beside the count in each cell."""
HIGHEST_COUNTED = 16
"""More labels than this have no room for a count in each cell."""

_SHOWN = ("accuracy", "perplexity", "f1", "spearman", "recall_at_1")
"""The metric drawn beside the loss: the first of these that there is."""

History = Sequence[Mapping[str, Any]]


def plot_result(history: History, metrics: Mapping[str, Any], path: str | Path) -> Path:
    """Writes the curves and the confusion matrix as one PNG; returns its path.

    Args:
        history: one row an epoch, as in `Result.history`.
        metrics: as from `classification_metrics`; several labels an image: F1 by label is drawn;
            empty: only the curves are.
        path: of the picture; its folder is made.
    """
    if not metrics.get("label_names"):
        return plot_curves(history, path)
    side = _matrix_inches(len(metrics["label_names"]))
    figure = new_figure(5.6 + side, max(side, 5.6))
    left, right = np.ravel(figure.subfigures(1, 2, width_ratios=[5.6, side], squeeze=False))
    figure.suptitle(
        _headline(metrics), x=0.015, ha="left", fontsize=11, color=INK, parse_math=False
    )
    draw_curves(left.subplots(3, 1, sharex=True, height_ratios=[3, 3, 2]), history)
    _draw_labels(right.subplots(), metrics)
    return write(figure, path)


def plot_curves(history: History, path: str | Path) -> Path:
    """Writes loss, accuracy and learning rate by epoch as a PNG; returns its path."""
    figure = new_figure(6.4, 6.4)
    draw_curves(figure.subplots(3, 1, sharex=True, height_ratios=[3, 3, 2]), history)
    return write(figure, path)


def plot_confusion_matrix(metrics: Mapping[str, Any], path: str | Path) -> Path:
    """Writes the confusion matrix (several labels: F1 by label) as a PNG; returns its path."""
    side = _matrix_inches(len(metrics["label_names"]))
    figure = new_figure(side + 0.4, side)
    _draw_labels(figure.subplots(), metrics)
    return write(figure, path)


def draw_curves(axes: Sequence[Axes] | np.ndarray, history: History) -> None:
    """Draws loss, accuracy and learning rate on three axes, with a mark where a phase begins."""
    loss, accuracy, rate = axes
    epochs = np.arange(1, len(history) + 1)
    _draw_series(loss, epochs, history, {"loss": "training", "val_loss": "validation"}, "loss")
    name = next((name for name in _SHOWN if any(f"val_{name}" in row for row in history)), "")
    series = {name: "training", f"val_{name}": "validation"}
    _draw_series(accuracy, epochs, history, series, name.replace("_", " ") or "accuracy")
    _draw_series(rate, epochs, history, {"learning_rate": ""}, "learning rate")
    rate.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    rate.set_ylim(bottom=0)
    rate.set_xlabel("epoch", color=SOFT)
    rate.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=10, min_n_ticks=1))
    rate.set_xlim(0.5, max(len(history), 1) + 0.5)
    _mark_phases(axes, history)


def _draw_series(
    axes: Axes, epochs: np.ndarray, history: History, series: Mapping[str, str], title: str
) -> None:
    plain(axes)
    axes.set_title(title, loc="left", fontsize=10, color=INK)
    colours = {"training": TRAINING, "validation": VALIDATION, "": RATE}
    drawn = 0
    for key, name in series.items():
        values = np.asarray([_number(row.get(key)) for row in history], float)
        if np.isnan(values).all():
            continue
        drawn += 1
        marker = "o" if len(history) <= 30 else None
        axes.plot(
            epochs, values, marker=marker, ms=4, lw=1.8, color=colours[name], label=name or title
        )
    if drawn == 0:
        axes.text(
            0.5, 0.5, "not measured", transform=axes.transAxes, ha="center", va="center", color=SOFT
        )
    elif "" not in series.values():
        axes.legend(frameon=False, fontsize=8, labelcolor=SOFT)


def _mark_phases(axes: Sequence[Axes] | np.ndarray, history: History) -> None:
    phases = [row.get("phase", 0) for row in history]
    starts = [i for i, phase in enumerate(phases) if i == 0 or phase != phases[i - 1]]
    if len(starts) < 2:
        return
    for start in starts[1:]:
        for each in axes:
            each.axvline(start + 0.5, color=SOFT, lw=0.9, ls=(0, (4, 3)))
    top = axes[0]
    top.set_title(top.get_title(loc="left"), loc="left", fontsize=10, color=INK, pad=18)
    place = blended_transform_factory(top.transData, top.transAxes)
    for number, start in enumerate(starts, start=1):
        name = f"phase {number}" if len(starts) <= 5 else str(number)
        x = start + 0.5 + 0.01 * len(history)
        top.text(x, 1.01, name, transform=place, fontsize=8, color=SOFT, va="bottom")


def _draw_labels(axes: Axes, metrics: Mapping[str, Any]) -> None:
    if metrics.get("confusion_matrix"):
        draw_confusion_matrix(axes, metrics["confusion_matrix"], metrics["label_names"])
    else:
        _draw_f1(axes, metrics.get("per_class", {}))


def draw_confusion_matrix(
    axes: Axes, matrix: Sequence[Sequence[int]], label_names: Sequence[str]
) -> None:
    """Draws counts, coloured by their share of the true label; rows are true labels."""
    counts = np.asarray(matrix)
    support = counts.sum(axis=1, keepdims=True)
    share = np.where(support > 0, counts / np.maximum(support, 1), np.nan)
    axes.set_facecolor(GRID)  # shows through where a label has no example
    axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
    axes.set_title("confusion matrix", loc="left", fontsize=10, color=INK)
    axes.set_xlabel("predicted", color=SOFT)
    axes.set_ylabel("true", color=SOFT)
    axes.tick_params(colors=SOFT, length=0)
    axes.spines[:].set_visible(False)
    _name_ticks(axes, label_names)
    if len(counts) > HIGHEST_COUNTED:
        return
    for (row, column), count in np.ndenumerate(counts):
        text = str(count)
        if count and len(counts) <= HIGHEST_SHARED:
            text += f"\n{share[row, column]:.0%}"
        colour = "white" if share[row, column] > 0.55 else (INK if count else FAINT)
        axes.text(column, row, text, ha="center", va="center", fontsize=8, color=colour)


def _name_ticks(axes: Axes, label_names: Sequence[str]) -> None:
    if len(label_names) > HIGHEST_NAMED:
        axes.set_xticks([])
        axes.set_yticks([])
        axes.set_xlabel(f"predicted ({len(label_names)} labels)", color=SOFT)
        return
    names = [short(name) for name in label_names]
    places = np.arange(len(names))
    size = 9 if len(names) <= 20 else 7
    flat = len(names) <= 8 and max(map(len, names)) * len(names) <= 48
    axes.set_yticks(places, names, fontsize=size, parse_math=False)
    if flat:
        axes.set_xticks(places, names, fontsize=size, parse_math=False)
    else:
        axes.set_xticks(places, names, fontsize=size, parse_math=False, rotation=90)


def _draw_f1(axes: Axes, per_class: Mapping[str, Mapping[str, Any]]) -> None:
    plain(axes)
    axes.set_title("F1 by label", loc="left", fontsize=10, color=INK)
    names = list(per_class)
    values = [_number(per_class[name]["f1"]) for name in names]
    axes.barh(np.arange(len(names)), values, color=VALIDATION, height=0.65)
    if len(names) <= HIGHEST_COUNTED:
        for place, value in enumerate(values):
            known = "no example" if np.isnan(value) else f"{value:.2f}"
            at = 0.0 if np.isnan(value) else value
            axes.text(at + 0.01, place, known, va="center", fontsize=8, color=SOFT)
    axes.set_xlim(0, 1.08)
    axes.set_xticks(np.linspace(0, 1, 6))
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.grid(axis="y", visible=False)
    if len(names) <= HIGHEST_NAMED:
        size = 9 if len(names) <= 20 else 7
        shown = [short(name) for name in names]
        axes.set_yticks(np.arange(len(names)), shown, fontsize=size, parse_math=False)
    else:
        axes.set_yticks([])


def _headline(metrics: Mapping[str, Any]) -> str:
    names = {
        "accuracy": "accuracy",
        "mean_average_precision": "mAP",
        "f1_macro": "macro F1",
        "auc": "AUC",
        "expected_calibration_error": "calibration error",
    }
    parts = [
        f"{shown} {metrics[name]:.3f}"
        for name, shown in names.items()
        if metrics.get(name) is not None
    ]
    if metrics.get("examples"):
        parts.append(f"{metrics['examples']:,} examples")
    return "   ".join(parts)


def _number(value: Any) -> float:
    return float("nan") if value is None else float(value)


def _matrix_inches(labels: int) -> float:
    return float(np.clip(0.2 * labels + 3, 5.6, 12)) if labels <= HIGHEST_NAMED else 7.0
