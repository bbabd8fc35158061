"""First values of variables: none while weights are to come, seeded where they are not."""

import jax
import keras
import numpy as np
import pytest
from keras.src.backend.jax.core import Variable

from tunekit.models.forward import Forward
from tunekit.models.initialisation import (
    has_shape_only,
    seeded,
    shapes_only,
    without_values,
)


def build() -> keras.Model:
    images = keras.Input((4, 4, 3))
    x = keras.layers.Conv2D(5, 3, kernel_initializer="he_normal")(images)
    x = keras.layers.BatchNormalization()(x)
    x = keras.layers.Dropout(0.5)(keras.layers.Flatten()(x))
    x = keras.layers.Dense(7, kernel_initializer="orthogonal")(x)
    return keras.Model(images, keras.layers.Dense(2, kernel_initializer="random_uniform")(x))


def values(model: keras.Model) -> list[np.ndarray]:
    return [np.asarray(variable) for variable in model.variables]


def test_one_seed_gives_the_same_model_whatever_the_global_seed() -> None:
    models = []
    for global_seed in (1, 2):
        keras.utils.set_random_seed(global_seed)
        with seeded(3):
            models.append(build())
    first, second = (values(model) for model in models)
    assert all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))


def test_seeds_and_layers_differ_from_one_another() -> None:
    with seeded(0):
        layers = [keras.layers.Dense(4), keras.layers.Dense(4)]
        for layer in layers:
            layer.build((None, 4))
    with seeded(1):
        layers.append(keras.layers.Dense(4))
        layers[-1].build((None, 4))
    kernels = [np.asarray(layer.kernel) for layer in layers]
    assert len({kernel.tobytes() for kernel in kernels}) == 3


def test_seeded_values_have_the_spread_that_the_initializer_asks_for() -> None:
    with seeded(0):
        kernels = {
            name: np.asarray(keras.Variable(name, shape=(200, 300)))
            for name in ("he_normal", "glorot_uniform", "random_normal", "orthogonal")
        }
    assert np.isclose(kernels["he_normal"].std(), (2 / 200) ** 0.5, rtol=0.03)
    # He draws a truncated normal, corrected for the truncation at two deviations.
    assert np.abs(kernels["he_normal"]).max() <= 2 * (2 / 200) ** 0.5 / 0.87962566
    limit = (6 / 500) ** 0.5
    assert 0.99 * limit < np.abs(kernels["glorot_uniform"]).max() <= limit
    assert np.isclose(kernels["random_normal"].std(), 0.05, rtol=0.03)
    q = kernels["orthogonal"]
    np.testing.assert_allclose(q @ q.T, np.eye(200), atol=1e-4)


def test_variables_without_values_are_found_until_they_are_assigned() -> None:
    with without_values() as placeholders:
        model = build()
    weights = {v.path for v in model.variables if "seed" not in v.path}
    assert set(placeholders.left_in(model)) == weights
    kernel = model.layers[1].kernel
    kernel.assign(np.ones((3, 3, 3, 5)))
    assert set(placeholders.left_in(model)) == weights - {kernel.path}


def test_keras_draws_as_before_after_an_error_in_the_block() -> None:
    for block in (without_values(), seeded(0)):
        with pytest.raises(ZeroDivisionError), block:
            _ = 1 / 0
    keras.utils.set_random_seed(0)
    first = np.asarray(keras.Variable("he_normal", shape=(3, 3)))
    keras.utils.set_random_seed(0)
    assert np.array_equal(first, np.asarray(keras.Variable("he_normal", shape=(3, 3))))
    assert first.any()


def test_variables_of_shapes_only_have_no_value_in_the_block_and_none_after_it() -> None:
    with shapes_only():
        model = build()
        kernel = model.layers[1].kernel
        assert np.asarray(kernel).nbytes == kernel.shape[0] ** 2 * 3 * 5 * 4
        kernel.assign(np.ones((3, 3, 3, 5)))
    assert all(map(has_shape_only, model.variables))
    assert all(isinstance(v.value, jax.ShapeDtypeStruct) for v in model.variables)
    assert kernel.value == jax.ShapeDtypeStruct((3, 3, 3, 5), "float32")


def test_a_network_of_shapes_only_is_traced_as_one_of_values() -> None:
    def program(model: keras.Model) -> str:
        forward = Forward.of(model)
        images = jax.ShapeDtypeStruct((2, 4, 4, 3), "float32")
        run = jax.jit(lambda values, images: forward(values, images, training=False)[0])
        return run.lower(forward.values(), images).as_text()

    with shapes_only():
        model = build()
    with seeded(0):
        assert program(model) == program(build())


def test_no_memory_is_taken_by_variables_of_any_size() -> None:
    with shapes_only(), seeded(0), without_values() as placeholders:
        layer = keras.layers.Dense(10**6)
        layer.build((None, 10**6))
        array = np.asarray(layer.kernel)
    assert array.shape == (10**6, 10**6) and array.strides == (0, 0)
    assert placeholders.values == []


def test_keras_has_its_own_methods_back_after_an_error_in_shapes_only() -> None:
    before = dict(vars(Variable))
    with pytest.raises(ZeroDivisionError), shapes_only():
        _ = 1 / 0
    assert dict(vars(Variable)) == before
    assert not has_shape_only(keras.Variable("zeros", shape=(3,)))
