"""What each process of a launched run does, and what it hands back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tunekit.distributed import is_first
from tunekit.recipe import Recipe
from tunekit.report.audit_plot import plot_audit
from tunekit.run import run


def trained(recipe: Recipe) -> dict[str, Any]:
    """Returns the metrics and sample answers of the run; its folder has the result and its plots.

    Args:
        recipe: with `runtime.out`.

    Raises: as `run` does.
    """
    assert recipe.runtime.out is not None
    out = Path(recipe.runtime.out).expanduser()
    result = run(recipe)
    if is_first():
        result.plot(out / "curves.png")
        plot_audit(result.report["audit"], out / "moved.png")
    kept = {"samples": [], "profile": None}
    shown = {name: result.report.get(name, default) for name, default in kept.items()}
    return {"metrics": result.metrics, **shown}
