"""IA3: features scaled before activations, on every kind of layer, and in its weights."""

from __future__ import annotations

import jax
import keras
import numpy as np
import pytest

from tests.unit.methods import small
from tunekit.errors import ModelError
from tunekit.methods.ia3 import IA3Part, place
from tunekit.methods.linear import linear_form
from tunekit.methods.part import Places
from tunekit.methods.spec import IA3

LINEAR = ["dense", "heads_out", "heads_first", "grouped"]
TARGETS = {
    **dict.fromkeys(("bert", "llama", "vit"), ("key", "value", "mlp_down")),
    "resnet": ("convolution",),
}


def placed_on(model: keras.Model, role: str) -> list:
    """IA3 on the one layer of a network, as if it had that role."""
    places = Places({"target": model.get_layer("target")}, ("target",), {"target": role}, ())
    return place(IA3(), places, np.random.default_rng())


def placed_in(name: str) -> tuple[keras.Model, list]:
    model = small.NETWORKS[name]()
    places = small.places_in(model, *TARGETS[name])
    return model, place(IA3(), places, np.random.default_rng())


def shaped(scale: np.ndarray, like: np.ndarray) -> np.ndarray:
    """The vector over the last axes of an array, as many as it covers."""
    axes = 1
    while np.prod(like.shape[-axes:]) < scale.size:
        axes += 1
    return scale.reshape(like.shape[-axes:])


def test_outputs_are_scaled_with_their_bias_before_a_fused_activation():
    model, x = small.network_of("activated")
    placed = placed_on(model, "key")
    values = small.drawn(placed)
    kernel, bias = small.weights_of(model).values()
    expected = np.tanh(values["target"]["scale"] * (x @ kernel + bias))
    given = small.outputs(model, x, small.parts_of(placed), values)
    np.testing.assert_allclose(given, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", LINEAR)
def test_scaled_outputs_are_the_networks_own_times_the_vector(kind):
    model, x = small.network_of(kind)
    placed = placed_on(model, "value")
    values = small.drawn(placed)
    plain = np.asarray(model(x))
    expected = plain * shaped(values["target"]["scale"], plain)
    given = small.outputs(model, x, small.parts_of(placed), values)
    np.testing.assert_allclose(given, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", small.KINDS)
def test_an_mlps_last_layer_is_scaled_at_its_inputs(kind):
    model, x = small.network_of(kind)
    placed = placed_on(model, "mlp_down")
    values = small.drawn(placed)
    given = small.outputs(model, x, small.parts_of(placed), values)
    expected = model(x * shaped(values["target"]["scale"], x))
    np.testing.assert_allclose(given, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("scaling", "factor"), [(0.0, 1.0), (0.5, 1.2), (1.0, 1.4), (2.0, 1.8)])
def test_scaling_goes_from_the_plain_layer_through_the_vector(scaling, factor):
    model, x = small.network_of("dense")
    (placed,) = placed_on(model, "key")
    values = {"scale": np.full(6, 1.4, np.float32), "scaling": np.float32(scaling)}
    given = small.outputs(model, x, [placed.part], {"target": values})
    np.testing.assert_allclose(given, factor * model(x), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("network", small.NETWORKS)
def test_a_fresh_adapter_changes_no_bit(network):
    model, placed = placed_in(network)
    small.check_fresh(model, placed)


def test_a_fresh_adapter_changes_no_bit_at_any_strength():
    model, x = small.network_of("heads_out")
    placed = placed_on(model, "key")
    values = small.begun(placed)
    values["target"]["scaling"] = np.float32(0.3)
    given = small.outputs(model, x, small.parts_of(placed), values)
    np.testing.assert_array_equal(given, model(x))


@pytest.mark.parametrize("role", ["key", "mlp_down"])
@pytest.mark.parametrize("kind", small.KINDS)
def test_merged_into_a_layer_it_does_the_same(kind, role):
    model, x = small.network_of(kind)
    small.check_merged(model, x, placed_on(model, role))


@pytest.mark.parametrize("role", ["key", "mlp_down"])
@pytest.mark.parametrize("kind", small.KINDS)
def test_an_adapter_an_example_equals_one_at_a_time(kind, role):
    model, x = small.network_of(kind)
    small.check_rows(model, x, placed_on(model, role))


@pytest.mark.parametrize("network", small.NETWORKS)
def test_whole_networks_merge_and_serve_an_adapter_an_example(network):
    model, placed = placed_in(network)
    inputs = small.inputs_of(model)
    small.check_merged(model, inputs, placed)
    small.check_rows(model, inputs, placed)


def test_the_gradient_is_that_of_the_closed_form():
    model, x = small.network_of("heads_out")
    (placed,) = placed_on(model, "key")
    values = small.drawn([placed])["target"]

    def loss(scale: jax.Array) -> jax.Array:
        given = {"target": {**values, "scale": scale}}
        return (small.outputs(model, x, [placed.part], given) ** 2).sum()

    plain = np.asarray(model(x)).reshape(-1, 6)
    expected = 2 * values["scale"] * (plain**2).sum(0)
    np.testing.assert_allclose(jax.grad(loss)(values["scale"]), expected, rtol=1e-4)


def test_in_bfloat16_a_small_step_of_the_vector_is_felt():
    model, x = small.network_of("dense", "bfloat16")
    (placed,) = placed_on(model, "key")
    values = {"scale": np.full(6, 1.003, np.float32), "scaling": np.float32(1)}
    given = small.outputs(model, x, [placed.part], {"target": values})
    plain = np.asarray(model(x))
    expected = (plain.astype(np.float32) * np.float32(1.003)).astype(plain.dtype)
    assert given.dtype == "bfloat16"
    np.testing.assert_array_equal(given, expected)
    assert np.any(given != plain)


def test_keys_values_and_the_mlps_hidden_features_have_vectors_of_their_size():
    _, placed = placed_in("llama")
    block = "transformer_layer_0"
    sizes = {p.part.name: (p.part.side, p.part.features) for p in placed}
    assert len(sizes) == 6
    assert sizes[f"{block}/self_attention/key"] == ("outputs", 4)
    assert sizes[f"{block}/self_attention/value"] == ("outputs", 4)
    assert sizes[f"{block}/feedforward_output_dense"] == ("inputs", 12)


def test_an_embedding_is_refused():
    layer = keras.layers.Embedding(5, 3)
    layer.build((None, None))
    places = Places({"words": layer}, ("words",), {"words": "embedding"}, ())
    with pytest.raises(ModelError, match=r"impossible on 'words' \(Embedding\).*targets: '!words'"):
        place(IA3(), places, np.random.default_rng())


def test_a_bias_that_outputs_share_cannot_be_merged():
    layer = keras.layers.EinsumDense("ab,bcd->acd", (2, 3), bias_axes="d", name="target")
    model = small.one_layer(layer, 4)
    placed = placed_on(model, "key")
    with pytest.raises(ModelError, match=r"its 6 outputs share a bias of shape \(3,\)"):
        small.merged(model, placed, small.drawn(placed))


def test_a_quantised_kernel_cannot_be_merged():
    layer = keras.layers.Dense(3)
    layer.build((None, 4))
    part = IA3Part("target", linear_form("target", layer), "outputs")
    values = {"scale": np.ones(3, np.float32), "scaling": np.ones((), np.float32)}
    with pytest.raises(ModelError, match="'target/kernel', which is int8"):
        part.merged({"target": layer}, {"target/kernel": np.ones((4, 3), np.int8)}, values)
