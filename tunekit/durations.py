"""Lengths of training: epochs, optimizer steps, or a share of a whole; converted to steps once."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Literal

Unit = Literal["epochs", "steps", "%"]

_FORM = re.compile(r"\s*(\d+(?:\.\d+)?)\s*(epochs?|steps?|%)\s*")


@dataclass(frozen=True)
class Duration:
    """A length of training.

    Example:
        >>> Duration.parse("3 epochs").to_steps(steps_per_epoch=50)
        150
        >>> Duration.parse("10%").to_steps(steps_per_epoch=50, total_steps=150)
        15
    """

    amount: float
    unit: Unit

    @classmethod
    def parse(cls, text: str) -> Duration:
        """Returns the duration that `text` says: ``3 epochs``, ``500 steps`` or ``10%``.

        Raises:
            ValueError: `text` is none of these.
        """
        match = _FORM.fullmatch(text) if isinstance(text, str) else None
        if match is None:
            raise ValueError(
                f"expected a duration such as '3 epochs', '500 steps' or '10%', got {text!r}"
            )
        unit = match.group(2)
        return cls(float(match.group(1)), "%" if unit == "%" else _plural(unit))

    def to_steps(self, steps_per_epoch: int, total_steps: int | None = None) -> int:
        """Returns the optimizer steps of this duration, rounded up.

        Args:
            steps_per_epoch: optimizer steps of one epoch.
            total_steps: what a percentage is a share of.

        Raises:
            ValueError: the duration is a percentage and `total_steps` is `None`.
        """
        if self.unit == "steps":
            return math.ceil(self.amount)
        if self.unit == "epochs":
            return math.ceil(self.amount * steps_per_epoch)
        if total_steps is None:
            raise ValueError(f"{self} needs a whole of which it is a share")
        return math.ceil(self.amount / 100 * total_steps)

    def __str__(self) -> str:
        """Returns the text that `parse` reads back."""
        if self.unit == "%":
            return f"{self.amount:g}%"
        return f"{self.amount:g} {self.unit if self.amount != 1 else self.unit[:-1]}"


def _plural(unit: str) -> Unit:
    return "epochs" if unit.startswith("epoch") else "steps"
