"""Image classification: one label an image (softmax) or any number of them (sigmoid)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from tunekit.tasks.classification_loss import (
    bound_labels,
    class_probabilities,
    class_targets,
    cross_entropy,
    decode_labels,
    encode_label,
)
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
        return cls(
            **bound_labels(spec, source),
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
        return encode_label(self, label)

    def targets(self, labels: jax.Array) -> jax.Array:
        """Returns the probability asked of each class, float32 [B, C], of labels [B] or [B, C]."""
        return class_targets(self, labels)

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
        """Returns the summed loss of logits [B, C] and the summed weight; see `cross_entropy`.

        Smoothing and class weights act only where `augment_batch` ran.
        """
        return cross_entropy(self, logits, batch)

    def probabilities(self, logits: np.ndarray) -> np.ndarray:
        """Returns float64 [N, C] probabilities: softmax over classes, or a sigmoid a class."""
        return class_probabilities(self, logits)

    def decode(
        self, logits: np.ndarray, *, ids: Sequence[str] | None = None, threshold: float = 0.5
    ) -> list[Prediction]:
        """Returns one prediction a row.

        Args:
            logits: [N, C].
            ids: names of the images, one a row.
            threshold: multi-label: the least probability of a label that is given.
        """
        return decode_labels(self, logits, ids=ids, threshold=threshold)


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
