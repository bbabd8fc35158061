"""One phase of a plan, as a recipe says it: what trains, at which rate, until when."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from annotated_types import Ge, Gt, MinLen

from tunekit.durations import Duration

Schedule = Literal["constant", "cosine", "linear", "one_cycle"]
Selector = Annotated[str, MinLen(1)]


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
    epochs: Annotated[float, Gt(0)] | None = None
    """Length in passes over the training data; or give steps."""
    steps: Annotated[int, Gt(0)] | None = None
    """Length in optimizer steps; or give epochs."""
    learning_rate: Annotated[float, Gt(0)] = 1e-3
    """Highest learning rate of the phase."""
    schedule: Schedule = "cosine"
    """Course of the learning rate after the warmup."""
    warmup: str = "5%"
    """Rise from zero to the learning rate: "5%" of the phase, "1 epoch" or "100 steps"."""
    early_stopping: Annotated[int, Ge(1)] | None = None
    """Ends the phase after this many evaluations without a better result; null: never."""

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
        found.extend(("warmup", message) for message in self._warmup_issues())
        return found

    def _warmup_issues(self) -> list[str]:
        try:
            warmup = Duration.parse(self.warmup)
        except ValueError as error:
            return [str(error)]
        length = {"%": 100, "epochs": self.epochs, "steps": self.steps}[warmup.unit]
        if length is None or warmup.amount < length:
            return []
        whole = "the phase" if warmup.unit == "%" else f"the phase of {length:g} {warmup.unit}"
        return [f"{warmup} leaves nothing of {whole} after it; choose a shorter warmup."]
