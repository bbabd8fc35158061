"""The pure forward pass: equal to Keras', with modes from the partition."""

from __future__ import annotations

import keras
import numpy as np
import pytest

from tunekit.methods.intercept import intercept
from tunekit.models.cpu_convolution import cpu_convolutions
from tunekit.models.forward import Forward
from tunekit.names import layer_names


def convolutional_model() -> keras.Model:
    """Every convolution that has a form of its own on a CPU, odd sizes and strides included."""
    layers = keras.layers
    x = inputs = keras.Input((11, 9, 3))
    x = layers.Conv2D(6, 3, strides=2, padding="same", name="stem")(x)
    x = layers.DepthwiseConv2D(3, padding="same", activation="relu", name="depthwise")(x)
    x = layers.BatchNormalization(name="norm")(x)
    x = layers.Conv2D(8, 1, name="pointwise")(x)
    x = layers.DepthwiseConv2D(5, strides=2, padding="same", use_bias=False, name="strided")(x)
    x = layers.DepthwiseConv2D(2, padding="valid", name="valid")(x)
    x = layers.Conv2D(5, 1, strides=2, activation="tanh", name="projection")(x)
    model = keras.Model(inputs, x)
    rng = np.random.default_rng(0)
    for variable in model.variables:
        if variable.name != "moving_variance":
            variable.assign(rng.normal(size=variable.shape) * 0.5)
    return model


@pytest.fixture
def images() -> np.ndarray:
    return np.random.default_rng(1).normal(size=(4, 11, 9, 3)).astype(np.float32)


def test_the_forward_pass_equals_keras_own(images):
    model = convolutional_model()
    forward = Forward.of(model)
    outputs, updates = forward(forward.values(), images, training=False)
    # The same sums in another order, in float32.
    np.testing.assert_allclose(outputs, model(images), rtol=1e-5, atol=1e-5)
    assert updates == {}


def test_gradients_through_cpu_forms_equal_those_of_xlas_convolutions(images):
    import jax

    model = convolutional_model()
    names = list(Forward.of(model).variables)

    def loss(values, wraps):
        mapping = list(zip(model.variables, values, strict=True))
        with keras.StatelessScope(state_mapping=mapping), intercept(wraps):
            return (model(images) ** 2).sum()

    values = [v.value for v in model.variables]
    wraps = cpu_convolutions(layer_names(model).values())
    assert len(wraps) == 5
    ours = jax.grad(loss)(values, wraps)
    theirs = jax.grad(loss)(values, {})
    for name, left, right in zip(names, ours, theirs, strict=True):
        scale = float(np.abs(right).max()) + 1e-12
        # Float32 sums of hundreds of terms in another order, through seven layers.
        np.testing.assert_allclose(left / scale, right / scale, atol=2e-5, err_msg=name)


def test_the_values_given_count_and_not_those_in_the_model(images):
    model = convolutional_model()
    forward = Forward.of(model)
    zeros = {name: 0 * value for name, value in forward.values().items()}
    outputs, _ = forward(zeros, images, training=False)
    assert np.all(np.asarray(outputs) == 0)
    assert np.any(np.asarray(model(images)) != 0)


def test_a_training_pass_reports_new_statistics_and_leaves_the_model_alone(images):
    model = convolutional_model()
    forward = Forward.of(model)
    before = np.array(model.get_layer("norm").moving_mean.value)
    _, updates = forward(
        forward.values(), images, training=True, trainable=frozenset(["norm/gamma"])
    )
    assert set(updates) == {"norm/moving_mean", "norm/moving_variance"}
    np.testing.assert_array_equal(before, model.get_layer("norm").moving_mean.value)


@pytest.mark.parametrize(("momentum", "used"), [(0.99, 0.9), (0.5, 0.5)])
def test_statistics_keep_up_with_a_short_run(momentum, used):
    layer = keras.layers.BatchNormalization(momentum=momentum, name="norm")
    forward = Forward.of(keras.Sequential([keras.Input((2,)), layer]))
    rows = np.array([[1.0, 2.0], [3.0, 6.0]], np.float32)
    _, updates = forward(forward.values(), rows, training=True, trainable={"norm/gamma"})
    np.testing.assert_allclose(updates["norm/moving_mean"], (1 - used) * rows.mean(0), rtol=1e-5)
    assert layer.momentum == momentum


def test_interception_ends_with_its_block_also_after_an_error(images):
    layer = convolutional_model().get_layer("pointwise")
    with pytest.raises(OSError), intercept({layer: lambda call: lambda x: 1 / 0}):
        raise OSError
    assert "call" not in vars(layer)


def test_nested_interceptions_unwind_to_the_outer_one():
    layer = keras.layers.Dense(2)
    layer.build((None, 2))
    with intercept({layer: lambda call: lambda x: "outer"}):
        with intercept({layer: lambda call: lambda x: "inner of " + call(x)}):
            assert layer.call(None) == "inner of outer"
        assert layer.call(None) == "outer"
