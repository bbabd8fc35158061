"""Divides examples by chance so that every label keeps its share."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def draw(labels: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Returns the sorted indices of `count` examples that keep each label's share.

    Every label is represented while `count` allows it.

    Args:
        labels: int [N] or multi-hot [N, C].
        count: how many to keep, at most N.
        seed: fixes the draw.
    """
    rng = np.random.default_rng(seed)
    stratum = strata(labels)
    rank = np.empty(len(labels))
    for value in np.unique(stratum):
        members = rng.permutation(np.flatnonzero(stratum == value))
        rank[members] = np.arange(len(members)) / len(members)
    tie = rng.random(len(labels))
    return np.sort(np.lexsort((tie, rank))[:count])


def split(
    labels: np.ndarray, digests: Sequence[str] | np.ndarray, fraction: float, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the sorted indices of a training and of a held-out part.

    Each label gives the held-out part its fraction, at least one example and never all; a label
    with one example stays in training. Examples of one digest stay together, so that no copy of a
    training example is validated on.

    Args:
        labels: int [N] or multi-hot [N, C].
        digests: content hash of each example.
        fraction: share to hold out, in (0, 1).
        seed: fixes the split.
    """
    rng = np.random.default_rng(seed)
    _, first, group, size = np.unique(
        np.asarray(digests), return_index=True, return_inverse=True, return_counts=True
    )
    # Copies under other labels follow the first one's stratum.
    stratum = strata(labels)[first][group]
    appearance = np.argsort(first)
    chosen = np.zeros(len(first), bool)
    for value in np.unique(stratum):
        members = appearance[stratum[first[appearance]] == value]
        total = int(size[members].sum())
        wanted = min(max(round(fraction * total), 1), total - 1)
        drawn = members[rng.permutation(len(members))[:-1]]
        chosen[drawn[np.cumsum(size[drawn]) - size[drawn] < wanted]] = True
    held_out = chosen[group]
    if labels.ndim == 2:
        for column in labels.T > 0:
            if column.any() and not column[~held_out].any():
                held_out[stratum == stratum[column.argmax()]] = False
    return np.flatnonzero(~held_out), np.flatnonzero(held_out)


def strata(labels: np.ndarray) -> np.ndarray:
    """Returns the group of each example: its label, or its rarest one where it has several."""
    if labels.ndim == 1:
        return labels
    frequency = labels.sum(axis=0)
    return np.where(labels > 0, frequency, np.inf).argmin(axis=1) + labels.shape[1] * (
        labels.sum(axis=1) == 0
    )
