"""The model's logits over a whole source, beside its labels."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from tunekit.errors import DataError


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
