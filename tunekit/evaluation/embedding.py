"""How well vectors of texts say which of them mean the same, and a classifier on such vectors."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np
from scipy.special import logsumexp
from scipy.stats import pearsonr, spearmanr

from tunekit.errors import DataError
from tunekit.tasks.embedding import EmbeddingTask
from tunekit.tasks.text_task import Outputs

_CHUNK = 512
"""First texts that are compared with all others at a time."""
_TIE = 1e-9
"""Cosines this near are the same: their sums may be rounded apart."""
_UNIFORMITY_TEXTS = 2048
_SAME_FROM = 0.8
"""Score from which a pair counts as one meaning (Wang and Isola 2020 take 4 of 5)."""


class _Judged(NamedTuple):
    """Every pair's vectors and what is known of it."""

    vectors: np.ndarray
    """[N, S, D], of length 1."""
    texts: np.ndarray
    """int64 [N, S]: equal numbers are equal texts."""
    scores: np.ndarray
    """[N]; 1 where pairs have none."""


def evaluate(
    task: EmbeddingTask, source: Any, batches: Iterable[Mapping[str, np.ndarray]], outputs: Outputs
) -> dict[str, Any]:
    """Returns every metric of the judged pairs by name.

    - loss, alignment (mean squared distance of pairs of one meaning) and uniformity (log of the
      mean of exp(-2 squared distance) of all texts), both of Wang and Isola 2020
      (https://arxiv.org/abs/2005.10242), equations 1 and 2; lower is better. Examples.
    - Of pairs without scores: accuracy (the second text is nearest among those of its batch), and
      among the second and third texts of all pairs recall_at_1, recall_at_5, recall_at_10 and mrr.
    - Of others: spearman and pearson, of the cosines with the scores; `None` where all are equal.

    Args:
        task: what the vectors are for.
        source: of the batches.
        batches: as `EmbeddingTask` says; rows of weight 0 are padding.
        outputs: hidden states [B * S, T, D] of a batch's inputs.

    Raises:
        DataError: no batch came.
    """
    total, right, examples, found = 0.0, 0, 0, []
    for batch in batches:
        real = np.asarray(batch["weight"]) > 0
        vectors, loss, hits = _judge(task, outputs(task.inputs(batch)), dict(batch))
        total, right = total + float(loss), right + int(np.asarray(hits)[real].sum())
        examples += int(real.sum())
        found.append((np.asarray(vectors)[real], _keys(batch, real), _scores(batch, real)))
    if not found:
        raise DataError("expected at least one pair to evaluate on, got none")
    judged = _collected(found)
    metrics: dict[str, Any] = {"loss": total / examples}
    if task.contrast == "multiple_negatives":
        metrics |= {"accuracy": right / examples, **_retrieval(judged)}
    else:
        metrics |= _correlations(judged)
    return {
        **metrics,
        "alignment": _alignment(judged),
        "uniformity": _uniformity(judged),
        "examples": examples,
    }


@partial(jax.jit, static_argnums=0)
def _judge(
    task: EmbeddingTask, states: Any, batch: Mapping[str, Any]
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Vectors [B, S, D], the summed loss, and where the own text is the nearest, bool [B]."""
    vectors = task.vectors(states, batch)
    loss, _ = task.loss_of(vectors, batch)
    if task.contrast != "multiple_negatives":
        return vectors, loss, batch["weight"] > 0
    logits, own = task.logits(vectors, batch)
    return vectors, loss, logits.argmax(axis=1) == own


def _keys(batch: Mapping[str, np.ndarray], real: np.ndarray) -> list[list[bytes]]:
    """What tells texts of one batch or of several apart, whatever they are padded to."""
    ids, masks = (np.asarray(batch[name])[real] for name in ("token_ids", "padding_mask"))
    return [
        [ids[row, i][masks[row, i] > 0].tobytes() for i in range(ids.shape[1])]
        for row in range(len(ids))
    ]


def _scores(batch: Mapping[str, np.ndarray], real: np.ndarray) -> np.ndarray:
    scores = batch.get("score")
    return np.ones(real.sum()) if scores is None else np.asarray(scores, np.float64)[real]


def _collected(found: list[tuple[np.ndarray, list[list[bytes]], np.ndarray]]) -> _Judged:
    vectors, keys, scores = zip(*found, strict=True)
    numbers: dict[bytes, int] = {}
    texts = [
        [numbers.setdefault(key, len(numbers)) for key in row] for rows in keys for row in rows
    ]
    return _Judged(
        np.concatenate(vectors).astype(np.float64), np.array(texts), np.concatenate(scores)
    )


def _retrieval(judged: _Judged) -> dict[str, float]:
    """How early each first text's own second text comes among all second and third ones.

    A text of the same cosine comes before it: vectors that are all the same find nothing. What
    other pairs give the same first text, and that text itself, are not counted.
    """
    _, places = np.unique(judged.texts[:, 1:], return_index=True)
    seconds = judged.texts[:, 1:].ravel()[places]
    vectors = judged.vectors[:, 1:].reshape(-1, judged.vectors.shape[-1])[places]
    firsts, own = judged.texts[:, 0], np.searchsorted(seconds, judged.texts[:, 1])
    ranks = np.empty(len(firsts), np.int64)
    mates: dict[int, list[int]] = {}
    for first, place in zip(firsts, own, strict=True):
        mates.setdefault(int(first), []).append(int(place))
    for start in range(0, len(firsts), _CHUNK):
        rows = np.arange(start, min(start + _CHUNK, len(firsts)))
        cosines = judged.vectors[rows, 0] @ vectors.T
        asked = cosines[np.arange(len(rows)), own[rows]]
        cosines[firsts[rows, None] == seconds] = -np.inf
        for i, row in enumerate(rows):
            cosines[i, mates[int(firsts[row])]] = -np.inf
        ranks[rows] = 1 + (cosines >= asked[:, None] - _TIE).sum(axis=1)
    recalls = {f"recall_at_{k}": float((ranks <= k).mean()) for k in (1, 5, 10)}
    return {**recalls, "mrr": float((1 / ranks).mean())}


def _correlations(judged: _Judged) -> dict[str, float | None]:
    cosines = (judged.vectors[:, 0] * judged.vectors[:, 1]).sum(axis=-1)
    if np.ptp(cosines) == 0 or np.ptp(judged.scores) == 0:
        return {"spearman": None, "pearson": None}
    rank, linear = spearmanr(cosines, judged.scores)[0], pearsonr(cosines, judged.scores)[0]
    return {"spearman": float(rank), "pearson": float(linear)}  # pyright: ignore


def _alignment(judged: _Judged) -> float | None:
    pairs = judged.vectors[judged.scores >= _SAME_FROM]
    if not len(pairs):
        return None
    return float(((pairs[:, 0] - pairs[:, 1]) ** 2).sum(axis=-1).mean())


def _uniformity(judged: _Judged) -> float | None:
    _, places = np.unique(judged.texts, return_index=True)
    vectors = judged.vectors.reshape(-1, judged.vectors.shape[-1])[places[:_UNIFORMITY_TEXTS]]
    if len(vectors) < 2:
        return None
    upper = np.triu_indices(len(vectors), 1)
    distances = 2 - 2 * (vectors @ vectors.T)[upper]
    return float(logsumexp(-2 * distances) - np.log(len(distances)))
