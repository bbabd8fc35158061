"""VeRA: shared frozen factors and trained vectors, on dense layers and whole networks."""

from __future__ import annotations

from typing import Any

import jax
import keras
import numpy as np
import pytest

from tests.unit.methods import small
from tunekit.errors import ModelError
from tunekit.methods.part import Placed, Places
from tunekit.methods.spec import VeRA
from tunekit.methods.vera import place


def placed_on(model: keras.Model, **options: Any) -> list[Placed]:
    """VeRA of rank 3 on every layer of the network that has a kernel."""
    options = {"rank": 3, **options}
    layers = {layer.name: layer for layer in model.layers if layer.weights}
    return place(VeRA(**options), Places(layers, tuple(layers), {}, ()), np.random.default_rng())


def two_layers(dtype: str = "float32") -> tuple[keras.Model, np.ndarray]:
    """Dense layers of 4 x 6, with a fused tanh, and 6 x 3."""
    x = inputs = keras.Input((4,))
    x = keras.layers.Dense(6, activation="tanh", name="first", dtype=dtype)(x)
    x = keras.layers.Dense(3, name="second", dtype=dtype)(x)
    return small.filled(keras.Model(inputs, x)), small.normal(small.BATCH, 4)


def placed_in(name: str) -> tuple[keras.Model, list[Placed]]:
    model = small.NETWORKS[name]()
    places = small.places_in(model, "query", "value", "mlp_down")
    return model, place(VeRA(rank=3), places, np.random.default_rng())


def test_each_layer_uses_the_first_rows_and_columns_of_the_shared_factors():
    model, x = two_layers()
    placed = placed_on(model)
    values = small.drawn(placed)
    values["shared"]["scaling"] = np.float32(0.7)
    v = values["shared"]
    assert (v["vera_a"].shape, v["vera_b"].shape) == ((6, 3), (3, 6))

    def update(name: str, rows: np.ndarray, columns: int) -> np.ndarray:
        hidden = rows @ v["vera_a"][: rows.shape[1]] * v[f"{name}/lambda_d"]
        return 0.7 * (hidden @ v["vera_b"][:, :columns]) * v[f"{name}/lambda_b"]

    w1, b1, w2, b2 = small.weights_of(model).values()
    hidden = np.tanh(x @ w1 + b1 + update("first", x, 6))
    expected = hidden @ w2 + b2 + update("second", hidden, 3)
    given = small.outputs(model, x, small.parts_of(placed), values)
    np.testing.assert_allclose(given, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("network", ["bert", "llama", "vit"])
def test_on_whole_networks_it_is_fresh_merges_and_serves_an_adapter_an_example(network):
    model, placed = placed_in(network)
    inputs = small.inputs_of(model)
    small.check_fresh(model, placed)
    small.check_merged(model, inputs, placed)
    small.check_rows(model, inputs, placed)


@pytest.mark.parametrize("kind", small.DENSE_KINDS)
def test_on_every_dense_layer_it_merges_and_serves_an_adapter_an_example(kind):
    model, x = small.network_of(kind)
    placed = placed_on(model)
    small.check_merged(model, x, placed)
    small.check_rows(model, x, placed)


def test_gradients_equal_those_through_merged_weights():
    model, x = two_layers()
    placed = placed_on(model)
    values = small.drawn(placed)

    def beside(values: Any) -> jax.Array:
        return (small.outputs(model, x, small.parts_of(placed), values) ** 2).sum()

    def within(values: Any) -> jax.Array:
        return (small.outputs(model, x, weights=small.merged(model, placed, values)) ** 2).sum()

    ours, expected = jax.grad(beside)(values), jax.grad(within)(values)
    for name, gradient in expected["shared"].items():
        np.testing.assert_allclose(ours["shared"][name], gradient, rtol=1e-4, atol=1e-4)
        assert np.any(gradient != 0), name


def test_vectors_train_and_factors_do_not():
    (placed,) = placed_on(two_layers()[0], dropout=0.1)
    roles = {leaf.name: leaf.role for leaf in placed.part.leaves}
    assert roles == {
        "vera_a": "constant",
        "vera_b": "constant",
        "scaling": "constant",
        "first/lambda_d": "weight",
        "first/lambda_b": "weight",
        "second/lambda_d": "weight",
        "second/lambda_b": "weight",
        "seed": "seed",
    }


def test_it_begins_with_random_factors_of_its_seed_a_constant_and_zeros():
    model, _ = two_layers()
    (first,), (again,) = (placed_on(model, rank=64, d_initial=0.2) for _ in range(2))
    (other,) = placed_on(model, rank=64, projection_seed=1)
    for name, bound in (("vera_a", 1.0), ("vera_b", (6 / 64) ** 0.5)):
        np.testing.assert_array_equal(first.values[name], again.values[name])
        assert np.any(first.values[name] != other.values[name])
        # Uniform over the whole of it.
        assert 0.95 * bound < np.abs(first.values[name]).max() <= bound
    assert np.all(first.values["second/lambda_d"] == np.float32(0.2))
    assert np.all(first.values["second/lambda_b"] == 0)


def test_dropout_acts_in_training_alone_and_on_the_update_alone():
    model, x = two_layers()
    placed = placed_on(model, dropout=0.5)
    fresh, values = small.begun(placed), small.drawn(placed)
    parts = small.parts_of(placed)
    np.testing.assert_array_equal(small.outputs(model, x, parts, fresh, training=True), model(x))
    without = small.outputs(model, x, small.parts_of(placed_on(model)), values)
    np.testing.assert_array_equal(small.outputs(model, x, parts, values), without)
    assert np.abs(small.outputs(model, x, parts, values, training=True) - without).max() > 1e-2


def test_dropout_keeps_the_update_on_average():
    layer = keras.layers.Dense(2, name="target")
    model = small.one_layer(layer, 4)
    x = small.normal(small.BATCH, 4)
    placed = placed_on(model, dropout=0.25)
    values = small.drawn(placed)["shared"]

    def dropped(seed: jax.Array) -> jax.Array:
        given = {"shared": {**values, "seed": seed}}
        return small.outputs(model, x, small.parts_of(placed), given, training=True)

    seeds = np.stack([np.zeros(4000, np.uint32), np.arange(4000, dtype=np.uint32)], axis=1)
    many = np.asarray(jax.vmap(dropped)(seeds))
    kept = small.outputs(model, x, small.parts_of(placed), {"shared": values})
    # Five standard errors of the mean.
    assert np.all(np.abs(many.mean(0) - kept) < 5 * many.std(0) / 4000**0.5)


def test_every_layer_drops_inputs_of_its_own():
    inputs = keras.Input((8,))
    twins = [keras.layers.Dense(2, name=name)(inputs) for name in ("left", "right")]
    model = keras.Model(inputs, keras.layers.Subtract()(twins))
    model.get_layer("right").kernel.assign(model.get_layer("left").kernel)
    placed = placed_on(model, dropout=0.5)
    values = small.begun(placed)
    for name in ("left/lambda_b", "right/lambda_b"):
        values["shared"][name] = np.ones(2, np.float32)
    parts, x = small.parts_of(placed), small.normal(small.BATCH, 8)
    np.testing.assert_allclose(small.outputs(model, x, parts, values), 0, atol=1e-6)
    assert np.abs(small.outputs(model, x, parts, values, training=True)).max() > 1e-2


def test_on_a_bfloat16_network_the_vectors_stay_float32():
    model, x = two_layers("bfloat16")
    placed = placed_on(model)
    values = small.drawn(placed)

    def loss(values: Any) -> jax.Array:
        y = small.outputs(model, x, small.parts_of(placed), values)
        assert y.dtype == "bfloat16"
        return (y.astype("float32") ** 2).sum()

    twin, _ = two_layers()
    for own, other in zip(twin.variables, model.variables, strict=True):
        own.assign(other.value.astype("float32"))
    expected = small.outputs(twin, x, small.parts_of(placed), values)
    given = small.outputs(model, x, small.parts_of(placed), values)
    # Some roundings to 8 bits.
    np.testing.assert_allclose(given.astype("float32"), expected, rtol=0.03, atol=0.05)
    gradients = jax.grad(loss)(values)["shared"]
    assert {str(g.dtype) for g in gradients.values()} == {"float32"}


@pytest.mark.parametrize("kind", ["convolution", "grouped"])
def test_a_convolution_is_refused(kind):
    model, _ = small.network_of(kind)
    with pytest.raises(ModelError, match=r"not defined on 'target' \(Conv2D\).*'!target'"):
        placed_on(model)


def test_adapters_of_one_spec_are_equal_parts_so_that_they_run_one_program():
    model, _ = two_layers()
    (one,), (same,), (wider,) = placed_on(model), placed_on(model), placed_on(model, rank=4)
    assert one.part == same.part
    assert hash(one.part) == hash(same.part)
    assert one.part != wider.part
