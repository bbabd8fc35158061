"""Image classification: one label an image (softmax) or any number of them (sigmoid)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from scipy.special import expit, softmax

from tunekit.errors import DataError
from tunekit.tasks.prediction import Prediction
from tunekit.tasks.spec import ClassificationSpec

if TYPE_CHECKING:
    from tunekit.data.source import Source
    from tunekit.data.spec import AugmentSpec
    from tunekit.models.preprocessing import ImagePreprocessing

Encode = Callable[[Mapping[str, Any], np.random.Generator | None], dict[str, np.ndarray]]


@dataclass(frozen=True)
class ImageClassification:
    """Encodes images, scores logits, and reads them back as labels.

    Batches have "image" uint8 [B, H, W, 3], "label" int32 [B] (multi-label: float32 [B, C]) and
    "weight" float32 [B], 0 on padded rows; `augment_batch` adds "target" float32 [B, C].
    """

    label_names: tuple[str, ...]
    """Labels in the order of the logits."""
    multi_label: bool = False
    """True: one sigmoid a class; False: one softmax over the classes."""
    label_smoothing: float = 0.0
    """Share of each target spread over the classes, by `loss`; only where `augment_batch` ran."""
    class_weights: tuple[float, ...] | None = None
    """Weight of each class in a training loss; multi-label: of each class' positives."""
    mixup: float = 0.0
    """Alpha of the Beta distribution of mixup; 0 is off."""
    cutmix: float = 0.0
    """Alpha of the Beta distribution of cutmix; 0 is off."""
    top_k: int = 5
    """The k of top-k accuracy."""

    @classmethod
    def bind(
        cls, spec: ClassificationSpec, source: Source, augment: AugmentSpec | None = None
    ) -> ImageClassification:
        """Returns the task for the labels of `source`, the training examples.

        Raises:
            DataError: the data has several labels an image and the task one, the class weights are
                not one a label, or a class to balance has no example.
        """
        if spec.multi_label is False and source.multi_label:
            raise DataError(
                "task.multi_label: the data has several labels an image, but the task is said to "
                "have one (multi_label=False). Leave it at 'auto', or give one label an image."
            )
        multi_label = source.multi_label if spec.multi_label == "auto" else spec.multi_label
        names = tuple(source.label_names)
        return cls(
            label_names=names,
            multi_label=multi_label,
            label_smoothing=spec.label_smoothing,
            class_weights=_class_weights(spec, source.label_array, names, multi_label=multi_label),
            mixup=augment.mixup if augment else 0.0,
            cutmix=augment.cutmix if augment else 0.0,
            top_k=spec.top_k,
        )

    def encoder(
        self, preprocessing: ImagePreprocessing, augment: AugmentSpec | None = None
    ) -> Encode:
        """Returns what turns one example into the columns of a batch.

        Args:
            preprocessing: how the backbone wants its pixels.
            augment: what may happen to an image; needs the generator that training passes.
        """

        def encode(
            example: Mapping[str, Any], rng: np.random.Generator | None = None
        ) -> dict[str, np.ndarray]:
            image = example["image"]
            if augment is not None and rng is not None:
                pixels = _augmented(image, preprocessing, augment, rng)
            else:
                pixels = preprocessing.to_pixels(image)
            return {"image": pixels, "label": self.encode_label(example["label"])}

        return encode

    def encode_label(self, label: Any) -> np.ndarray:
        """Returns the label column of one example: int32 [], or float32 [C] where any may hold."""
        if not self.multi_label:
            return np.asarray(label, np.int32)
        label = np.asarray(label)
        if label.ndim == 1:
            return label.astype(np.float32)
        # Data with one label an image may train a sigmoid head.
        return (np.arange(len(self.label_names)) == label).astype(np.float32)

    def targets(self, labels: jax.Array) -> jax.Array:
        """Returns the probability asked of each class, float32 [B, C], of labels [B] or [B, C]."""
        labels = jnp.asarray(labels)
        if labels.ndim == 2:
            return labels.astype(jnp.float32)
        return jax.nn.one_hot(labels, len(self.label_names), dtype=jnp.float32)

    def augment_batch(self, key: jax.Array, batch: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        """Returns the batch with "target", images float32 and mixed where the task says so.

        Pure; runs inside the compiled training step. A batch of cached features has no images.
        """
        if "image" not in batch:
            return {**batch, "target": self.targets(batch["label"])}
        images = jnp.asarray(batch["image"], jnp.float32)
        targets = self.targets(batch["label"])
        if self.mixup or self.cutmix:
            from tunekit.data.mixing import mix

            images, targets = mix(key, images, targets, batch["weight"], self.mixup, self.cutmix)
        return {**batch, "image": images, "target": targets}

    def inputs(self, batch: Mapping[str, jax.Array]) -> jax.Array:
        """Returns what the model takes: pixels [B, H, W, 3]."""
        return batch["image"]

    def loss(
        self, logits: jax.Array, batch: Mapping[str, jax.Array]
    ) -> tuple[jax.Array, jax.Array]:
        """Returns the summed cross-entropy and the summed weight; their quotient is the loss.

        Softmax: an example weighs its row weight times its class' weight, as `sample_weight` does
        in `sklearn.metrics.log_loss`; smoothing is that of Szegedy et al. 2016
        (https://arxiv.org/abs/1512.00567), eq. 7: q' = (1 - s) q + s / C. Sigmoid: the mean over
        classes of the binary cross-entropy with q' = (1 - s) q + s / 2, class weights on the
        positive term only. Without "target" (evaluation) neither smoothing nor class weights act.

        Args:
            logits: [B, C] of any float type; the sum is float32.
            batch: "weight" [B] and "target" [B, C], or "label" in its place. Rows of weight 0 give
                exactly nothing, and no gradient, whatever their logits.
        """
        weight = jnp.asarray(batch["weight"], jnp.float32)
        # Masked before the logarithm: a NaN behind a later mask still has a NaN gradient.
        logits = jnp.where(weight[:, None] > 0, logits.astype(jnp.float32), 0.0)
        cross_entropy = _sigmoid_cross_entropy if self.multi_label else _softmax_cross_entropy
        if "target" in batch:
            class_weights = jnp.asarray(self.class_weights or 1.0, jnp.float32)
            losses, weights = cross_entropy(
                logits, batch["target"], self.label_smoothing, class_weights
            )
        else:
            losses, weights = cross_entropy(
                logits, self.targets(batch["label"]), 0.0, jnp.float32(1.0)
            )
        return jnp.sum(losses * weight), jnp.sum(weights * weight)

    def probabilities(self, logits: np.ndarray) -> np.ndarray:
        """Returns float64 [N, C] probabilities: softmax over classes, or a sigmoid a class."""
        logits = np.asarray(logits, np.float64)
        return expit(logits) if self.multi_label else softmax(logits, axis=-1)

    def decode(
        self, logits: np.ndarray, *, ids: Sequence[str] | None = None, threshold: float = 0.5
    ) -> list[Prediction]:
        """Returns one prediction a row.

        Args:
            logits: [N, C].
            ids: names of the images, one a row.
            threshold: multi-label: the least probability of a label that is given.
        """
        rows = self.probabilities(logits)
        ids = [""] * len(rows) if ids is None else ids
        return [self._decode_row(row, name, threshold) for row, name in zip(rows, ids, strict=True)]

    def _decode_row(self, row: np.ndarray, name: str, threshold: float) -> Prediction:
        order = np.argsort(-row, kind="stable")
        probabilities = {self.label_names[i]: float(row[i]) for i in order}
        label = next(iter(probabilities))
        labels = (label,)
        if self.multi_label:
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


def _augmented(
    image: Any, preprocessing: ImagePreprocessing, spec: AugmentSpec, rng: np.random.Generator
) -> np.ndarray:
    """Returns the image augmented at the backbone's size, uint8 [H, W, 3]."""
    from PIL import Image

    from tunekit.data.augment import augment

    if spec.random_resized_crop is None:
        # Nothing else changes the size: resize as in evaluation, then augment.
        image = preprocessing.to_pixels(image)
    if isinstance(image, np.ndarray):
        image = Image.fromarray(image)
    return augment(image, spec, preprocessing.image_size_px, preprocessing.interpolation, rng)
