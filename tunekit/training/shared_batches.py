"""Batches that several processes read together: each its own rows, of one length for all."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from tunekit.distributed import gathered
from tunekit.training.feed import Feed, TrainingBatches
from tunekit.training.layout import Layout
from tunekit.training.step import Values


@dataclass(frozen=True)
class SharedBatches:
    """Batches of a phase, of which this process reads its rows; all of them where it is alone."""

    batches: Any
    """`TrainingBatches`, of these rows."""
    share: float = 1.0
    """Of a batch's rows, those that are read here."""

    @property
    def steps_per_epoch(self) -> int:
        """Batches of one pass."""
        return self.batches.steps_per_epoch

    def epoch(self, epoch: int, start_step: int = 0) -> Iterator[dict[str, np.ndarray]]:
        """Yields the batches of a pass from `start_step` on, as all processes at once ask for them.

        Texts are padded to the length that the longest of the whole batch needs, whoever reads it.
        """
        padded = getattr(self.batches, "padded", None)
        for batch in self.batches.epoch(epoch, start_step):
            if self.share < 1 and padded is not None:
                # Of the sockets between the processes: asked of the devices, it would wait for the
                # step that they are busy with.
                lengths = gathered(batch["padding_mask"].shape[-1], "length of a batch")
                batch = padded(batch, max(lengths))
            yield batch

    def examples(self, batch: dict[str, np.ndarray]) -> float:
        """Returns about how many examples a batch has in all processes, by those that are here."""
        return float(batch["weight"].sum()) / self.share

    def total(self, examples: float) -> float:
        """Returns how many examples a pass had, from what `examples` said of its batches."""
        everyone = gathered(examples, "examples of a pass")
        return sum(everyone) / len(everyone)


def open_shared(feed: Feed, values: Values, layout: Layout | None) -> SharedBatches:
    """Returns the batches of a phase as the processes of the run read them.

    Args:
        feed: of the phase.
        values: every value of the model.
        layout: where its arrays lie; `None` is one device.
    """
    batches: TrainingBatches = feed.open(values)
    size = next(iter(feed.columns.values())).shape[0]
    rows = None if layout is None else layout.rows(size)
    if rows is None:
        return SharedBatches(batches)
    own: Any = batches
    return SharedBatches(own.of_rows(rows), share=len(rows) / size)
