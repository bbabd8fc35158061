"""Why a step was compiled that nobody expected: which column of the batch is another one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

Columns = Mapping[str, Any]
"""Arrays, or their shapes, by the name of the column."""


@dataclass(frozen=True)
class Unexpected:
    """A program for a batch of a shape that its phase was not said to have."""

    phase: int
    step: int
    """Of the phase, counted from 0."""
    changes: tuple[str, ...]
    """Each column that is another one: what it is, and what was expected."""
    seconds: float
    """That the run stood still for it."""

    def line(self) -> str:
        """Returns what happened, what it cost and what to do, in one line."""
        return (
            f"step {self.step} of phase {self.phase + 1} was compiled anew in {self.seconds:.1f} s,"
            f" for {'; '.join(self.changes)}. Batches of one shape need one program: fill up short "
            "ones with rows of weight 0, and keep each column in one dtype."
        )

    def to_json(self) -> dict[str, Any]:
        """Returns the fields as JSON values."""
        return {**asdict(self), "changes": list(self.changes)}


def changes(batch: Columns, expected: Sequence[Columns]) -> tuple[str, ...]:
    """Returns how `batch` differs from the likest of the `expected`; empty where it is one of them.

    Example:
        >>> changes({"x": np.zeros((7, 4))}, [{"x": np.zeros((8, 4))}])
        ("column 'x' is float64[7, 4], expected float64[8, 4]",)
    """
    return min((_differences(batch, one) for one in expected), key=len)


def _differences(batch: Columns, expected: Columns) -> tuple[str, ...]:
    found = []
    for name in sorted({*batch, *expected}):
        if name not in expected:
            found.append(f"column '{name}' ({_shape(batch[name])}) is new")
        elif name not in batch:
            found.append(f"column '{name}' ({_shape(expected[name])}) is missing")
        elif _shape(batch[name]) != _shape(expected[name]):
            is_now, was = _shape(batch[name]), _shape(expected[name])
            found.append(f"column '{name}' is {is_now}, expected {was}")
    return tuple(found)


def _shape(column: Any) -> str:
    return f"{column.dtype}{list(column.shape)}"
