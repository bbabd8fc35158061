"""Builders of plans in which the learning rate depends on the depth."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from annotated_types import Ge, Gt, Le

from tunekit.plans.phase import Epochs, Phase, Rate, Selector
from tunekit.plans.rates import depth_ranks, even_multipliers, layer_scales

if TYPE_CHECKING:
    from tunekit.models.depth import Group

_STRICT: dict[str, Any] = {"extra": "forbid", "use_attribute_docstrings": True}
Course = Literal["constant", "cosine", "linear", "one_cycle", "slanted_triangular"]


@dataclass(frozen=True)
class LayerDecay:
    """The rate falls by a factor from each block to the one before it; the head has all of it.

    Layer-wise decay of BEiT (Bao et al. 2022, https://arxiv.org/abs/2106.08254), with the ranks of
    timm's ``param_groups_layer_decay``: see `tunekit.plans.rates.depth_ranks`.

    Example:
        >>> LayerDecay(0.5).phases(groups)[0].multipliers
        {'stem': 0.125, 'blocks[0]': 0.25, 'blocks[1]': 0.5, 'top': 0.5}
    """

    __pydantic_config__: ClassVar[dict[str, Any]] = _STRICT

    factor: Annotated[float, Gt(0), Le(1)] = 0.75
    """Rate of a block by that of the next; 1 is the same everywhere."""
    epochs: Epochs = 10.0
    """Length in passes over the training data."""
    learning_rate: Rate = 1e-3
    """Highest learning rate, that of the head."""
    train: tuple[Selector, ...] | Selector | None = None
    """Selectors of what trains; null: what the method trains."""
    schedule: Course = "cosine"
    """Course of the learning rate after the warmup."""
    warmup: str = "10%"
    """Rise from zero to the learning rate: "5%" of the phase, "1 epoch" or "100 steps"."""
    early_stopping: Annotated[int, Ge(1)] | None = None
    """Evaluations without a better one that end the phase."""
    build: Literal["layer_decay"] = "layer_decay"
    """Says that the item is this builder."""

    def issues(self) -> list[tuple[str, str]]:
        """Returns (field, message) for each combination that cannot be trained."""
        return self._phase({}).issues()

    def phases(self, groups: Sequence[Group]) -> tuple[Phase, ...]:
        """Returns one phase, with a multiplier for each group."""
        scales = layer_scales(self.factor, _rank_count(groups))
        return (self._phase(_by_group(groups, scales)),)

    def _phase(self, multipliers: dict[str, float]) -> Phase:
        return Phase(
            train=self.train,
            epochs=self.epochs,
            learning_rate=self.learning_rate,
            multipliers=multipliers,
            schedule=self.schedule,
            warmup=self.warmup,
            early_stopping=self.early_stopping,
        )


@dataclass(frozen=True)
class Discriminative:
    """The rate rises with the depth from `lo` to `hi`, by the same factor from block to block.

    fastai's ``slice(lo, hi)``; without `lo` its ``slice(hi)``, a tenth of `hi` for all but the
    head. Its parameter groups are our depth ranks. ``finetune(learning_rate=slice(lo, hi))`` says
    the same.
    """

    __pydantic_config__: ClassVar[dict[str, Any]] = _STRICT

    lo: Rate | None = None
    """Highest learning rate of the stem; null: a tenth of `hi`, and so for every block."""
    hi: Rate = 1e-3
    """Highest learning rate of the head."""
    epochs: Epochs = 10.0
    """Length in passes over the training data."""
    train: tuple[Selector, ...] | Selector | None = None
    """Selectors of what trains; null: what the method trains."""
    schedule: Course = "cosine"
    """Course of the learning rate after the warmup."""
    warmup: str = "10%"
    """Rise from zero to the learning rate: "5%" of the phase, "1 epoch" or "100 steps"."""
    early_stopping: Annotated[int, Ge(1)] | None = None
    """Evaluations without a better one that end the phase."""
    build: Literal["discriminative"] = "discriminative"
    """Says that the item is this builder."""

    def issues(self) -> list[tuple[str, str]]:
        """Returns (field, message) for each combination that cannot be trained."""
        found = self._phase({}).issues()
        if self.lo is not None and self.lo > self.hi:
            message = f"expected at most hi, {self.hi:g}, got {self.lo:g}; swap them."
            found.append(("lo", message))
        return found

    def phases(self, groups: Sequence[Group]) -> tuple[Phase, ...]:
        """Returns one phase, with a multiplier for each group."""
        count = _rank_count(groups)
        if self.lo is None:
            rates = [self.hi / 10] * (count - 1) + [self.hi]
        else:
            rates = even_multipliers(self.lo, self.hi, count)
        return (self._phase(_by_group(groups, [rate / self.hi for rate in rates])),)

    def _phase(self, multipliers: dict[str, float]) -> Phase:
        return Phase(
            train=self.train,
            epochs=self.epochs,
            learning_rate=self.hi,
            multipliers=multipliers,
            schedule=self.schedule,
            warmup=self.warmup,
            early_stopping=self.early_stopping,
        )


def _rank_count(groups: Sequence[Group]) -> int:
    return sum(group.kind == "block" for group in groups) + 2


def _by_group(groups: Sequence[Group], factors: Sequence[float]) -> dict[str, float]:
    """Factors by rank as multipliers by selector; the head's is 1 and goes without saying."""
    ranks = depth_ranks(groups)
    body = [group.name for group in groups if group.weights and group.kind != "head"]
    return {name: factors[ranks[name]] for name in body}
