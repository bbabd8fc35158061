"""Plans of one recipe on several machines: a line each, one picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunekit.errors import TunekitError
from tunekit.planning.plan import Plan
from tunekit.planning.plan_text import comparison_text


@dataclass(frozen=True, eq=False)
class Comparison:
    """Plans of one recipe, one a machine."""

    plans: tuple[Plan, ...]

    def __str__(self) -> str:
        """Returns a table with a line for each machine."""
        return comparison_text(self.plans)

    def to_json(self) -> list[dict[str, Any]]:
        """Returns the plans as values of JSON."""
        return [plan.to_json() for plan in self.plans]

    def plot(self, path: str | Path) -> Path:
        """Writes the memory of a device of each machine as a PNG; returns its path."""
        return plot(self.plans, path)


def plot(plans: Sequence[Plan], path: str | Path) -> Path:
    """Writes the memory of a device as a PNG: a bar a phase and machine, and one for each change.

    Args:
        plans: of one recipe.
        path: of the picture; its folder is made.

    Raises:
        TunekitError: nothing was compiled, so that there is nothing to draw.
    """
    from tunekit.report.memory_plot import Bar, plot_memory

    bars = []
    for plan in plans:
        for name, memory in _rows(plan, several=len(plans) > 1):
            bars.append(Bar(name, memory, plan.room))
    if not bars:
        raise TunekitError(
            f"there is no memory to draw: no compiler for {plans[0].target} is installed. "
            f"{plans[0].notes[-1]}"
        )
    recipe, batch = plans[0].recipe, plans[0].recipe.batch
    told = f"{recipe.backbone.name}, {recipe.method.name}, {batch.size} examples a step"
    where = "" if len(plans) > 1 else f" on {plans[0].target}"
    return plot_memory(bars, path, title=f"{plans[0].name}{where}: {told}")


def _rows(plan: Plan, *, several: bool) -> list[tuple[str, dict[str, int]]]:
    """Names and bytes of a plan's bars: its phases, or the worst of them, and the change's."""
    phases = [plan.worst] if several else plan.phases
    rows = []
    for number, phase in enumerate(phases, 1):
        if phase.memory is not None:
            name = plan.target.name if several else f"phase {number}"
            rows.append((name, dict(phase.memory)))
    if plan.change is not None:
        changed = dict(plan.change.plan.worst.memory or {})
        texts = [text.partition(".")[2] for text in plan.change.overrides]
        name = f"{plan.target.name} with\n" if several else "with\n"
        rows.append((name + "\n".join(texts), changed))
    return rows
