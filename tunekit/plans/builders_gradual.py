"""Builders of plans that thaw, and freeze again, portion by portion of the network's depth."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from annotated_types import Ge

from tunekit.plans.phase import Epochs, Phase, Rate

if TYPE_CHECKING:
    from tunekit.models.depth import Group

_STRICT: dict[str, Any] = {"extra": "forbid", "use_attribute_docstrings": True}
Count = Annotated[int, Ge(1)]


@dataclass(frozen=True)
class GradualUnfreeze:
    """The head first; then portion after portion of the network joins it, to the last.

    Howard & Ruder 2018, https://arxiv.org/abs/1801.06146, section 3.3, there top down, one layer
    after the other.

    Example:
        >>> [phase.train for phase in GradualUnfreeze(portions=2).phases(groups)]
        ['head', ('head', 'blocks[2:4]', 'top'), 'all']
    """

    __pydantic_config__: ClassVar[dict[str, Any]] = _STRICT

    epochs: Epochs = 10.0
    """Length of the whole in passes over the training data; every phase has an equal share."""
    learning_rate: Rate = 3e-4
    """Highest learning rate of each phase in which the backbone trains."""
    head_learning_rate: Rate = 1e-3
    """Highest learning rate of the head alone."""
    direction: Literal["top_down", "bottom_up"] = "top_down"
    """Which end of the backbone thaws first: the one at the head, or the one at the input."""
    portions: Count | None = 3
    """Nearly equal parts in which the backbone thaws; null: one block at a time."""
    schedule: Literal["constant", "cosine", "linear", "one_cycle"] = "cosine"
    """Course of the learning rate in each phase."""
    early_stopping: Count | None = None
    """Evaluations without a better one that end a phase."""
    build: Literal["gradual_unfreeze"] = "gradual_unfreeze"
    """Says that the item is this builder."""

    def phases(self, groups: Sequence[Group]) -> tuple[Phase, ...]:
        """Returns the phase of the head, and one for each portion."""
        units = _units(groups)
        cuts = _cuts(len(units), self.portions)
        trains: list[str | tuple[str, ...]] = ["head"]
        if self.direction == "top_down":
            trains += [("head", *_selectors(units[cut:])) for cut in cuts[-2:0:-1]]
        else:
            trains += [("head", *_selectors(units[:cut])) for cut in cuts[1:-1]]
        rates = [self.head_learning_rate] + [self.learning_rate] * len(trains)
        return tuple(
            Phase(
                train=train,
                epochs=self.epochs / (len(trains) + 1),
                learning_rate=rate,
                schedule=self.schedule,
                early_stopping=self.early_stopping,
            )
            for train, rate in zip([*trains, "all"], rates, strict=True)
        )


@dataclass(frozen=True)
class ChainThaw:
    """The head alone; then every portion alone, from the input upwards; then everything.

    Felbo et al. 2017 (DeepMoji), https://arxiv.org/abs/1708.00524, section 3.3, there a layer at a
    time and each to convergence, with these two rates.
    """

    __pydantic_config__: ClassVar[dict[str, Any]] = _STRICT

    epochs: Epochs = 10.0
    """Length of the whole in passes over the training data; every phase has an equal share."""
    learning_rate: Rate = 1e-4
    """Highest learning rate of every phase but the first."""
    head_learning_rate: Rate = 1e-3
    """Highest learning rate of the head alone."""
    portions: Count | None = 4
    """Nearly equal parts in which the backbone trains; null: one block at a time."""
    early_stopping: Count | None = None
    """Evaluations without a better one that end a phase."""
    build: Literal["chain_thaw"] = "chain_thaw"
    """Says that the item is this builder."""

    def phases(self, groups: Sequence[Group]) -> tuple[Phase, ...]:
        """Returns the phase of the head, one for each portion, and that of everything."""
        chain = [("head",), *_portions(groups, self.portions), ("all",)]
        return tuple(
            Phase(
                train=train,
                epochs=self.epochs / len(chain),
                learning_rate=self.learning_rate if index else self.head_learning_rate,
                early_stopping=self.early_stopping,
            )
            for index, train in enumerate(chain)
        )


@dataclass(frozen=True)
class Ulmfit:
    """ULMFiT: gradual unfreezing, rates that fall with depth, one slanted triangle over it all.

    Howard & Ruder 2018, https://arxiv.org/abs/1801.06146, section 3: the rate of a layer is that of
    the next by 2.6; layers thaw from the last on; T of equation 3 is every step of the training. A
    layer is a portion here: 2.6 for each of many blocks would leave the first ones frozen.
    """

    __pydantic_config__: ClassVar[dict[str, Any]] = _STRICT

    epochs: Epochs = 10.0
    """Length of the whole in passes over the training data; every phase has an equal share."""
    learning_rate: Rate = 1e-3
    """Highest learning rate, that of the head."""
    factor: Annotated[float, Ge(1)] = 2.6
    """Rate of a portion by that of the one below it."""
    portions: Count = 3
    """Nearly equal parts in which the backbone thaws."""
    build: Literal["ulmfit"] = "ulmfit"
    """Says that the item is this builder."""

    def phases(self, groups: Sequence[Group]) -> tuple[Phase, ...]:
        """Returns the phase of the head, and one for each portion."""
        portions = _portions(groups, self.portions)
        below = {
            selector: self.factor ** (index - len(portions))
            for index, portion in enumerate(portions)
            for selector in portion
        }
        gradual = GradualUnfreeze(self.epochs, portions=self.portions).phases(groups)
        return tuple(
            Phase(
                train=phase.train,
                epochs=phase.epochs,
                learning_rate=self.learning_rate,
                multipliers=below if index else {},
                schedule="continue" if index else "slanted_triangular",
            )
            for index, phase in enumerate(gradual)
        )


@dataclass(frozen=True)
class Alternating:
    """The head and the backbone train in turn, one resting while the other moves.

    Block coordinate descent (Tseng 2001, https://doi.org/10.1023/A:1017501703105) over the two. All
    turns share one course of the learning rate.
    """

    __pydantic_config__: ClassVar[dict[str, Any]] = _STRICT

    epochs: Epochs = 10.0
    """Length of the whole in passes over the training data; every turn has an equal share."""
    learning_rate: Rate = 2e-4
    """Highest learning rate of the backbone."""
    head_learning_rate: Rate = 1e-3
    """Highest learning rate of the head."""
    rounds: Count = 3
    """How often each of them has its turn."""
    build: Literal["alternating"] = "alternating"
    """Says that the item is this builder."""

    def phases(self, groups: Sequence[Group]) -> tuple[Phase, ...]:
        """Returns two phases a round: the head, and the backbone."""
        turns = [("head", self.head_learning_rate), ("backbone", self.learning_rate)]
        return tuple(
            Phase(
                train=train,
                epochs=self.epochs / (2 * self.rounds),
                learning_rate=rate,
                schedule="continue" if index else "cosine",
            )
            for index, (train, rate) in enumerate(turns * self.rounds)
        )


def _units(groups: Sequence[Group]) -> list[tuple[str, ...]]:
    """What thaws at once, from the input on: the stem, each block, the top with the last block."""
    units: list[tuple[str, ...]] = []
    for group in groups:
        if group.kind == "head" or not group.weights:
            continue
        if group.kind == "top" and units:
            units[-1] = (*units[-1], group.name)
        else:
            units.append((group.name,))
    return units


def _cuts(length: int, portions: int | None) -> list[int]:
    """Where nearly equal portions of `length` units begin, and where the last one ends."""
    count = max(1, min(portions or length, length))
    return [length * index // count for index in range(count + 1)]


def _portions(groups: Sequence[Group], portions: int | None) -> list[tuple[str, ...]]:
    """The selectors of each portion of the backbone, from the input on."""
    units = _units(groups)
    cuts = _cuts(len(units), portions)
    return [_selectors(units[a:b]) for a, b in zip(cuts, cuts[1:], strict=False)]


def _selectors(units: Sequence[tuple[str, ...]]) -> tuple[str, ...]:
    """The names of consecutive units, their blocks as one range."""
    names = [name for unit in units for name in unit]
    blocks = [name for name in names if name.startswith("blocks[")]
    if len(blocks) > 1:
        first, last = (int(name[len("blocks[") : -1]) for name in (blocks[0], blocks[-1]))
        names[names.index(blocks[0])] = f"blocks[{first}:{last + 1}]"
    return tuple(name for name in names if name not in blocks or len(blocks) == 1)
