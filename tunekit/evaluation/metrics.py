"""Metrics of classification logits, as plain numbers that JSON can hold.

A number that the data leaves undefined is None, and a class without examples takes no part in a
macro average: it would count as a mistake nobody made.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.special import expit, log_expit, log_softmax, softmax
from sklearn.metrics import average_precision_score, confusion_matrix, roc_auc_score

from tunekit.errors import DataError, ModelError

CALIBRATION_BINS = 15
"""Guo et al. 2017 use 15."""


def classification_metrics(
    logits: np.ndarray,
    labels: np.ndarray,
    label_names: Sequence[str],
    *,
    multi_label: bool = False,
    top_k: int = 5,
) -> dict[str, Any]:
    """Returns every metric of the logits by name.

    One label: loss, accuracy, top_k_accuracy, precision_macro, recall_macro, f1_macro, auc (one
    class against the rest, macro), expected_calibration_error, confusion_matrix (rows are true
    labels, columns predicted). Several labels: accuracy (every label of an image right),
    mean_average_precision, f1_micro and the rest without top_k and confusion_matrix; a label is
    predicted at probability 0.5. Both: per_class, label_names, absent_labels (those without an
    example), examples.

    Args:
        logits: [N, C].
        labels: [N] class numbers; several labels: [N, C] of 0 and 1.
        label_names: C names.
        multi_label: several labels an image.
        top_k: an image counts where its label is among this many; `None` of at most k classes.

    Raises:
        DataError: no examples, or labels that do not fit the logits.
        ModelError: logits that are not finite.
    """
    logits, labels = np.asarray(logits, np.float64), np.asarray(labels)
    _check(logits, labels, label_names, multi_label=multi_label)
    classes = np.arange(len(label_names))
    if multi_label:
        targets, predicted = labels > 0.5, logits >= 0
        scores = _multi_label(logits, targets, predicted)
    else:
        targets, predicted = labels[:, None] == classes, logits.argmax(axis=1)[:, None] == classes
        scores = _one_label(logits, labels, targets, top_k)
    per_class = _per_class(targets, predicted)
    with_examples = [row for row in per_class if row["support"]]
    macro = {
        f"{name}_macro": float(np.mean([row[name] for row in with_examples]))
        if with_examples
        else None
        for name in ("precision", "recall", "f1")
    }
    return {
        **scores,
        **macro,
        "per_class": dict(zip(label_names, per_class, strict=True)),
        "label_names": list(label_names),
        "absent_labels": [
            name for name, row in zip(label_names, per_class, strict=True) if not row["support"]
        ],
        "examples": len(labels),
    }


def _one_label(
    logits: np.ndarray, labels: np.ndarray, targets: np.ndarray, top_k: int
) -> dict[str, Any]:
    predicted, probabilities = logits.argmax(axis=1), softmax(logits, axis=1)
    first_k = np.argsort(-logits, axis=1, kind="stable")[:, :top_k]
    in_first_k = (first_k == labels[:, None]).any(axis=1)
    correct = predicted == labels
    return {
        "loss": float(-log_softmax(logits, axis=1)[targets].mean()),
        "accuracy": float(correct.mean()),
        # Among k of at most k classes every label is: no measure of anything.
        "top_k_accuracy": float(in_first_k.mean()) if top_k < logits.shape[1] else None,
        "auc": _macro(roc_auc_score, targets, probabilities),
        "expected_calibration_error": expected_calibration_error(
            probabilities.max(axis=1), correct
        ),
        "confusion_matrix": confusion_matrix(
            labels, predicted, labels=np.arange(targets.shape[1])
        ).tolist(),
    }


def _multi_label(logits: np.ndarray, targets: np.ndarray, predicted: np.ndarray) -> dict[str, Any]:
    probabilities = expit(logits)
    losses = -np.where(targets, log_expit(logits), log_expit(-logits))
    everything = _per_class(targets.reshape(-1, 1), predicted.reshape(-1, 1))[0]
    return {
        "loss": float(losses.mean()),
        "accuracy": float((predicted == targets).all(axis=1).mean()),
        "mean_average_precision": _macro(average_precision_score, targets, probabilities),
        "f1_micro": everything["f1"],
        "auc": _macro(roc_auc_score, targets, probabilities),
        "expected_calibration_error": expected_calibration_error(
            probabilities.ravel(), targets.ravel()
        ),
    }


def _per_class(targets: np.ndarray, predicted: np.ndarray) -> list[dict[str, Any]]:
    """Returns precision, recall, F1 and support of each column of booleans [N, C].

    A class that is never predicted has precision 0; one without examples has None throughout.
    """
    right = (targets & predicted).sum(axis=0)
    support, named = targets.sum(axis=0), predicted.sum(axis=0)
    return [
        {
            "precision": float(hits / max(called, 1)) if count else None,
            "recall": float(hits / count) if count else None,
            "f1": float(2 * hits / (called + count)) if count else None,
            "support": int(count),
        }
        for hits, count, called in zip(right, support, named, strict=True)
    ]


def _macro(score: Any, targets: np.ndarray, probabilities: np.ndarray) -> float | None:
    """Returns the mean of a binary score over the classes with both sides, or None without any."""
    both = np.flatnonzero(targets.any(axis=0) & ~targets.all(axis=0))
    if len(both) == 0:
        return None
    return float(np.mean([score(targets[:, c], probabilities[:, c]) for c in both]))


def expected_calibration_error(probability: np.ndarray, happened: np.ndarray) -> float:
    """Returns how far stated probabilities are from observed frequencies, 0 to 1.

    ECE = sum_m |B_m| / N * |frequency(B_m) - mean probability(B_m)| over 15 bins of equal width,
    closed above (Guo et al. 2017, https://arxiv.org/abs/1706.04599, eq. 3). With one label the
    probability is that of the predicted class; with several, every class of every image counts.

    Args:
        probability: [N] in 0..1.
        happened: [N] truth of what the probability was of.
    """
    bins = np.ceil(probability * CALIBRATION_BINS).astype(int) - 1
    gaps = np.bincount(np.maximum(bins, 0), weights=happened - probability)
    return float(np.abs(gaps).sum() / len(probability))


def _check(
    logits: np.ndarray, labels: np.ndarray, label_names: Sequence[str], *, multi_label: bool
) -> None:
    if len(labels) == 0:
        raise DataError("expected at least one example to evaluate on, got none")
    shape = (len(labels), len(label_names))
    if logits.shape != shape:
        raise DataError(
            f"expected logits of shape {shape} for {shape[0]} labels and {shape[1]} label names, "
            f"got {logits.shape}"
        )
    if labels.shape != (shape if multi_label else shape[:1]):
        expected = f"{shape} of 0 and 1" if multi_label else f"{shape[:1]} of class numbers"
        raise DataError(f"expected labels of shape {expected}, got {labels.shape}")
    if not multi_label and not (0 <= labels.min() and labels.max() < shape[1]):
        raise DataError(
            f"expected labels from 0 to {shape[1] - 1}, got {labels.min()} to {labels.max()}"
        )
    broken = int((~np.isfinite(logits)).any(axis=1).sum())
    if broken:
        raise ModelError(
            f"the logits of {broken} of {shape[0]} examples are not finite: the weights have "
            "diverged. Train again with a lower learning rate, or with clip_norm."
        )
