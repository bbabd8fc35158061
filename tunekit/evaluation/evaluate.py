"""The model's outputs over a whole source, beside its labels, and their loss."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from tunekit.errors import DataError, ModelError
from tunekit.tasks.text_items import real_rows
from tunekit.tasks.text_task import Outputs, TextTask


def collect_logits(
    forward: Callable[[Any], Any], batches: Iterable[Mapping[str, Any]], column: str = "image"
) -> tuple[np.ndarray, np.ndarray]:
    """Returns float32 logits [N, C] and labels [N] (several labels: [N, C]), padding dropped.

    Args:
        forward: what is in the column, such as images [B, H, W, 3], to logits [B, C].
        batches: the column, "label" and "weight", in the order of the source; rows of weight 0 are
            padding.
        column: what the logits are made of.

    Raises:
        DataError: no batch came.
    """
    logits, labels = [], []
    for batch in batches:
        real = np.asarray(batch["weight"]) > 0
        logits.append(np.asarray(forward(batch[column]), np.float32)[real])
        labels.append(np.asarray(batch["label"])[real])
    if not logits:
        raise DataError("expected at least one example to evaluate on, got none")
    return np.concatenate(logits), np.concatenate(labels)


@dataclass(eq=False)
class Judging:
    """Goes through the batches of a task of texts, and sums its loss."""

    task: TextTask
    outputs: Outputs
    total: float = 0.0
    weight: float = 0.0

    def rows(
        self, batches: Iterable[Mapping[str, Any]]
    ) -> Iterator[tuple[dict[str, np.ndarray], np.ndarray]]:
        """Yields (columns, float32 outputs) of each row that is no padding."""
        for batch in batches:
            found = np.asarray(self.outputs(self.task.inputs(batch)), np.float32)
            losses, counted = self.task.loss(found, batch)
            self.total, self.weight = self.total + float(losses), self.weight + float(counted)
            yield from real_rows(batch, found)

    def loss(self) -> float:
        """Returns the mean loss of what has come.

        Raises:
            DataError: nothing that counts has come.
            ModelError: the loss is not finite.
        """
        if not self.weight:
            raise DataError("expected at least one example to evaluate on, got none")
        if not np.isfinite(self.total):
            raise ModelError(
                "the loss is not finite: the weights have diverged. Train again with a lower "
                "learning rate, or with clip_norm."
            )
        return self.total / self.weight
