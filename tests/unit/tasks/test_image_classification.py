from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.metrics import log_loss
from sklearn.utils.class_weight import compute_class_weight

from tunekit.data.spec import AugmentSpec
from tunekit.errors import DataError
from tunekit.models.preprocessing import ImagePreprocessing
from tunekit.tasks.image_classification import ImageClassification
from tunekit.tasks.spec import ClassificationSpec

NAMES = ("cat", "dog", "emu")
TASK = ImageClassification(NAMES)
MULTI = ImageClassification(NAMES, multi_label=True)


@dataclass
class LabelColumn:
    """The part of a source that binding reads."""

    label_names: tuple[str, ...]
    label_array: np.ndarray

    @property
    def multi_label(self) -> bool:
        return self.label_array.ndim == 2


def bound(spec, labels):
    return ImageClassification.bind(spec, cast(Any, LabelColumn(NAMES, labels)))


def batch_of(labels, weight=None, **columns):
    labels = jnp.asarray(labels)
    weight = jnp.ones(len(labels)) if weight is None else jnp.asarray(weight)
    return {"label": labels, "weight": weight, **columns}


def random_logits(rows=16, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(0, 3, (rows, 3)), jnp.float32)


def labels_of(rows=16, seed=1):
    return np.random.default_rng(seed).integers(0, 3, rows)


def trained(task, batch):
    return {**batch, "target": task.targets(batch["label"])}


def test_softmax_loss_is_scikit_learns_log_loss():
    logits, labels = random_logits(), labels_of()
    weight = np.linspace(0.5, 2, 16)
    total, count = TASK.loss(logits, batch_of(labels, weight))
    expected = log_loss(labels, jax.nn.softmax(logits), sample_weight=weight, labels=[0, 1, 2])
    assert total / count == pytest.approx(expected, rel=1e-6)


def test_uniform_logits_cost_the_logarithm_of_the_number_of_classes():
    total, count = TASK.loss(jnp.zeros((4, 3)), batch_of([0, 1, 2, 0]))
    assert (float(count), float(total)) == pytest.approx((4.0, 4 * np.log(3)))


def test_class_weights_count_as_sample_weights_do():
    logits, labels = random_logits(), labels_of()
    task = replace(TASK, class_weights=(0.5, 1.0, 4.0))
    total, count = task.loss(logits, trained(task, batch_of(labels)))
    sample_weight = np.asarray(task.class_weights)[labels]
    expected = log_loss(
        labels, jax.nn.softmax(logits), sample_weight=sample_weight, labels=[0, 1, 2]
    )
    assert total / count == pytest.approx(expected, rel=1e-6)


def test_smoothed_softmax_loss_mixes_in_the_uniform_cross_entropy():
    logits, labels = random_logits(), labels_of()
    task = replace(TASK, label_smoothing=0.1)
    total, count = task.loss(logits, trained(task, batch_of(labels)))
    log_p = np.asarray(jax.nn.log_softmax(logits), np.float64)
    expected = 0.9 * -log_p[np.arange(16), labels].mean() + 0.1 * -log_p.mean()
    assert total / count == pytest.approx(expected, rel=1e-6)


def test_sigmoid_loss_is_the_mean_of_scikit_learns_log_loss_over_classes():
    logits = random_logits()
    labels = (np.random.default_rng(2).random((16, 3)) > 0.5).astype(np.float32)
    total, count = MULTI.loss(logits, batch_of(labels))
    p = np.asarray(jax.nn.sigmoid(logits), np.float64)
    expected = np.mean([log_loss(labels[:, c], p[:, c], labels=[0, 1]) for c in range(3)])
    assert total / count == pytest.approx(expected, rel=1e-6)


def test_sigmoid_class_weights_scale_positives_and_smoothing_pulls_to_a_half():
    task = replace(MULTI, class_weights=(2.0, 1.0, 1.0), label_smoothing=0.2)
    labels = np.asarray([[1.0, 0.0, 1.0]], np.float32)
    total, count = task.loss(jnp.zeros((1, 3)), trained(task, batch_of(labels)))
    # At logit 0 both sides of each class cost log 2, whatever the target's split.
    expected = np.log(2) * ((2 * 0.9 + 0.1) + 1 + 1) / 3
    assert (float(total), float(count)) == pytest.approx((expected, 1.0))


def test_extreme_logits_keep_the_sigmoid_loss_finite():
    total, _ = MULTI.loss(jnp.asarray([[1e4, -1e4, 1e4]]), batch_of([[1.0, 0.0, 0.0]]))
    assert float(total) == pytest.approx(1e4 / 3)


@pytest.mark.parametrize("task", [TASK, MULTI], ids=["softmax", "sigmoid"])
def test_padded_rows_give_no_loss_and_no_gradient_even_when_nan(task):
    labels = labels_of(4) if task is TASK else np.ones((4, 3), np.float32)
    logits = random_logits(4)
    spoilt = logits.at[2:].set(jnp.nan)
    batch = batch_of(labels, [1.0, 1.0, 0.0, 0.0])
    alone = batch_of(labels[:2])
    assert task.loss(spoilt, batch) == task.loss(logits[:2], alone)
    gradient = jax.grad(lambda x: task.loss(x, trained(task, batch))[0])(spoilt)
    assert jnp.array_equal(gradient[2:], jnp.zeros((2, 3)))
    assert jnp.all(jnp.isfinite(gradient))


@pytest.mark.parametrize("task", [TASK, MULTI], ids=["softmax", "sigmoid"])
def test_sums_over_micro_batches_are_the_sums_of_the_batch(task):
    labels = labels_of() if task is TASK else np.eye(3, dtype=np.float32)[labels_of()]
    logits, weight = random_logits(), jnp.linspace(0, 2, 16)
    whole = task.loss(logits, batch_of(labels, weight))
    parts = [
        task.loss(logits[part], batch_of(labels[part], weight[part]))
        for part in (slice(0, 5), slice(5, 16))
    ]
    assert np.sum(parts, axis=0) == pytest.approx(np.asarray(whole), rel=1e-6)


def test_half_precision_logits_are_summed_in_float32():
    logits = random_logits().astype(jnp.bfloat16)
    total, count = TASK.loss(logits, batch_of(labels_of()))
    assert total.dtype == count.dtype == jnp.float32
    expected, _ = TASK.loss(logits.astype(jnp.float32), batch_of(labels_of()))
    assert total == expected


def test_evaluation_loss_has_neither_smoothing_nor_class_weights():
    task = replace(TASK, label_smoothing=0.3, class_weights=(9.0, 1.0, 1.0))
    assert task.loss(random_logits(), batch_of(labels_of())) == TASK.loss(
        random_logits(), batch_of(labels_of())
    )


def test_augment_batch_without_mixing_adds_one_hot_targets_only():
    images = np.arange(2 * 4 * 4 * 3, dtype=np.uint8).reshape(2, 4, 4, 3)
    batch = TASK.augment_batch(jax.random.key(0), batch_of([2, 0], image=images))
    assert jnp.array_equal(batch["target"], jnp.asarray([[0.0, 0, 1], [1, 0, 0]]))
    assert batch["image"].dtype == jnp.float32
    assert jnp.array_equal(batch["image"], images)


def test_balanced_class_weights_are_scikit_learns():
    labels = np.asarray([0] * 6 + [1] * 3 + [2])
    task = bound(ClassificationSpec(class_weights="balanced"), labels)
    expected = compute_class_weight("balanced", classes=np.arange(3), y=labels)
    assert task.class_weights == pytest.approx(tuple(expected))


def test_balanced_multi_label_weights_are_negatives_over_positives():
    labels = np.asarray([[1, 0, 1], [1, 1, 0], [1, 0, 0], [0, 0, 1]], np.float32)
    task = bound(ClassificationSpec(class_weights="balanced"), labels)
    assert task.multi_label
    assert task.class_weights == pytest.approx((1 / 3, 3.0, 1.0))


def test_a_class_without_examples_cannot_be_balanced():
    labels = np.asarray([0, 1, 0])
    with pytest.raises(DataError, match="cannot balance emu: no training example"):
        bound(ClassificationSpec(class_weights="balanced"), labels)


def test_class_weights_must_be_one_a_label():
    labels = np.asarray([0, 1, 2])
    with pytest.raises(DataError, match="expected 3 weights, .* got 2"):
        bound(ClassificationSpec(class_weights=(1.0, 2.0)), labels)


def test_several_labels_an_image_refuse_a_task_of_one():
    labels = np.ones((4, 3), np.float32)
    with pytest.raises(DataError, match="task.multi_label: the data has several labels an example"):
        bound(ClassificationSpec(multi_label=False), labels)


def test_one_label_an_image_may_train_a_sigmoid_head():
    labels = np.asarray([0, 1, 2])
    task = bound(ClassificationSpec(multi_label=True), labels)
    assert task.multi_label
    assert np.array_equal(task.encode_label(1), [0.0, 1.0, 0.0])


def test_decode_sorts_labels_by_softmax_probability():
    (prediction,) = TASK.decode(np.log([[0.2, 0.7, 0.1]]), ids=["a.jpg"])
    assert (prediction.label, prediction.labels, prediction.id) == ("dog", ("dog",), "a.jpg")
    assert list(prediction.probabilities) == ["dog", "cat", "emu"]
    assert list(prediction.probabilities.values()) == pytest.approx([0.7, 0.2, 0.1])
    assert prediction.probability == prediction.probabilities["dog"]


def test_multi_label_decode_gives_every_label_at_the_threshold():
    logits = np.asarray([[3.0, -3.0, 0.0], [-3.0, -2.0, -1.0]])
    first, second = MULTI.decode(logits)
    assert first.labels == ("cat", "emu")
    assert (second.labels, second.label) == ((), "emu")
    assert MULTI.decode(logits, threshold=0.6)[0].labels == ("cat",)


PREPROCESSING = ImagePreprocessing((8, 8), crop_fraction=0.5)
PHOTO = np.random.default_rng(3).integers(0, 256, (20, 30, 3), np.uint8)


def test_an_encoded_example_is_the_backbones_pixels_and_its_label():
    encoded = TASK.encoder(PREPROCESSING)({"image": PHOTO, "label": 2}, None)
    assert np.array_equal(encoded["image"], PREPROCESSING.to_pixels(PHOTO))
    assert (encoded["label"].dtype, int(encoded["label"])) == (np.int32, 2)


def test_augmentation_happens_in_training_only():
    encode = TASK.encoder(PREPROCESSING, AugmentSpec(horizontal_flip=True))
    example = {"image": PHOTO, "label": 0}
    plain = PREPROCESSING.to_pixels(PHOTO)
    assert np.array_equal(encode(example, None)["image"], plain)
    seen = [encode(example, np.random.default_rng(seed))["image"] for seed in range(8)]
    flipped = [np.array_equal(pixels, plain[:, ::-1]) for pixels in seen]
    assert any(flipped) and not all(flipped)
    assert all(np.array_equal(x, plain) for x, flip in zip(seen, flipped, strict=True) if not flip)


def test_a_random_crop_comes_from_the_whole_image():
    spec = AugmentSpec(random_resized_crop=(0.9, 1.0))
    encode = TASK.encoder(PREPROCESSING, spec)
    # The left quarter is black: a crop of nine tenths of the area must show some of it.
    image = np.full((20, 32, 3), 255, np.uint8)
    image[:, :8] = 0
    assert PREPROCESSING.to_pixels(image).mean() > 250
    pixels = encode({"image": image, "label": 0}, np.random.default_rng(0))["image"]
    assert pixels.shape == (8, 8, 3)
    assert pixels[:, 0].mean() < 50


def test_augment_batch_mixes_images_and_targets_of_real_rows_alike():
    task = replace(TASK, mixup=1.0)
    labels, weight = jnp.asarray([0, 1, 2, 0]), jnp.asarray([1.0, 1.0, 1.0, 0.0])
    # Images as wide as the classes: pixel columns are the one-hot labels, so both mix alike.
    images = jax.nn.one_hot(labels, 3)[:, None, :, None] * jnp.full((1, 2, 1, 3), 200.0)
    batch = task.augment_batch(
        jax.random.key(1), {"image": images, "label": labels, "weight": weight}
    )
    assert not jnp.array_equal(batch["target"], jax.nn.one_hot(labels, 3))
    assert batch["image"][:, 0, :, 0] / 200 == pytest.approx(np.asarray(batch["target"]), abs=1e-5)
    assert jnp.array_equal(batch["target"][3], jnp.asarray([1.0, 0, 0]))
