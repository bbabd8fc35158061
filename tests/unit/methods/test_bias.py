"""What adapters add to biases: on every layer that has one, merged exactly."""

from __future__ import annotations

import functools

import jax
import keras
import numpy as np
import pytest

from tests.unit.methods import small
from tunekit.errors import ModelError
from tunekit.methods.bias import biased, place
from tunekit.methods.part import Placed, Places
from tunekit.methods.place_lora import place_lora
from tunekit.methods.spec import LoRA

_LAYERS = keras.layers
MAKERS = {
    "dense": (functools.partial(_LAYERS.Dense, 6, activation="tanh"), (5, 4)),
    "einsum": (
        functools.partial(_LAYERS.EinsumDense, "abc,cde->abde", (5, 2, 3), bias_axes="de"),
        (5, 4),
    ),
    "shared": (
        functools.partial(_LAYERS.EinsumDense, "abc,cde->abde", (5, 2, 3), bias_axes="d"),
        (5, 4),
    ),
    "convolution": (functools.partial(_LAYERS.Conv2D, 6, 3, activation="relu"), (5, 5, 4)),
    "depthwise": (functools.partial(_LAYERS.DepthwiseConv2D, 3, activation="relu"), (5, 5, 4)),
    "layer_norm": (_LAYERS.LayerNormalization, (5, 4)),
    "group_norm": (functools.partial(_LAYERS.GroupNormalization, 2), (5, 4)),
    "batch_norm": (_LAYERS.BatchNormalization, (5, 4)),
}


def network_of(kind: str, dtype: str = "float32") -> tuple[keras.Model, np.ndarray]:
    make, shape = MAKERS[kind]
    model = small.one_layer(make(name="target", dtype=dtype), *shape)
    return model, small.normal(small.BATCH, *shape)


def placed_on(model: keras.Model) -> list[Placed]:
    return place(Places({"target": model.get_layer("target")}, (), {}, ()), ["target"])


@pytest.mark.parametrize("kind", MAKERS)
def test_it_does_what_a_changed_bias_does(kind):
    model, x = network_of(kind)
    placed = placed_on(model)
    values = small.drawn(placed)
    values["target"]["bias_scaling"] = np.float32(0.5)
    (name,) = (n for n in small.weights_of(model) if n.endswith(("/bias", "/beta")))
    changed = small.weights_of(model)[name] + 0.5 * values["target"]["bias"]
    given = small.outputs(model, x, small.parts_of(placed), values)
    expected = small.outputs(model, x, weights={name: changed})
    np.testing.assert_allclose(given, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(small.merged(model, placed, values)[name], changed)


@pytest.mark.parametrize("kind", MAKERS)
def test_a_bias_an_example_equals_one_at_a_time(kind):
    model, x = network_of(kind)
    small.check_rows(model, x, placed_on(model))


@pytest.mark.parametrize("network", small.NETWORKS)
def test_every_bias_of_a_network_is_found_fresh_and_merged(network):
    model = small.NETWORKS[network]()
    places = small.places_in(model)
    own = [name for name in places.weights if name.endswith(("/bias", "/beta"))]
    placed = place(places, biased(places.layers))
    assert [f"{p.part.name}/{p.part.variable}" for p in placed] == own
    small.check_fresh(model, placed)
    if own:
        small.check_merged(model, small.inputs_of(model), placed)


def test_layers_without_a_bias_have_no_part():
    model = small.llama()
    places = small.places_in(model, "query")
    assert biased(places.layers) == []
    assert place(places, places.targets) == []


def test_the_gradient_is_the_sum_over_all_positions():
    model, x = network_of("einsum")
    placed = placed_on(model)
    values = small.drawn(placed)["target"]

    def loss(bias: jax.Array) -> jax.Array:
        given = {"target": {**values, "bias": bias}}
        return (small.outputs(model, x, small.parts_of(placed), given) ** 2).sum()

    y = small.outputs(model, x, small.parts_of(placed), {"target": values})
    expected = 2 * np.asarray(y).sum((0, 1))
    np.testing.assert_allclose(jax.grad(loss)(values["bias"]), expected, rtol=1e-4)


@pytest.mark.parametrize("outermost", ["lora", "bias"])
def test_beside_a_lora_both_come_before_the_activation_whichever_is_outermost(outermost):
    model, x = network_of("dense")
    places = Places({"target": model.get_layer("target")}, ("target",), {}, ())
    lora, (bias,) = place_lora(LoRA(rank=2), places, np.random.default_rng(0)), placed_on(model)
    (drawn_lora,) = small.drawn(lora).values()
    (drawn_bias,) = small.drawn([bias]).values()
    values = {"target": drawn_lora | drawn_bias}
    parts = [lora[0].part, bias.part]
    given = small.outputs(model, x, parts if outermost == "bias" else parts[::-1], values)
    kernel, own = small.weights_of(model).values()
    update = drawn_lora["scaling"] * (x @ drawn_lora["lora_a"] @ drawn_lora["lora_b"])
    expected = np.tanh(x @ kernel + update + own + drawn_bias["bias_scaling"] * drawn_bias["bias"])
    np.testing.assert_allclose(given, expected, rtol=1e-4, atol=1e-5)


def test_on_a_bfloat16_network_it_stays_float32():
    model, x = network_of("layer_norm", "bfloat16")
    placed = placed_on(model)
    values = small.drawn(placed)
    assert small.outputs(model, x, small.parts_of(placed), values).dtype == "bfloat16"
    assert small.merged(model, placed, values)["target/beta"].dtype == "float32"


@pytest.mark.parametrize(
    ("layer", "shape", "why"),
    [
        (_LAYERS.LayerNormalization(axis=1, name="target"), (5, 4), r"over axes \[1\]"),
        (_LAYERS.BatchNormalization(axis=1, name="target"), (5, 4), r"over axes \[1\]"),
        (_LAYERS.LayerNormalization(axis=(1, 2), name="target"), (5, 4), r"over axes \[1, 2\]"),
        (
            _LAYERS.DepthwiseConv1D(2, data_format="channels_first", name="target"),
            (5, 4),
            "channels come first",
        ),
        (_LAYERS.Conv2DTranspose(2, 2, name="target"), (5, 5, 4), "is not known"),
    ],
)
def test_a_bias_that_is_not_simply_added_last_is_refused(layer, shape, why):
    layer.build((None, *shape))
    places = Places({"target": layer}, (), {}, ())
    with pytest.raises(ModelError, match=f"bias of 'target', a {type(layer).__name__}, .*{why}"):
        place(places, ["target"])
