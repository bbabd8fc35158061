"""Builders of plans that train a part of the network: the head, one block, biases, norms."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from tunekit.errors import SelectionError
from tunekit.models.selection import BIASES
from tunekit.plans.phase import Epochs, Phase, Rate

if TYPE_CHECKING:
    from tunekit.models.depth import Group

_STRICT: dict[str, Any] = {"extra": "forbid", "use_attribute_docstrings": True}


@dataclass(frozen=True)
class HeadOnly:
    """The head trains on a network that rests: linear probing.

    Example:
        >>> HeadOnly(epochs=3).phases(groups=())[0].train
        'head'
    """

    __pydantic_config__: ClassVar[dict[str, Any]] = _STRICT

    epochs: Epochs = 10.0
    """Length in passes over the training data."""
    learning_rate: Rate = 1e-3
    """Highest learning rate."""
    build: Literal["head_only"] = "head_only"
    """Says that the item is this builder."""

    def phases(self, groups: Sequence[Group]) -> tuple[Phase, ...]:
        """Returns one phase."""
        return (Phase("head", epochs=self.epochs, learning_rate=self.learning_rate),)


@dataclass(frozen=True)
class LpFt:
    """The head first, then everything at a lower rate.

    Linear probing, then fine-tuning: a fitted head does not distort the pretrained features. Kumar
    et al. 2022, https://arxiv.org/abs/2202.10054.
    """

    __pydantic_config__: ClassVar[dict[str, Any]] = _STRICT

    epochs: Epochs = 10.0
    """Length of both phases in passes over the training data."""
    head_epochs: Epochs = 3.0
    """How many of them train the head alone."""
    learning_rate: Rate = 2e-4
    """Highest learning rate once everything trains."""
    head_learning_rate: Rate = 1e-3
    """Highest learning rate of the head alone."""
    build: Literal["lp_ft"] = "lp_ft"
    """Says that the item is this builder."""

    def issues(self) -> list[tuple[str, str]]:
        """Returns (field, message) where nothing is left of the second phase."""
        if self.head_epochs < self.epochs:
            return []
        message = (
            f"expected fewer than the {self.epochs:g} epochs of the whole, "
            f"got {self.head_epochs:g}; lower it, or raise epochs."
        )
        return [("head_epochs", message)]

    def phases(self, groups: Sequence[Group]) -> tuple[Phase, ...]:
        """Returns the phase of the head and that of everything."""
        rest = self.epochs - self.head_epochs
        return (
            Phase("head", epochs=self.head_epochs, learning_rate=self.head_learning_rate),
            Phase("all", epochs=rest, learning_rate=self.learning_rate, warmup="10%"),
        )


@dataclass(frozen=True)
class Surgical:
    """One block trains with the head, wherever in the network it is.

    Early blocks suit a change of the input, late ones a change of the labels. Lee et al. 2023,
    "Surgical fine-tuning", https://arxiv.org/abs/2210.11466; there the labels stay and the head
    rests, here the head is fresh.
    """

    __pydantic_config__: ClassVar[dict[str, Any]] = _STRICT

    block: int
    """Which one, counted as in Python: 0 is the first block, -1 the last."""
    epochs: Epochs = 10.0
    """Length in passes over the training data."""
    learning_rate: Rate = 5e-4
    """Highest learning rate."""
    build: Literal["surgical"] = "surgical"
    """Says that the item is this builder."""

    def phases(self, groups: Sequence[Group]) -> tuple[Phase, ...]:
        """Returns one phase.

        Raises:
            SelectionError: the backbone has no such block.
        """
        count = sum(group.kind == "block" for group in groups)
        if not -count <= self.block < count:
            raise SelectionError(
                f"block: the backbone has {count} blocks, 0 to {count - 1} or -{count} to -1; "
                f"got {self.block}. `tunekit layers MODEL` lists them."
            )
        train = ("head", f"blocks[{self.block}]")
        return (Phase(train, epochs=self.epochs, learning_rate=self.learning_rate),)


@dataclass(frozen=True)
class BitFit:
    """The biases train with the head, those of the norms among them.

    Ben Zaken et al. 2022, https://arxiv.org/abs/2106.10199.
    """

    __pydantic_config__: ClassVar[dict[str, Any]] = _STRICT

    epochs: Epochs = 10.0
    """Length in passes over the training data."""
    learning_rate: Rate = 2e-3
    """Highest learning rate; biases bear more than kernels."""
    build: Literal["bit_fit"] = "bit_fit"
    """Says that the item is this builder."""

    def phases(self, groups: Sequence[Group]) -> tuple[Phase, ...]:
        """Returns one phase.

        Raises:
            SelectionError: the backbone has no bias at all.
        """
        weights = [name for group in groups if group.kind != "head" for name in group.weights]
        if not any(name.endswith(BIASES) for name in weights):
            raise SelectionError(
                "build: bit_fit trains biases, and this backbone has none; choose norm_only or "
                "layer_decay."
            )
        train = ("head", "bias")
        return (Phase(train, epochs=self.epochs, learning_rate=self.learning_rate),)


@dataclass(frozen=True)
class NormOnly:
    """The scales and shifts of the norms train with the head.

    Frankle et al. 2021, "Training BatchNorm and only BatchNorm", https://arxiv.org/abs/2003.00152.
    """

    __pydantic_config__: ClassVar[dict[str, Any]] = _STRICT

    epochs: Epochs = 10.0
    """Length in passes over the training data."""
    learning_rate: Rate = 2e-3
    """Highest learning rate; norms bear more than kernels."""
    build: Literal["norm_only"] = "norm_only"
    """Says that the item is this builder."""

    def phases(self, groups: Sequence[Group]) -> tuple[Phase, ...]:
        """Returns one phase."""
        train = ("head", "norm")
        return (Phase(train, epochs=self.epochs, learning_rate=self.learning_rate),)
