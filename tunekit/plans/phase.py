"""One phase of a plan, as a recipe says it: what trains, at which rate, until when."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal

from annotated_types import Ge, Gt, Lt, MinLen

from tunekit.data.spec import AugmentSpec, BatchSpec
from tunekit.durations import Duration
from tunekit.plans.optimizer import OptimizerSpec

Schedule = Literal["constant", "cosine", "linear", "one_cycle", "slanted_triangular", "continue"]
BatchNormPolicy = Literal["follow", "frozen", "running", "reestimated"]
Selector = Annotated[str, MinLen(1)]
Rate = Annotated[float, Gt(0)]
Epochs = Annotated[float, Gt(0)]


@dataclass(frozen=True)
class Phase:
    """A stretch of training with one choice of what trains.

    Example:
        >>> Phase(train=("head", "last 2"), epochs=3, learning_rate=1e-4).issues()
        []
    """

    __pydantic_config__: ClassVar[dict[str, Any]] = {
        "extra": "forbid",
        "use_attribute_docstrings": True,
    }

    train: tuple[Selector, ...] | Selector | None = None
    """Selectors such as head, all, "last 2", or patterns of names; null: what the method trains."""
    epochs: Epochs | None = None
    """Length in passes over the training data; or give steps."""
    steps: Annotated[int, Gt(0)] | None = None
    """Length in optimizer steps; or give epochs."""
    learning_rate: Rate = 1e-3
    """Highest learning rate of the phase."""
    multipliers: dict[Selector, Annotated[float, Gt(0)]] = field(default_factory=dict, hash=False)
    """Factors of the learning rate by selector; the first that selects a variable counts."""
    schedule: Schedule = "cosine"
    """Course of the learning rate after the warmup; continue: goes on with the phase before."""
    warmup: str = "5%"
    """Rise to the rate: "5%", "1 epoch" or "100 steps"; cycle and triangle have their own."""
    early_stopping: Annotated[int, Ge(1)] | None = None
    """Evaluations without a better one that end the phase, which then hands on its best weights."""
    optimizer: OptimizerSpec | None = None
    """The optimizer of this phase; null: that of the recipe."""
    augment: AugmentSpec | None = None
    """How its images are varied; null: as the recipe says."""
    batch: BatchSpec | None = None
    """How its examples become batches; null: as the recipe says."""
    batch_norm: BatchNormPolicy = "follow"
    """Statistics move where a norm trains; nowhere; everywhere; or are first measured anew."""
    frozen_dropout: bool = False
    """Whether dropout and stochastic depth act in parts where nothing trains."""
    l2_sp: Annotated[float, Ge(0)] = 0.0
    """Pull of the backbone's weights towards their values before training (L2-SP); 0 is none."""
    mixout: Annotated[float, Ge(0), Lt(1)] = 0.0
    """Probability that a backbone's weight is its value before training for a step (mixout)."""

    def issues(self) -> list[tuple[str, str]]:
        """Returns (field, message) for each combination that cannot be trained."""
        found: list[tuple[str, str]] = []
        if self.epochs is None and self.steps is None:
            found.append(("epochs", "expected a length: give epochs, or steps."))
        if self.epochs is not None and self.steps is not None:
            message = f"epochs is {self.epochs:g} too, and a phase has one length; leave one out."
            found.append(("steps", message))
        if self.train == ():
            found.append(("train", "names nothing; give a selector such as head, or null."))
        if self.train in ("head", ("head",)):
            message = "acts on the backbone's weights, and only the head trains; leave it out."
            found += [(name, message) for name in ("l2_sp", "mixout") if getattr(self, name)]
        found.extend(("warmup", message) for message in self._warmup_issues())
        return found

    def _warmup_issues(self) -> list[str]:
        try:
            warmup = Duration.parse(self.warmup)
        except ValueError as error:
            return [str(error)]
        if self.schedule in ("one_cycle", "slanted_triangular", "continue"):
            return []
        length = {"%": 100, "epochs": self.epochs, "steps": self.steps}[warmup.unit]
        if length is None or warmup.amount < length:
            return []
        whole = "the phase" if warmup.unit == "%" else f"the phase of {length:g} {warmup.unit}"
        return [f"{warmup} leaves nothing of {whole} after it; choose a shorter warmup."]
