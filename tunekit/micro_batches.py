"""`accumulate: auto` made a number: the fewest micro-batches whose step fits the device."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import jax

from tunekit.data.spec import BatchSpec
from tunekit.errors import TrainingError
from tunekit.plans.phase import Phase
from tunekit.recipe import Recipe
from tunekit.training import accumulation
from tunekit.training.trainer import Trainer


@dataclass(frozen=True)
class Chosen:
    """The recipe with numbers, and why these."""

    recipe: Recipe
    count: int
    """Micro-batches of a step, where the recipe says auto."""
    tried: dict[int, int | None]
    """Bytes of a device that the largest step takes, by the numbers tried; `None`: refused."""
    limit: int
    """Bytes that it may take."""

    def line(self) -> str:
        """Returns the choice in one line."""
        size = self.recipe.batch.size
        needed = self.tried[self.count]
        told = "" if needed is None else f": {needed / 1e9:.2f} of {self.limit / 1e9:.2f} GB"
        return (
            f"accumulate: auto is {self.count}, micro-batches of {size // self.count} examples"
            f"{told}"
        )


def is_auto(recipe: Recipe) -> bool:
    """Returns whether the recipe leaves a number of micro-batches open."""
    return any(batch.accumulate == "auto" for batch in _batches(recipe))


def with_micro_batches(recipe: Recipe, count: int) -> Recipe:
    """Returns the recipe with `count` micro-batches where it says auto."""

    def numbered(batch: BatchSpec | None) -> BatchSpec | None:
        if batch is None or batch.accumulate != "auto":
            return batch
        return replace(batch, accumulate=count)

    plan = tuple(
        replace(item, batch=numbered(item.batch)) if isinstance(item, Phase) else item
        for item in recipe.plan
    )
    return recipe.model_copy(update={"batch": numbered(recipe.batch), "plan": plan})


def chosen(recipe: Recipe, shards: int, trainer_of: Callable[[Recipe], Trainer]) -> Chosen:
    """Returns the recipe with the fewest micro-batches in which every phase's step fits.

    Each number tried is compiled; the one chosen is found again in the cache of programs.

    Args:
        recipe: with `accumulate: auto`.
        shards: devices that share a micro-batch.
        trainer_of: what trains a recipe with numbers.

    Raises:
        TrainingError: not even single examples fit.
    """
    sizes = [batch.size for batch in _batches(recipe) if batch.accumulate == "auto"]
    counts = [
        count
        for count in accumulation.micro_batch_counts(min(sizes), shards)
        if all(size % (count * shards) == 0 for size in sizes)
    ]
    tried: dict[int, int | None] = {}
    limits: list[int] = []

    def fits(count: int) -> bool:
        trainer = trainer_of(with_micro_batches(recipe, count))
        tried[count] = _largest_step(trainer)
        held = sum(value.nbytes for value in trainer.forward.values().values())
        limits.append(accumulation.device_bytes(held))
        needed = tried[count]
        return needed is not None and needed <= limits[-1]

    count = accumulation.fewest(counts, fits)
    if count is None:
        needed = tried[counts[-1]] if counts else None
        told = "it is refused" if needed is None else f"it needs {needed / 1e9:.2f} GB"
        raise TrainingError(
            f"batch.accumulate: auto finds no number of micro-batches whose step fits: in "
            f"{counts[-1] if counts else shards} of them {told}, and a device has "
            f"{(limits or [0])[-1] / 1e9:.2f} GB for it. Choose runtime.remat: blocks, a method "
            "that trains less, a smaller backbone.dtype, or more devices (runtime.mesh: fsdp)."
        )
    return Chosen(with_micro_batches(recipe, count), count, tried, limits[-1])


def _largest_step(trainer: Trainer) -> int | None:
    """Bytes of the phase that takes most; `None` where XLA refuses one for want of memory."""
    found = []
    for index in range(len(trainer.phases)):
        try:
            program = trainer.programs.lowered(index).compile()
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            return None
        found.append(accumulation.step_bytes(program) or 0)
    return max(found)


def _batches(recipe: Recipe) -> list[BatchSpec]:
    phases: Any = (item.batch for item in recipe.plan if isinstance(item, Phase))
    return [recipe.batch, *(batch for batch in phases if batch is not None)]
