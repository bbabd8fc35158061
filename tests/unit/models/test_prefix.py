"""The frozen prefix: two halves that equal the whole, cut as deep as what trains allows."""

from __future__ import annotations

import functools
import subprocess
import sys
from collections.abc import Collection
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import keras
import numpy as np
import pytest

from tests.contract.families import FAMILIES, LABELS, SIDE_PX, fixed
from tunekit.models import hub
from tunekit.models.forward import Forward
from tunekit.models.loading import load_model
from tunekit.models.model import Model
from tunekit.models.prefix import Cut, find_cut
from tunekit.models.selection import resolve_selection

BATCH = jax.ShapeDtypeStruct((4, SIDE_PX, SIDE_PX, 3), "float32")


def densenet() -> Model:
    """Two dense blocks of two layers, a transition between them: concatenations everywhere."""
    network = hub.keras_hub().models.DenseNetBackbone(
        stackwise_num_repeats=[2, 2],
        compression_ratio=0.5,
        growth_rate=4,
        image_shape=(SIDE_PX, SIDE_PX, 3),
    )
    return load_model(fixed(network), labels=LABELS)


NETWORKS = {**FAMILIES, "densenet": densenet}


@functools.cache
def model_of(family: str) -> Model:
    return NETWORKS[family]()


@functools.cache
def forward_of(family: str) -> Forward:
    model = model_of(family)
    return Forward.of(model.keras, [group.variables for group in model.groups()])


def selected(family: str, *selectors: str) -> frozenset[str]:
    return frozenset(resolve_selection(list(selectors), model_of(family)))


def cut_of(family: str, *selectors: str, **modes: Any) -> Cut | None:
    forward = replace(forward_of(family), **modes)
    return find_cut(forward, BATCH, selected(family, *selectors))


def pixels() -> np.ndarray:
    return np.random.default_rng(0).uniform(0, 255, BATCH.shape).astype(np.float32)


def trained_pass(forward: Any, trainable: Collection[str]) -> Any:
    """The compiled loss, outputs, updates and gradients of a pass in training."""

    def loss(values, others, inputs):
        outputs, updates = forward({**others, **values}, inputs, training=True, trainable=trainable)
        return jnp.sum(outputs * jnp.arange(1.0, 4.0)), (outputs, updates)

    return jax.jit(jax.value_and_grad(loss, has_aux=True))


def divided(forward: Forward, trainable: Collection[str]) -> tuple[dict, dict]:
    values = forward.values()
    mine = {name: values[name] for name in trainable}
    return mine, {name: value for name, value in values.items() if name not in mine}


PARTITIONS = {
    "resnet": ["head", "last 1", "last 2", "blocks[0]"],
    "vit": ["head", "last 1", "last 2", "blocks[0]"],
    "dinov2": ["head", "last 1", "last 2"],
    "plain_cnn": ["head", "last 1"],
    "densenet": ["head", "last 1", "blocks[0]"],
    "efficientnet": ["head", "last 1"],
}


@pytest.mark.parametrize(
    ("family", "selector"), [(name, one) for name, all in PARTITIONS.items() for one in all]
)
def test_features_and_the_second_half_equal_the_whole_pass(family, selector):
    forward, trainable = forward_of(family), selected(family, selector)
    cut = find_cut(forward, BATCH, trainable)
    assert cut is not None
    features = jax.jit(cut.features)(forward.values(), pixels())
    assert features.shape == (4, *cut.shape) and str(features.dtype) == cut.dtype
    mine, others = divided(forward, trainable)
    whole = trained_pass(forward, trainable)(mine, others, pixels())
    half = trained_pass(cut, trainable)(mine, others, features)
    (loss, (outputs, updates)), gradients = whole
    (cut_loss, (cut_outputs, cut_updates)), cut_gradients = half
    # The same float32 operations, but XLA fuses, and so rounds, two programs differently;
    # measured differences are a few units in the last place, times a condition of up to 100.
    near = functools.partial(np.testing.assert_allclose, rtol=1e-4)
    near(cut_loss, loss)
    near(cut_outputs, outputs, atol=1e-5)
    assert cut_updates.keys() == updates.keys()
    for name, value in updates.items():
        near(cut_updates[name], value, atol=1e-5, err_msg=name)
    for name, value in gradients.items():
        scale = max(float(np.abs(value).max()), 1e-6)
        near(cut_gradients[name] / scale, value / scale, atol=2e-5, err_msg=name)
        assert np.any(value), f"{name}: no gradient at all would show nothing"


@pytest.mark.parametrize("family", NETWORKS)
def test_there_is_no_cut_where_everything_trains(family):
    assert cut_of(family, "all") is None


@pytest.mark.parametrize(
    ("family", "selector", "name", "shape"),
    [
        ("resnet", "head", "heads/label/pooling", (64,)),
        ("resnet", "last 1", "backbone/stack0_block0_out", (8, 8, 64)),
        # The pooling that ends the stem, and not the padding before it, which is larger.
        ("resnet", "last 2", "backbone/pool1_pool", (8, 8, 64)),
        ("resnet", "blocks[0]", "backbone/pool1_pool", (8, 8, 64)),
        ("vit", "head", "heads/label/pooling", (16,)),
        ("vit", "last 1", "backbone/vit_encoder/transformer_block_1", (5, 16)),
        ("vit", "last 2", "backbone/vit_encoder/dropout", (5, 16)),
        ("dinov2", "head", "heads/label/pooling", (16,)),
        ("dinov2", "last 1", "backbone/dinov2_backbone_encoder/layers_0", (5, 16)),
        ("dinov2", "last 2", "backbone/dinov2_backbone_embeddings", (5, 16)),
        ("densenet", "head", "heads/label/pooling", (44,)),
        ("efficientnet", "head", "heads/label/pooling", (80,)),
        ("efficientnet", "last 2", "backbone/block3a_project_bn", (4, 4, 40)),
        ("efficientnet", "blocks[0]", "backbone/stem_activation", (16, 16, 32)),
    ],
)
def test_the_cut_lies_right_below_what_trains(family, selector, name, shape):
    cut = cut_of(family, selector)
    assert cut is not None
    assert (cut.name, cut.shape) == (name, shape)


def operations(function: Any, *arguments: Any) -> tuple[int, float]:
    """Returns the convolutions and matrix products of a program, and XLA's count of its flops."""
    lowered = jax.jit(function).lower(*arguments)
    text = lowered.as_text()
    count = text.count("stablehlo.convolution") + text.count("stablehlo.dot_general")
    return count, lowered.compile().cost_analysis()["flops"]


@pytest.mark.parametrize("family", ["resnet", "vit"])
def test_the_second_half_does_not_contain_the_first(family):
    forward, trainable = forward_of(family), selected(family, "head")
    cut = find_cut(forward, BATCH, trainable)
    assert cut is not None
    mine, others = divided(forward, trainable)
    features = np.zeros((4, *cut.shape), np.float32)
    step = trained_pass(cut, trainable)
    count, flops = operations(step, mine, others, features)
    whole_count, whole_flops = operations(trained_pass(forward, trainable), mine, others, pixels())
    assert count == 2, "the logits, and the gradient of their kernel"
    assert whole_count > count and whole_flops > 100 * flops

    def accumulated(mine, others, features):
        return jax.lax.scan(
            lambda total, rows: (total + step(mine, others, rows)[0][0], None), 0.0, features
        )

    count, _ = operations(accumulated, mine, others, features[None])
    assert count <= 2, "nor does it in a loop over micro-batches"


def test_running_batch_statistics_move_the_cut_before_the_first_batch_norm():
    cut = cut_of("resnet", "head", batch_norm="running")
    assert cut is not None and cut.name == "backbone/conv1_conv"


def test_where_nothing_trains_the_whole_network_is_kept():
    cut = find_cut(forward_of("resnet"), BATCH, ())
    assert cut is not None and cut.name == "heads/label/logits"


def test_dropout_in_frozen_parts_moves_the_cut_before_it():
    quiet, noisy = cut_of("plain_cnn", "head"), cut_of("plain_cnn", "head", frozen_dropout=True)
    assert quiet is not None and quiet.name == "heads/label/pooling"
    assert noisy is not None and noisy.name == "backbone/re_lu"


def test_a_block_that_thaws_early_moves_the_cut_up_to_it():
    deep, shallow = cut_of("resnet", "head"), cut_of("resnet", "head", "blocks[0]")
    assert deep is not None and shallow is not None
    assert shallow.reads < deep.reads
    assert shallow.name == "backbone/pool1_pool"


class Residual(keras.layers.Layer):
    """A block of three layers."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.parts = [keras.layers.Dense(4, name=f"part_{i}") for i in range(3)]

    def build(self, shape: Any) -> None:
        for part in self.parts:
            part.build(shape)

    def call(self, x: Any) -> Any:
        return x + functools.reduce(lambda y, part: part(y), self.parts, x)


class Encoder(keras.layers.Layer):
    """Blocks inside a layer; the second may also see what came in, which no graph shows."""

    def __init__(self, *, skips: bool, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.skips = skips
        self.blocks = [Residual(name=f"block_{i}") for i in range(3)]

    def build(self, shape: Any) -> None:
        for block in self.blocks:
            block.build(shape)

    def call(self, x: Any) -> Any:
        first = self.blocks[0](x)
        second = self.blocks[1](first)
        return self.blocks[2](second + x if self.skips else second)


def encoder(*, skips: bool) -> Forward:
    inputs = keras.Input((4,))
    x = keras.layers.Dense(4, name="embedding")(inputs)
    return Forward.of(keras.Model(inputs, Encoder(skips=skips, name="encoder")(x)))


@pytest.mark.parametrize(
    ("skips", "name"), [(False, "encoder/block_1"), (True, "embedding")], ids=["plain", "skipping"]
)
def test_a_way_past_a_block_inside_a_layer_forbids_the_cut_behind_it(skips, name):
    forward = encoder(skips=skips)
    trainable = [name for name in forward.variables if "block_2" in name]
    cut = find_cut(forward, jax.ShapeDtypeStruct((2, 4), "float32"), trainable)
    assert cut is not None and cut.name == name


def dense_network(middle: keras.layers.Layer, dtype: str = "float32") -> Forward:
    inputs = keras.Input((4,))
    x = keras.layers.Dense(8, name="first", dtype=dtype)(inputs)
    x = keras.layers.Dense(8, name="second", dtype=dtype)(middle(x))
    return Forward.of(keras.Model(inputs, keras.layers.Dense(3, name="logits")(x)))


def last_cut(forward: Forward) -> Cut | None:
    return find_cut(forward, jax.ShapeDtypeStruct((2, 4), "float32"), ["logits/kernel"])


class LouderInTraining(keras.layers.Layer):
    def call(self, x: Any, training: bool = False) -> Any:
        return 2 * x if training else x


def test_a_layer_that_acts_otherwise_in_training_is_left_to_the_second_half():
    cut = last_cut(dense_network(LouderInTraining()))
    assert cut is not None and cut.name == "first"


class Counting(keras.layers.Layer):
    def build(self, shape: Any) -> None:
        self.calls = self.add_weight(shape=(), initializer="zeros", trainable=False, name="calls")

    def call(self, x: Any) -> Any:
        self.calls.assign(self.calls + 1)
        return x + self.calls


def test_a_layer_whose_own_state_moves_is_left_to_the_second_half():
    cut = last_cut(dense_network(Counting()))
    assert cut is not None and cut.name == "first"


def test_a_layer_that_runs_twice_is_no_place_to_cut():
    shared = keras.layers.Dense(4, name="shared")
    inputs = keras.Input((4,))
    x = keras.layers.ReLU(name="relu")(shared(inputs))
    forward = Forward.of(keras.Model(inputs, keras.layers.Dense(3, name="logits")(shared(x))))
    cut = last_cut(forward)
    assert cut is not None and cut.name == "relu"


def test_features_may_be_kept_in_another_precision_than_the_network_has():
    forward = dense_network(keras.layers.ReLU(dtype="bfloat16"), dtype="bfloat16")
    cut = last_cut(forward)
    assert cut is not None and cut.dtype == "bfloat16"
    inputs = np.random.default_rng(0).normal(size=(2, 4)).astype(np.float32)
    features = cut.features(forward.values(), inputs).astype(jnp.float32)
    whole, _ = forward(forward.values(), inputs, training=False)
    half, _ = cut(forward.values(), features, training=False)
    np.testing.assert_array_equal(half, whole)


def test_a_fingerprint_is_that_of_the_first_half_alone():
    cut, values = cut_of("resnet", "last 1"), forward_of("resnet").values()
    assert cut is not None
    plain = cut.fingerprint(values)
    larger = find_cut(
        cut.forward,
        jax.ShapeDtypeStruct((9, SIDE_PX, SIDE_PX, 3), "float32"),
        selected("resnet", "last 1"),
    )
    assert larger is not None and larger.fingerprint(values) == plain
    behind = next(name for name in values if "stack1" in name)
    before = next(name for name in cut.reads if name.endswith("moving_mean"))
    assert cut.fingerprint({**values, behind: values[behind] + 1}) == plain
    changed = np.array(values[before])
    changed.flat[-1] = np.nextafter(changed.flat[-1], np.float32(9))
    assert cut.fingerprint({**values, before: jnp.asarray(changed)}) != plain


def test_a_fingerprint_survives_another_head_and_not_another_program():
    def printed(scale: float, activation: str, width: int) -> str:
        layers = keras.layers
        inputs = keras.Input((4,))
        x = layers.Rescaling([scale] * 4)(inputs)
        x = layers.Dense(8, activation, kernel_initializer="ones", name="first")(x)
        forward = Forward.of(keras.Model(inputs, layers.Dense(width, name="logits")(x)))
        cut = last_cut(forward)
        assert cut is not None
        return cut.fingerprint(forward.values())

    plain = printed(0.5, "relu", 3)
    assert printed(0.5, "relu", 7) == plain
    assert printed(0.25, "relu", 3) != plain
    assert printed(0.5, "gelu", 3) != plain


_PRINT = """
from tests.unit.models.test_prefix import cut_of, forward_of
print(cut_of("plain_cnn", "head").fingerprint(forward_of("plain_cnn").values()))
"""


def test_a_fingerprint_is_the_same_in_another_process():
    cut = cut_of("plain_cnn", "head")
    assert cut is not None
    there = subprocess.run(
        [sys.executable, "-c", _PRINT], capture_output=True, text=True, check=True
    )
    assert there.stdout.strip() == cut.fingerprint(forward_of("plain_cnn").values())
