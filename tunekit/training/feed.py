"""What the steps of one phase run on: batches, the forward pass from where they start, a judge."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import jax
import numpy as np

from tunekit.training.step import ForwardPass, Objective, Values

Evaluate = Callable[[Values], Mapping[str, Any]]


class TrainingBatches(Protocol):
    """Batches of one static shape, the same for the same epoch and step (``data.pipeline``)."""

    @property
    def steps_per_epoch(self) -> int:
        """Batches of one pass."""
        ...

    def epoch(self, epoch: int, start_step: int = 0) -> Iterator[dict[str, np.ndarray]]:
        """Returns the batches of a pass from `start_step` on."""
        ...


@dataclass(frozen=True, eq=False)
class Feed:
    """The data side of a phase, known before the phase begins but for the data themselves."""

    forward: ForwardPass
    """The model, or what follows its frozen part where batches hold that part's outputs."""
    objective: Objective
    columns: Mapping[str, jax.ShapeDtypeStruct]
    """Shape and dtype of a batch's columns."""
    steps_per_epoch: int
    open: Callable[[Values], TrainingBatches]
    """From every value of the model, when the phase begins, to its batches."""
    accumulate: int = 1
    """Micro-batches of an optimizer step."""
    evaluate: Evaluate | None = None
    """From every value of the model to validation metrics; `None` without validation data."""
    measure: ForwardPass | None = None
    """As `forward`, but statistics become the batch's own; `None` where none are measured."""
    start: str | None = None
    """The layer whose cached outputs the batches hold; `None`: they hold the model's inputs."""
    reason: str = ""
    """Why nothing is cached; "" where something is."""
    monitor: str = "accuracy"
    """The task's own metric of which weights are best."""
    program: Hashable = None
    """Equal for feeds whose steps are one program, the rest of the phase being equal."""
    other_columns: Sequence[Mapping[str, jax.ShapeDtypeStruct]] = ()
    """Shapes that batches may have besides `columns`, each with a program of its own."""
