"""Plans as if they had been compiled, with numbers that can be read off."""

from __future__ import annotations

from typing import Any

from tunekit.data.spec import BatchSpec
from tunekit.planning.costs import PhaseCost
from tunekit.planning.counting import Counted
from tunekit.planning.hardware import target
from tunekit.planning.plan import PhasePlan, Plan
from tunekit.planning.roofline import StepTime
from tunekit.planning.settings import Held
from tunekit.recipe import Recipe
from tunekit.training.layout import MeshSizes

GIB = 2**30
RECIPE = Recipe.load("llm/sft_lora", ["backbone=llama3_8b"])


def made_phase(activations: float | None = 6.0, **changes: Any) -> PhasePlan:
    """A phase with 2 GiB of frozen weights and so many of activations; `None`: not compiled."""
    state = {"frozen": 16 * GIB, "trained": GIB // 8, "optimizer": GIB // 4}
    counted = Counted("lora adapter", 21_000_000, 8_030_000_000, 1250, state, GIB // 8)
    if activations is None:
        return PhasePlan(counted, BatchSpec(size=8), 29.1e12, **changes)
    held = Held(2 * GIB, GIB / 64, GIB / 32, GIB / 64, activations * GIB)
    collectives = ({"kind": "all-gather", "count": 64, "bytes": 16 * GIB},)
    cost = PhaseCost("lora adapter", held, 29.1e12, 1e5, 3e9, 176e9, collectives, 12.5)
    time = StepTime(compute=0.171, memory=0.004, links=0.094, upper=0.43)
    return PhasePlan(counted, BatchSpec(size=8), 29.1e12, held, cost, time, **changes)


def made_plan(*phases: PhasePlan, on: str = "v5e-8", **changes: Any) -> Plan:
    """A plan of these phases, extrapolated from 2 and 4 of 32 blocks."""
    given: dict[str, Any] = {"blocks": (2, 4), "depth": 32, **changes}
    machine = target(on)
    mesh = MeshSizes(fsdp=machine.count)
    recipe = "llm/sft_lora"
    return Plan(recipe, RECIPE, machine, mesh, phases or (made_phase(),), 10_000, **given)
