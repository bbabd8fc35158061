"""The look that all pictures share.

Every figure is an object of its own, drawn by Agg: no pyplot, so no display and no global state.
"""

from __future__ import annotations

import warnings
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

INK, SOFT, FAINT, GRID = "#1f2933", "#6b7785", "#b8c0c9", "#e4e7eb"
TRAINING, VALIDATION, RATE = "#8fb1d4", "#1f5fa8", "#b4631f"
LONGEST_NAME = 22


def new_figure(width: float, height: float) -> Figure:
    """Returns an empty figure of this size, in inches."""
    figure = Figure(figsize=(width, height), dpi=130, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def plain(axes: Axes) -> None:
    """Leaves of the axes a light grid and no frame."""
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(GRID)
    axes.tick_params(colors=SOFT, labelsize=8, length=0)
    axes.grid(axis="both", color=GRID, lw=0.8)
    axes.set_axisbelow(True)


def short(name: str) -> str:
    """Returns the name, its middle left out where it is long: both ends may tell labels apart."""
    if len(name) <= LONGEST_NAME:
        return name
    half = (LONGEST_NAME - 1) // 2
    return f"{name[:half]}…{name[-half:]}"


def write(figure: Figure, path: str | Path) -> Path:
    """Writes the figure as a PNG, its folder made if need be; returns its path."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with warnings.catch_warnings():
        # A label in a script the font lacks shows as boxes; the numbers are right all the same.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure.savefig(path, format="png")
    return path
