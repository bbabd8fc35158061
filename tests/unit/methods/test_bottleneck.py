"""Bottleneck adapters: where each kind sits, what it computes, and why it does not merge."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import keras
import numpy as np
import pytest

from tests.unit.methods import small
from tunekit.errors import ModelError
from tunekit.methods.bottleneck import BottleneckPart, place
from tunekit.methods.part import Placed, Places
from tunekit.methods.spec import Bottleneck

KINDS = ("houlsby", "pfeiffer", "parallel")
TRANSFORMERS = ("bert", "llama", "vit")
BLOCK = "transformer_layer_0"


def placed_in(name: str, spec: Bottleneck, *targets: str) -> tuple[keras.Model, list[Placed]]:
    model = small.NETWORKS[name]()
    roles = targets or ("attention_output", "mlp_up", "mlp_gate", "mlp_down", "convolution")
    return model, place(spec, small.places_in(model, *roles), np.random.default_rng(0))


def mlp(dtype: str = "float32") -> tuple[keras.Model, np.ndarray]:
    """An MLP of 4 x 6 x 5 features."""
    x = inputs = keras.Input((7, 4))
    x = keras.layers.Dense(6, activation="tanh", name="up", dtype=dtype)(x)
    x = keras.layers.Dense(5, activation="tanh", name="down", dtype=dtype)(x)
    return small.filled(keras.Model(inputs, x)), small.normal(small.BATCH, 7, 4)


def part_on(source: str | None, activation: str = "relu") -> list[Placed]:
    """A bottleneck of width 3 at the MLP's end."""
    taken = 5 if source is None else 4
    part = BottleneckPart("down", source, (taken, 5), 3, activation)
    values = {leaf.name: np.zeros(leaf.shape, np.float32) for leaf in part.leaves}
    return [Placed(part, {**values, "scaling": np.float32(0.7)})]


@pytest.mark.parametrize("activation", ["relu", "gelu", "linear"])
@pytest.mark.parametrize("source", [None, "up"])
def test_it_adds_two_layers_of_its_source_after_a_fused_activation(source, activation):
    model, x = mlp()
    placed = part_on(source, activation)
    values = small.drawn(placed)
    v = values["down"]
    h = np.asarray(model(x))
    hidden = (h if source is None else x) @ v["down"] + v["down_bias"]
    hidden = np.asarray(getattr(keras.activations, activation)(jnp.asarray(hidden)))
    expected = h + 0.7 * (hidden @ v["up"] + v["up_bias"])
    given = small.outputs(model, x, small.parts_of(placed), values)
    np.testing.assert_allclose(given, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("kind", "places"),
    [
        ("houlsby", {"self_attention/attention_output": None, "feedforward_output_dense": None}),
        ("pfeiffer", {"feedforward_output_dense": None}),
        ("parallel", {"feedforward_output_dense": f"{BLOCK}/feedforward_intermediate_dense"}),
    ],
)
def test_each_kind_sits_where_its_paper_puts_it(kind, places):
    _, placed = placed_in("llama", Bottleneck(kind=kind, reduction=2))
    found = {p.part.name: p.part.source for p in placed if p.part.name.startswith(f"{BLOCK}/")}
    assert found == {f"{BLOCK}/{name}": source for name, source in places.items()}
    assert len(placed) == 2 * len(places)
    assert {(p.part.features, p.part.width) for p in placed} == {((8, 8), 4)}


@pytest.mark.parametrize("kind", ["houlsby", "pfeiffer"])
@pytest.mark.parametrize("order", [1, -1])
def test_in_a_convolutional_network_it_follows_each_blocks_last_convolution(kind, order):
    places = small.places_in(small.resnet(), "convolution")
    assert "stack1_block0_0_conv" in places.targets  # a shortcut, which runs as late as others
    places = dataclasses.replace(places, targets=places.targets[::order])
    placed = place(Bottleneck(kind=kind), places, np.random.default_rng())
    names = [p.part.name for p in placed]
    assert names == ["stack0_block0_2_conv", "stack1_block0_2_conv"]
    assert {p.part.features for p in placed} == {(64, 64)}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("network", TRANSFORMERS)
def test_on_transformers_it_is_fresh_and_serves_an_adapter_an_example(network, kind):
    model, placed = placed_in(network, Bottleneck(kind=kind, reduction=2, activation="gelu"))
    small.check_fresh(model, placed)
    small.check_rows(model, small.inputs_of(model), placed)
    values = small.drawn(placed)
    inputs = small.inputs_of(model)
    moved = small.outputs(model, inputs, small.parts_of(placed), values)
    assert np.abs(moved - small.outputs(model, inputs)).max() > 1e-2


def test_on_a_convolutional_network_it_is_fresh_and_serves_an_adapter_an_example():
    model, placed = placed_in("resnet", Bottleneck())
    small.check_fresh(model, placed)
    small.check_rows(model, small.inputs_of(model), placed)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("network", ["bert", "vit"])
def test_it_works_before_the_residual_connection(network, kind):
    model, placed = placed_in(network, Bottleneck(kind=kind, scaling=0.5))
    values, weights = small.drawn(placed), small.weights_of(model)
    for name, own in values.items():
        # What does not depend on inputs is a shift of the layer's own bias.
        own["up"] = np.zeros_like(own["up"])
        weights[f"{name}/bias"] += 0.5 * own["up_bias"]
    inputs = small.inputs_of(model)
    given = small.outputs(model, inputs, small.parts_of(placed), values)
    expected = small.outputs(model, inputs, weights=weights)
    np.testing.assert_allclose(given, expected, rtol=1e-4, atol=1e-5)
    assert np.abs(given - small.outputs(model, inputs)).max() > 1e-2


@pytest.mark.parametrize("source", [None, "up"])
def test_gradients_equal_those_of_the_closed_form(source):
    model, x = mlp()
    placed = part_on(source, "tanh")
    values = small.drawn(placed)["down"]
    h = model(x)

    def closed(values: Any) -> jax.Array:
        taken = h if source is None else x
        hidden = jnp.tanh(taken @ values["down"] + values["down_bias"])
        return ((h + 0.7 * (hidden @ values["up"] + values["up_bias"])) ** 2).sum()

    def ours(values: Any) -> jax.Array:
        y = small.outputs(model, x, small.parts_of(placed), {"down": {**values, "scaling": 0.7}})
        return (y**2).sum()

    trained = {name: value for name, value in values.items() if name != "scaling"}
    expected = jax.grad(closed)(trained)
    for name, gradient in jax.grad(ours)(trained).items():
        np.testing.assert_allclose(gradient, expected[name], rtol=1e-4, atol=1e-4)


def test_the_second_layer_learns_from_the_first_step():
    model, x = mlp()
    layers = {layer.name: layer for layer in model.layers}
    places = Places(layers, ("up", "down"), {"up": "mlp_up", "down": "mlp_down"}, (("up", "down"),))
    placed = place(Bottleneck(reduction=1), places, np.random.default_rng(0))

    def loss(values: Any) -> jax.Array:
        return (small.outputs(model, x, small.parts_of(placed), values) ** 2).sum()

    gradients = jax.grad(loss)(small.begun(placed))["down"]
    assert np.any(gradients["up"] != 0)
    assert np.all(gradients["down"] == 0)


def test_on_a_bfloat16_network_its_own_values_stay_float32():
    model, x = mlp("bfloat16")
    placed = part_on("up")
    values = small.drawn(placed)

    def loss(values: Any) -> jax.Array:
        y = small.outputs(model, x, small.parts_of(placed), values)
        assert y.dtype == "bfloat16"
        return (y.astype("float32") ** 2).sum()

    assert {str(g.dtype) for g in jax.grad(loss)(values)["down"].values()} == {"float32"}


@pytest.mark.parametrize(
    ("reduction", "width"), [(2.0, 4), (3.0, 2), (8.0, 1), (100.0, 1), (0.5, 16)]
)
def test_the_width_is_a_share_of_the_features_and_at_least_one(reduction, width):
    _, placed = placed_in("vit", Bottleneck(reduction=reduction))
    assert {p.part.width for p in placed} == {width}
    assert {p.values["down"].shape for p in placed} == {(8, width)}


def test_targets_decide_which_blocks_have_one():
    places = small.places_in(small.llama(), "attention_output", "mlp_down")
    last = tuple(name for name in places.targets if name.startswith("transformer_layer_1/"))
    placed = place(
        Bottleneck(kind="houlsby"),
        dataclasses.replace(places, targets=last),
        np.random.default_rng(),
    )
    assert [p.part.name for p in placed] == list(last)


def test_it_cannot_be_merged():
    model, placed = placed_in("bert", Bottleneck())
    with pytest.raises(ModelError, match=r"'transformer_layer_0/.*' cannot be merged.*relu inside"):
        small.merged(model, placed, small.begun(placed))


def test_without_an_mlp_there_is_nothing_to_run_beside():
    with pytest.raises(ModelError, match="parallel bottleneck.*Set kind to 'pfeiffer'"):
        placed_in("resnet", Bottleneck(kind="parallel"))


def test_where_no_target_is_an_mlps_last_layer_there_is_no_place():
    with pytest.raises(ModelError, match="kind 'pfeiffer': none of the 2 blocks"):
        placed_in("bert", Bottleneck(), "attention_output")


def test_an_mlp_of_which_one_end_is_no_target_has_nothing_beside_it():
    with pytest.raises(ModelError, match=r"takes what an MLP takes, and here \[\] would belong"):
        placed_in("bert", Bottleneck(kind="parallel"), "mlp_down")


def test_adapters_of_one_spec_are_equal_parts_so_that_they_run_one_program():
    (_, one), (_, same) = (placed_in("bert", Bottleneck(kind="parallel")) for _ in range(2))
    _, other = placed_in("bert", Bottleneck(kind="parallel", activation="gelu"))
    parts = [tuple(small.parts_of(placed)) for placed in (one, same, other)]
    assert parts[0] == parts[1]
    assert hash(parts[0]) == hash(parts[1])
    assert parts[0] != parts[2]
