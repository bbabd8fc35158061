"""What classifying images and classifying texts have in common: labels, loss, probabilities."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from scipy.special import expit, softmax

from tunekit.data.examples import Source
from tunekit.errors import DataError
from tunekit.tasks.prediction import Prediction
from tunekit.tasks.spec import ClassificationSpec


class Classifier(Protocol):
    """What a task says of its C labels."""

    @property
    def label_names(self) -> tuple[str, ...]:
        """Labels in the order of the logits."""
        ...

    @property
    def multi_label(self) -> bool:
        """True: one sigmoid a class; False: one softmax over the classes."""
        ...

    @property
    def label_smoothing(self) -> float:
        """Share of each target spread over the classes."""
        ...

    @property
    def class_weights(self) -> tuple[float, ...] | None:
        """Weight of each class in a training loss; multi-label: of each class' positives."""
        ...


def bound_labels(spec: ClassificationSpec, source: Source) -> dict[str, Any]:
    """Returns the fields of a `Classifier` for the labels of `source`, the training examples.

    Raises:
        DataError: the data has several labels an example and the task one, the class weights are
            not one a label, or a class to balance has no example.
    """
    if spec.multi_label is False and source.multi_label:
        raise DataError(
            "task.multi_label: the data has several labels an example, but the task is said to "
            "have one (multi_label=False). Leave it at 'auto', or give one label an example."
        )
    multi_label = source.multi_label if spec.multi_label == "auto" else spec.multi_label
    names = tuple(source.label_names)
    return {
        "label_names": names,
        "multi_label": multi_label,
        "label_smoothing": spec.label_smoothing,
        "class_weights": _class_weights(spec, source.label_array, names, multi_label=multi_label),
    }


def encode_label(task: Classifier, label: Any) -> np.ndarray:
    """Returns the label column of one example: int32 [], or float32 [C] where any may hold."""
    if not task.multi_label:
        return np.asarray(label, np.int32)
    label = np.asarray(label)
    if label.ndim == 1:
        return label.astype(np.float32)
    # Data with one label an example may train a sigmoid head.
    return (np.arange(len(task.label_names)) == label).astype(np.float32)


def class_targets(task: Classifier, labels: jax.Array) -> jax.Array:
    """Returns the probability asked of each class, float32 [B, C], of labels [B] or [B, C]."""
    labels = jnp.asarray(labels)
    if labels.ndim == 2:
        return labels.astype(jnp.float32)
    return jax.nn.one_hot(labels, len(task.label_names), dtype=jnp.float32)


def cross_entropy(
    task: Classifier, logits: jax.Array, batch: Mapping[str, jax.Array]
) -> tuple[jax.Array, jax.Array]:
    """Returns the summed cross-entropy and the summed weight; their quotient is the loss.

    Softmax: an example weighs its row weight times its class' weight, as `sample_weight` does
    in `sklearn.metrics.log_loss`; smoothing is that of Szegedy et al. 2016
    (https://arxiv.org/abs/1512.00567), eq. 7: q' = (1 - s) q + s / C. Sigmoid: the mean over
    classes of the binary cross-entropy with q' = (1 - s) q + s / 2, class weights on the
    positive term only. Without "target" (evaluation) neither smoothing nor class weights act.

    Args:
        task: says which of the two.
        logits: [B, C] of any float type; the sum is float32.
        batch: "weight" [B] and "target" [B, C], or "label" in its place. Rows of weight 0 give
            exactly nothing, and no gradient, whatever their logits.
    """
    weight = jnp.asarray(batch["weight"], jnp.float32)
    # Masked before the logarithm: a NaN behind a later mask still has a NaN gradient.
    logits = jnp.where(weight[:, None] > 0, logits.astype(jnp.float32), 0.0)
    losses_of = _sigmoid_cross_entropy if task.multi_label else _softmax_cross_entropy
    if "target" in batch:
        class_weights = jnp.asarray(task.class_weights or 1.0, jnp.float32)
        losses, weights = losses_of(logits, batch["target"], task.label_smoothing, class_weights)
    else:
        targets = class_targets(task, batch["label"])
        losses, weights = losses_of(logits, targets, 0.0, jnp.float32(1.0))
    return jnp.sum(losses * weight), jnp.sum(weights * weight)


def class_probabilities(task: Classifier, logits: np.ndarray) -> np.ndarray:
    """Returns float64 [N, C] probabilities: softmax over classes, or a sigmoid a class."""
    logits = np.asarray(logits, np.float64)
    return expit(logits) if task.multi_label else softmax(logits, axis=-1)


def decode_labels(
    task: Classifier, logits: np.ndarray, *, ids: Sequence[str] | None, threshold: float
) -> list[Prediction]:
    """Returns one prediction a row.

    Args:
        task: names the labels.
        logits: [N, C].
        ids: names of the examples, one a row.
        threshold: multi-label: the least probability of a label that is given.
    """
    rows = class_probabilities(task, logits)
    ids = [""] * len(rows) if ids is None else ids
    return [_decode_row(task, row, name, threshold) for row, name in zip(rows, ids, strict=True)]


def _decode_row(task: Classifier, row: np.ndarray, name: str, threshold: float) -> Prediction:
    order = np.argsort(-row, kind="stable")
    probabilities = {task.label_names[i]: float(row[i]) for i in order}
    label = next(iter(probabilities))
    labels = (label,)
    if task.multi_label:
        labels = tuple(key for key, value in probabilities.items() if value >= threshold)
    return Prediction(label, probabilities[label], probabilities, labels, name)


def _softmax_cross_entropy(
    logits: jax.Array, targets: jax.Array, smoothing: float, class_weights: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Returns each row's weighted loss and its weight, [B], of logits and targets [B, C]."""
    smooth = targets * (1 - smoothing) + smoothing / targets.shape[-1]
    weights = jnp.sum(targets * class_weights, axis=-1)
    return -weights * jnp.sum(smooth * jax.nn.log_softmax(logits), axis=-1), weights


def _sigmoid_cross_entropy(
    logits: jax.Array, targets: jax.Array, smoothing: float, class_weights: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Returns each row's loss and a weight of 1, [B], of logits and targets [B, C]."""
    smooth = targets * (1 - smoothing) + smoothing / 2
    positive = class_weights * smooth * jax.nn.log_sigmoid(logits)
    negative = (1 - smooth) * jax.nn.log_sigmoid(-logits)
    losses = -jnp.mean(positive + negative, axis=-1)
    return losses, jnp.ones_like(losses)


def _class_weights(
    spec: ClassificationSpec, labels: np.ndarray, names: tuple[str, ...], *, multi_label: bool
) -> tuple[float, ...] | None:
    """Returns one weight a label name, or None.

    Balanced, one label: N / (C * count), as `sklearn.utils.class_weight`; multi-label: negatives
    over positives, so that both sides of each class weigh the same.
    """
    if spec.class_weights is None:
        return None
    if spec.class_weights != "balanced":
        if len(spec.class_weights) != len(names):
            raise DataError(
                f"task.class_weights: expected {len(names)} weights, one for each of "
                f"{', '.join(names[:10])}{', …' if len(names) > 10 else ''}; "
                f"got {len(spec.class_weights)}"
            )
        return tuple(float(weight) for weight in spec.class_weights)
    if labels.ndim == 2:
        counts = (labels > 0.5).sum(axis=0)
    else:
        counts = np.bincount(labels, minlength=len(names))
    empty = [name for name, count in zip(names, counts, strict=True) if count == 0]
    if empty:
        raise DataError(
            f"task.class_weights: cannot balance {', '.join(empty[:10])}: no training example. "
            "Add examples, take the label out of data.labels, or give the weights as numbers."
        )
    if multi_label:
        weights = (len(labels) - counts) / counts
    else:
        weights = len(labels) / (len(names) * counts)
    return tuple(float(weight) for weight in weights)
