"""Taps: what goes through each place of a model, read and replaced."""

from __future__ import annotations

import functools

import jax
import keras
import numpy as np
import pytest

from tests.contract.families import FAMILIES, SIDE_PX
from tunekit.models.forward import Forward
from tunekit.models.model import Model
from tunekit.models.taps import captured, replaced, taps


@functools.cache
def model_of(family: str) -> Model:
    return FAMILIES[family]()


@pytest.fixture
def pixels() -> np.ndarray:
    return np.random.default_rng(0).uniform(0, 255, (2, SIDE_PX, SIDE_PX, 3)).astype(np.float32)


def tapped(network: keras.Model, inputs) -> dict[str, jax.Array]:
    forward = Forward.of(network)
    return captured(forward, taps(network), forward.values(), inputs)


def test_taps_of_a_functional_backbone_are_the_outputs_of_its_layers(pixels):
    model = model_of("resnet")
    found = tapped(model.keras, pixels)
    assert "backbone/stack0_block0_conv1" not in found, "a branch carries not everything on"
    body = model.keras.get_layer("backbone")
    for name in ("pool1_pad", "stack0_block0_add", "stack1_block0_out"):
        until = keras.Model(body.inputs, body.get_layer(name).output)
        expected = until(model.keras.get_layer("preprocess")(pixels))
        # Pointwise convolutions as a matrix product: the same float32 sums in another order.
        np.testing.assert_allclose(found[f"backbone/{name}"], expected, rtol=1e-4, atol=1e-4)


def test_taps_reach_into_an_encoder_that_is_one_layer_of_the_graph(pixels):
    model = model_of("vit")
    found = tapped(model.keras, pixels)
    body = model.keras.get_layer("backbone")
    x = body.get_layer("vit_patching_and_embedding")(model.keras.get_layer("preprocess")(pixels))
    for i, block in enumerate(body.get_layer("vit_encoder").encoder_layers, start=1):
        x = block(x)
        name = f"backbone/vit_encoder/transformer_block_{i}"
        np.testing.assert_allclose(found[name], x, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", ["resnet", "vit", "dinov2", "plain_cnn"])
def test_putting_back_what_a_tap_gave_changes_nothing(family, pixels):
    network = model_of(family).keras
    forward = Forward.of(network)
    values = forward.values()
    before, _ = forward(values, pixels, training=False)
    features = captured(forward, taps(network), values, pixels)
    by_name = {tap.name: tap for tap in taps(network)}
    for name in list(features)[:: max(len(features) // 4, 1)]:
        with replaced(by_name[name], features[name]):
            after, _ = forward(values, 0 * pixels, training=False)
        np.testing.assert_array_equal(after, before, err_msg=name)


@pytest.mark.parametrize("family", FAMILIES)
def test_taps_come_in_the_order_of_running_with_their_depth_groups(family, pixels):
    model = model_of(family)
    group_of = {tap.name: tap.group for tap in taps(model.keras)}
    seen: list[str] = []

    def trace(pixels):
        seen.extend(tapped(model.keras, pixels))

    jax.eval_shape(trace, pixels)
    assert len(seen) == len(taps(model.keras)), "every tap of these families runs once"
    order = [group_of[name] for name in seen]
    assert list(dict.fromkeys(order)) == [
        group.name for group in model.groups() if group.name in order
    ]
    assert order[0] == "stem" and order[-1] == "heads/label"
    assert {group.name for group in model.groups() if group.kind == "block"} <= set(order)


def test_what_is_put_in_place_of_a_tap_counts(pixels):
    network = model_of("resnet").keras
    forward = Forward.of(network)
    pooling = next(tap for tap in taps(network) if tap.name == "heads/label/pooling")
    with replaced(pooling, np.zeros((2, 64), np.float32)):
        logits, _ = forward(forward.values(), pixels, training=False)
    np.testing.assert_array_equal(logits, 2 * [network.get_layer("heads").variables[1].value])


def residual_network() -> keras.Model:
    layers = keras.layers
    x = inputs = keras.Input((4,))
    x = layers.Dense(4, name="first")(x)
    x = x + layers.Dense(4, name="second")(x)
    x = x + layers.Dense(4, name="third")(x)
    return keras.Model(inputs, keras.ops.tanh(x))


def test_a_sum_that_is_no_layer_is_named_alike_in_every_instance_of_a_network():
    names = [[tap.name for tap in taps(residual_network())] for _ in range(2)]
    assert names[0] == ["first", "second/add", "third/add", "third/tanh"]
    assert names[1] == names[0]
    assert {tap.group for tap in taps(residual_network())} == {""}


def test_one_operation_after_another_of_its_kind_is_numbered():
    x = inputs = keras.Input((4,))
    for _ in range(3):
        x = keras.ops.tanh(x)
    names = [tap.name for tap in taps(keras.Model(inputs, x))]
    assert names == ["tanh", "tanh_1", "tanh_2"]


class Pair(keras.layers.Layer):
    def call(self, x):
        return x, 2 * x


def test_only_one_array_of_floats_from_a_single_run_is_captured():
    layers = keras.layers
    shared = layers.Dense(4, name="shared")
    x = inputs = keras.Input((4,))
    x = layers.Dense(4, name="once")(x)
    x = shared(layers.ReLU(name="relu")(shared(x)))
    left, right = Pair(name="pair")(x)
    x = layers.Add(name="sum")([left, right])
    rows = layers.Lambda(lambda x: keras.ops.cast(x > 0, "int32"), name="sign")(x)
    transposed = layers.Lambda(keras.ops.transpose, name="transposed")(rows)
    network = keras.Model(inputs, transposed)
    found = tapped(network, np.ones((3, 4), np.float32))
    assert list(found) == ["once", "relu", "sum"]


def test_the_model_is_untouched_after_an_error_within():
    network = residual_network()
    with pytest.raises(OSError), replaced(taps(network)[0], np.zeros((1, 4))):
        raise OSError
    assert "call" not in vars(network) and "call" not in vars(network.get_layer("first"))
