"""What a recipe says of the method: what is attached to the model, and what of it may train."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from annotated_types import MinLen

MethodName = Literal["full", "head"]
Selector = Annotated[str, MinLen(1)]

_MAY_TRAIN: dict[MethodName, tuple[str, ...]] = {"full": ("all",), "head": ("head",)}
_LEARNING_RATES: dict[MethodName, float] = {"full": 3e-4, "head": 1e-3}


@dataclass(frozen=True)
class MethodSpec:
    """Which part of the model may train, and with what attached to it."""

    __pydantic_config__: ClassVar[dict[str, Any]] = {
        "extra": "forbid",
        "use_attribute_docstrings": True,
    }

    name: MethodName = "full"
    """full: any variable may train; head: only the new head's."""

    @property
    def train(self) -> tuple[str, ...]:
        """The selectors of a phase that names none."""
        return _MAY_TRAIN[self.name]

    @property
    def learning_rate(self) -> float:
        """The peak rate where none is given: fresh heads bear more than pretrained weights."""
        return _LEARNING_RATES[self.name]

    def refusal(self, selector: str) -> str | None:
        """Returns why this method cannot train what `selector` names, or `None` where it can."""
        if self.name == "full" or selector.strip().startswith(("head", "!", "none")):
            return None
        return (
            f"{selector!r} reaches beyond the head, and method 'head' trains nothing else; "
            "set method.name: full, or train: head."
        )
