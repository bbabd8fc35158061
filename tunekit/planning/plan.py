"""The plan of a recipe on a machine: what it needs there, whether that fits, and what would."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tunekit.data.spec import BatchSpec
from tunekit.planning.costs import PhaseCost
from tunekit.planning.counting import Counted
from tunekit.planning.hardware import Target
from tunekit.planning.roofline import SLOWER, StepTime
from tunekit.planning.settings import Held
from tunekit.recipe import Recipe
from tunekit.training.layout import MeshSizes

LEFT_OUT = "reading the data, compilation, evaluation, checkpoints"
"""What the time of a run leaves out."""


@dataclass(frozen=True)
class PhasePlan:
    """What one phase needs."""

    counted: Counted
    """What its shapes say."""
    batch: BatchSpec
    """How its examples become batches."""
    flops: float = 0.0
    """Of a step, all devices together."""
    held: Held | None = None
    """Bytes of a device; `None` where nothing was compiled."""
    cost: PhaseCost | None = field(default=None, repr=False)
    time: StepTime | None = None

    @property
    def memory(self) -> dict[str, int] | None:
        """Bytes of a device by what they hold; `None` where nothing was compiled.

        "frozen" and "trained" weights, "optimizer", "copies" of weights, and "activations": those,
        gradients and all else that the step needs.
        """
        if self.held is None:
            return None
        named = {name: round(value) for name, value in vars(self.held).items()}
        named["activations"] = named.pop("rest")
        return named

    @property
    def total(self) -> int | None:
        """Bytes of a device in all."""
        return None if self.held is None else round(self.held.total)


@dataclass(frozen=True, eq=False)
class Change:
    """What makes a recipe fit that does not."""

    overrides: tuple[str, ...]
    """As ``tunekit run`` takes them."""
    plan: Plan
    """With them, compiled."""


@dataclass(frozen=True, eq=False)
class Plan:
    """What a recipe needs on a machine.

    Example:
        >>> found = tunekit.plan("llm/sft_lora", on="v5e-8", examples=10_000)
        >>> found.fits, found.largest_batch
        (True, 512)
    """

    name: str
    """Of the recipe, as it was asked for."""
    recipe: Recipe
    target: Target
    mesh: MeshSizes
    phases: tuple[PhasePlan, ...]
    examples: int
    """Of the training data; the notes say where they are assumed."""
    blocks: tuple[int, ...] = ()
    """Depths that were compiled in place of the whole network; empty: the whole was."""
    depth: int | None = None
    """Blocks of the whole network, where all are equal."""
    largest_batch: int | None = None
    """Examples of a step that were found to fit; `None` where none were, or none was asked for."""
    change: Change | None = None
    """The smallest one found that makes it fit; `None` where it fits, or none was found."""
    tried: tuple[tuple[tuple[str, ...], int], ...] = ()
    """Overrides that were compiled and the bytes that they need."""
    notes: tuple[str, ...] = ()
    """What else is to be known."""

    @property
    def is_compiled(self) -> bool:
        """Whether a compiler for the machine was at hand."""
        return all(phase.held is not None for phase in self.phases)

    @property
    def room(self) -> int:
        """Bytes of one device that may be used."""
        return self.target.chip.usable_bytes

    @property
    def worst(self) -> PhasePlan:
        """The phase that needs most memory."""
        return max(self.phases, key=lambda phase: phase.total or 0)

    @property
    def worst_held(self) -> Held:
        """What a device holds in that phase; of a plan that was compiled."""
        assert self.worst.held is not None
        return self.worst.held

    @property
    def fits(self) -> bool | None:
        """Whether every phase fits each device; `None` where nothing was compiled.

        A state that exceeds all devices together does not, whatever else a step needs.
        """
        if not self.is_compiled:
            least = max(sum(phase.counted.state.values()) for phase in self.phases)
            return False if least > self.room * self.target.count else None
        refused = any(phase.cost is not None and phase.cost.refusal for phase in self.phases)
        return not refused and (self.worst.total or 0) <= self.room

    @property
    def margin(self) -> int | None:
        """Bytes of a device that are left; below 0 what is lacking."""
        return None if self.worst.total is None else self.room - self.worst.total

    @property
    def steps(self) -> int:
        """Optimizer steps of the whole run."""
        return sum(phase.counted.steps for phase in self.phases)

    @property
    def seconds(self) -> tuple[float, float] | None:
        """Of all steps of the run, at least and at most; `None` where they are not known."""
        times = [
            (phase.counted.steps, phase.time) for phase in self.phases if phase.time is not None
        ]
        if len(times) < len(self.phases):
            return None
        lower = sum(steps * time.lower for steps, time in times)
        return lower, sum(steps * time.upper for steps, time in times)

    def table(self) -> str:
        """Returns the plan as text of at most 100 columns."""
        from tunekit.planning.plan_text import plan_text

        return plan_text(self)

    def __str__(self) -> str:
        """Returns the plan as text."""
        return self.table()

    def to_json(self) -> dict[str, Any]:
        """Returns the plan as values of JSON; ``docs/planning.md`` says what each is."""
        seconds = self.seconds
        return {
            "recipe": self.name,
            "backbone": self.recipe.backbone.name,
            "method": self.recipe.method.name,
            "target": {
                "name": self.target.name,
                "chip": self.target.chip.label,
                "devices": self.target.count,
                "hosts": self.target.hosts,
                "usable_bytes": self.room,
            },
            "mesh": dict(data=self.mesh.data, fsdp=self.mesh.fsdp, tensor=self.mesh.tensor),
            "examples": self.examples,
            "compiled": self._compiled_json(),
            "phases": [_phase_json(phase) for phase in self.phases],
            "fits": self.fits,
            "peak_bytes": self.worst.total,
            "margin_bytes": self.margin,
            "largest_batch": self.largest_batch,
            "change": self.change
            and {
                "overrides": list(self.change.overrides),
                "plan": self.change.plan.to_json(),
            },
            "tried": [{"overrides": list(o), "peak_bytes": total} for o, total in self.tried],
            "run": {
                "steps": self.steps,
                "seconds": seconds and {"lower": seconds[0], "upper": seconds[1]},
                "left_out": LEFT_OUT,
                "upper_is": f"{SLOWER:g} times the roofline of what was compiled",
            },
            "notes": list(self.notes),
        }

    def _compiled_json(self) -> dict[str, Any] | None:
        if not self.is_compiled:
            return None
        return {"blocks": list(self.blocks) or None, "of": self.depth}

    def plot(self, path: str | Path) -> Path:
        """Writes the memory of a device, phase by phase, as a PNG; returns its path.

        Args:
            path: of the picture; its folder is made.

        Raises:
            TargetError: nothing was compiled.
        """
        from tunekit.planning.comparison import plot

        return plot([self], path)


def _phase_json(phase: PhasePlan) -> dict[str, Any]:
    cost, time, known = phase.cost, phase.time, phase.counted
    return {
        "trains": known.label,
        "parameters": {"trained": known.trained, "frozen": known.frozen},
        "steps": known.steps,
        "state_bytes": dict(known.state),
        "device_bytes": phase.memory and {**phase.memory, "total": phase.total},
        "step": {
            "flops": phase.flops,
            "bytes_moved": cost and cost.bytes_accessed,
            "collectives": [dict(each) for each in cost.collectives] if cost else None,
            "seconds": time
            and {
                "lower": time.lower,
                "upper": time.upper,
                "compute": time.compute,
                "memory": time.memory,
                "links": time.links,
                "bound": time.bound,
            },
        },
        "compile_seconds": cost and cost.compile_seconds,
        "refusal": cost and cost.refusal,
    }
