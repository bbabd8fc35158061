"""Layers whose kernels are packed: what is gone, what is kept, what they compute."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import jax
import jax.numpy as jnp
import keras
import numpy as np
import pytest

from tests.unit.methods import small
from tunekit.errors import ModelError
from tunekit.methods.intercept import intercept
from tunekit.methods.linear import before_activation, linear_form
from tunekit.methods.packing import MODES
from tunekit.methods.place_lora import place_lora
from tunekit.methods.quantize import (
    dequantized_kernel,
    is_quantized,
    quantization_residual,
    quantize_layers,
    quantize_structure,
    repacked,
    requantized,
)
from tunekit.methods.spec import LoRA
from tunekit.names import layer_names, structural_names

DENSE = small.DENSE_KINDS
keras_quantises = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
"""Keras' quantisers and savers read variables in a way that NumPy 2 deprecates."""
DTYPES = ("float32", "bfloat16", "mixed_bfloat16")


def of_kind(kind: str, dtype: str = "float32") -> tuple[keras.Model, Any, np.ndarray]:
    model, inputs = small.network_of(kind, dtype)
    return model, model.get_layer("target"), inputs


def live_bytes() -> int:
    gc.collect()
    return sum(array.nbytes for array in jax.live_arrays())


def wide(**options: Any) -> keras.Model:
    return small.one_layer(keras.layers.Dense(256, name="target", **options), 256)


def test_the_float_kernel_is_gone_from_memory():
    model = wide()
    layer = model.get_layer("target")
    kernel = weakref.ref(layer.kernel)
    before = live_bytes()
    report = quantize_layers(layer_names(model), "nf4")
    saved = before - live_bytes()
    assert kernel() is None
    assert report.bytes_before == 4 * 256 * 256
    assert saved == report.bytes_before - report.bytes_after
    assert report.bytes_after < report.bytes_before / 7


@pytest.mark.parametrize("mode", MODES)
def test_what_a_layer_held_as_a_kernel_it_holds_as_packed_variables(mode):
    model = wide()
    quantize_layers(layer_names(model), mode)
    names = ["codes", "scales"] + ["scale_units", "scale_mean"] * (mode != "int8")
    expected = ["target/bias", *(f"target/kernel_{name}" for name in names)]
    assert list(structural_names(model)) == expected
    assert [v.name for v in model.trainable_variables] == ["bias"]


@pytest.mark.parametrize("name", ["bert", "llama", "vit"])
def test_embeddings_and_norms_stay_float(name):
    model = small.NETWORKS[name]()
    before = structural_names(model)
    quantize_layers(layer_names(model), "nf4")
    after = structural_names(model)
    gone = [name for name in before if name not in after]
    assert gone and all(name.endswith("/kernel") for name in gone)
    kept = [name for name in after if name in before]
    assert all("float" in after[name].dtype or "seed" in name for name in kept)
    assert any("embedding" in name for name in kept)
    assert any(name.endswith(("scale", "gamma")) for name in kept)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", DENSE)
def test_a_packed_layer_computes_with_its_dequantised_kernel(kind, dtype):
    float_model, float_layer, inputs = of_kind(kind, dtype)
    model, layer, _ = of_kind(kind, dtype)
    quantize_layers(layer_names(model), "nf4")
    float_layer._kernel.assign(dequantized_kernel(layer))
    expected, outputs = float_model(inputs), model(inputs)
    assert outputs.dtype == expected.dtype
    tolerance = 1e-6 if dtype == "float32" else 2e-2
    np.testing.assert_allclose(
        *(np.asarray(x, np.float32) for x in (outputs, expected)), atol=tolerance, rtol=tolerance
    )


def test_scales_are_not_rounded_where_the_layer_computes_in_bfloat16():
    model, layer, inputs = of_kind("dense", "mixed_bfloat16")
    quantize_layers(layer_names(model), "int8")
    kernel = dequantized_kernel(layer).astype("bfloat16")
    expected = jnp.asarray(inputs, "bfloat16") @ kernel + jnp.asarray(layer.bias, "bfloat16")
    np.testing.assert_array_equal(*(np.asarray(x, "float32") for x in (model(inputs), expected)))


@pytest.mark.parametrize("kind", DENSE)
@pytest.mark.parametrize("mode", MODES)
def test_gradients_of_inputs_are_those_of_the_dequantised_kernel(kind, mode):
    float_model, float_layer, inputs = of_kind(kind)
    model, layer, _ = of_kind(kind)
    quantize_layers(layer_names(model), mode)
    float_layer._kernel.assign(dequantized_kernel(layer))

    def gradient(network: keras.Model) -> jax.Array:
        return jax.grad(lambda x: jnp.sum(jnp.square(network(x))))(jnp.asarray(inputs))

    np.testing.assert_allclose(gradient(model), gradient(float_model), rtol=2e-5, atol=1e-5)


def test_values_come_from_the_scope():
    model, layer, inputs = of_kind("dense")
    quantize_layers(layer_names(model), "nf4")
    own = structural_names(model)
    other = requantized(layer, 3 * dequantized_kernel(layer))
    mapping = [(own[f"target/{name}"], value) for name, value in other.items()]
    zero = [(own["target/bias"], jnp.zeros(6))]
    with keras.StatelessScope(state_mapping=mapping + zero):
        tripled = model(inputs)
    with keras.StatelessScope(state_mapping=zero):
        once = model(inputs)
    np.testing.assert_allclose(tripled, 3 * once, rtol=1e-3, atol=1e-3)


def test_an_interception_wraps_the_packed_call():
    model, layer, inputs = of_kind("activated")
    quantize_layers(layer_names(model), "int8")
    plain = jnp.asarray(inputs) @ dequantized_kernel(layer) + jnp.asarray(layer.bias)
    before = model(inputs)
    with intercept({layer: lambda call: before_activation(layer, call, lambda x, y: y + 1)}):
        outputs = model(inputs)
    np.testing.assert_allclose(outputs, jnp.tanh(plain + 1), atol=1e-6)
    np.testing.assert_array_equal(model(inputs), before)


def test_the_kernel_reads_as_the_dequantised_array():
    model, layer, _ = of_kind("heads_in", "bfloat16")
    form = linear_form("target", layer)
    quantize_layers(layer_names(model), "nf4")
    assert linear_form("target", layer) == form
    expected = dequantized_kernel(layer).astype("bfloat16")
    assert jnp.asarray(layer.kernel).dtype == "bfloat16"
    assert (jnp.asarray(layer.kernel) == expected).all()
    assert np.asarray(layer.kernel, np.float32).shape == (2, 2, 6)


@keras_quantises
def test_keras_saves_the_dequantised_kernel(tmp_path):
    model = small.one_layer(keras.layers.Dense(6, activation="tanh", name="target"), 4)
    inputs = small.normal(3, 4)
    quantize_layers(layer_names(model), "nf4")
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_allclose(loaded(inputs), model(inputs), atol=1e-6)


@pytest.mark.parametrize("mode", MODES)
def test_a_structure_takes_the_values_of_a_quantised_network(mode):
    source, target = small.llama(), small.llama()
    quantize_layers(layer_names(source), mode)
    quantize_structure(layer_names(target), mode)
    values, places = structural_names(source), structural_names(target)
    assert list(values) == list(places)
    for name, variable in values.items():
        assert (places[name].shape, places[name].dtype) == (variable.shape, variable.dtype)
        places[name].assign(variable.value)
    inputs = small.inputs_of(source)
    np.testing.assert_array_equal(source(inputs), target(inputs))


@pytest.mark.parametrize("kind", DENSE)
@pytest.mark.parametrize("mode", MODES)
def test_the_residual_is_what_packing_takes_from_the_layer(kind, mode):
    model, layer, _ = of_kind(kind)
    form = linear_form("target", layer)
    matrix = form.matrix(jnp.asarray(layer.kernel))
    report = quantize_layers(layer_names(model), mode)
    quantised, residual = quantization_residual(matrix, mode)
    np.testing.assert_array_equal(form.kernel(quantised), dequantized_kernel(layer))
    np.testing.assert_allclose(quantised + residual, matrix, atol=1e-7)
    lost = float(jnp.linalg.norm(residual) / jnp.linalg.norm(matrix))
    assert report.layers[0].error == pytest.approx(lost, rel=1e-5)


def test_new_kernels_are_packed_and_all_else_passes_through():
    model = wide()
    layers = layer_names(model)
    quantize_layers(layers, "nf4")
    kernel, bias = small.normal(256, 256), small.normal(256)
    values = repacked(layers, {"target/kernel": kernel, "target/bias": bias, "other/kernel": bias})
    assert values.pop("target/bias") is bias and values.pop("other/kernel") is bias
    own = structural_names(model)
    for name, value in values.items():
        own[name].assign(value)
    error = jnp.linalg.norm(dequantized_kernel(layers["target"]) - kernel)
    assert 0 < error < 0.15 * np.linalg.norm(kernel)
    leaves = {name.removeprefix("target/"): value for name, value in values.items()}
    np.testing.assert_array_equal(
        dequantized_kernel(layers["target"], leaves), dequantized_kernel(layers["target"])
    )


def test_new_kernels_are_rounded_by_the_seed_and_each_layer_by_numbers_of_its_own():
    model = wide()
    quantize_layers(layer_names(model), "int8")
    layer = layer_names(model)["target"]
    kernel = small.normal(256, 256)

    def codes(seed: int) -> list[np.ndarray]:
        weights = {"target/kernel": kernel, "twin/kernel": kernel}
        packed = repacked({"target": layer, "twin": layer}, weights, seed=seed)
        return [np.asarray(packed[f"{name}/kernel_codes"]) for name in ("target", "twin")]

    first, again, other = codes(0), codes(0), codes(1)
    np.testing.assert_array_equal(first, again)
    assert (first[0] != first[1]).mean() > 0.1
    assert (first[0] != other[0]).mean() > 0.1


def test_in_the_mean_over_seeds_an_update_smaller_than_a_step_is_kept():
    """Nearest rounding leaves nothing of it."""
    model = wide()
    quantize_layers(layer_names(model), "int8")
    layers = layer_names(model)
    kernel = dequantized_kernel(layers["target"])
    steps = jnp.abs(kernel).max(axis=0) / 127
    # Away from the largest weights, which decide on the steps.
    update = jnp.where(jnp.abs(kernel) < 100 * steps, 0.2 * steps, 0)

    def kept(values: dict[str, Any]) -> float:
        leaves = {name.removeprefix("target/"): value for name, value in values.items()}
        change = dequantized_kernel(layers["target"], leaves) - kernel
        return float(jnp.sum(change * update) / jnp.sum(update * update))

    weights = {"target/kernel": kernel + update}
    assert abs(kept(requantized(layers["target"], kernel + update))) < 1e-3
    # Of 65,536 weights: 0.01 is more than one standard deviation of the mean of sixteen.
    found = [kept(repacked(layers, weights, seed=seed)) for seed in range(16)]
    assert np.mean(found) == pytest.approx(1, abs=0.01)


def test_a_report_prints_what_was_saved():
    model = wide(use_bias=False)
    assert str(quantize_layers(layer_names(model), "int8")) == (
        "int8: 1 kernels, 0.3 -> 0.1 MB, error at most 0.7% (target)"
    )
    assert is_quantized(model.get_layer("target"))


def test_a_subclass_with_a_call_of_its_own_is_left_alone():
    class Doubled(keras.layers.Dense):
        def call(self, inputs: Any, training: Any = None) -> Any:
            return 2 * super().call(inputs)

    model = small.one_layer(Doubled(4, name="own"), 4)
    with pytest.raises(ModelError, match="none of; it has Doubled, InputLayer"):
        quantize_layers(layer_names(model), "int8")


def test_an_unknown_mode_is_answered_with_the_nearest():
    with pytest.raises(ModelError, match=r"quantize='nf' is not one of.* Did you mean 'nf4'\?"):
        quantize_layers(layer_names(wide()), "nf")  # type: ignore[arg-type]


def test_convolutions_alone_cannot_be_quantised():
    model = small.one_layer(keras.layers.Conv2D(2, 3), 5, 5, 1)
    with pytest.raises(ModelError, match="needs Dense or EinsumDense layers.*Leave quantize out"):
        quantize_layers(layer_names(model), "nf4")


def test_a_layer_without_weights_cannot_be_quantised():
    with pytest.raises(ModelError, match="'up' is not built; call the network on an example"):
        quantize_layers({"up": keras.layers.Dense(2)}, "nf4")


def test_a_quantised_layer_is_not_quantised_again():
    model = wide()
    quantize_layers(layer_names(model), "nf4")
    with pytest.raises(ModelError, match="'target' is quantised already; load the float model"):
        quantize_layers(layer_names(model), "int8")


@keras_quantises
def test_what_keras_quantised_is_not_quantised_again():
    model = wide()
    model.get_layer("target").quantize("int4")
    with pytest.raises(ModelError, match="quantised by Keras as 'int4' already"):
        quantize_layers(layer_names(model), "int8")


def test_a_layer_with_lora_by_keras_is_refused():
    model = wide()
    model.get_layer("target").enable_lora(2)
    with pytest.raises(ModelError, match="'target' has LoRA by Keras' enable_lora"):
        quantize_layers(layer_names(model), "int8")


def test_a_kernel_that_is_not_finite_stops_all_before_any_changes():
    layers = {name: wide().get_layer("target") for name in ("good", "broken")}
    layers["broken"].kernel.assign(layers["broken"].kernel.value.at[3, 5].set(jnp.inf))
    with pytest.raises(ModelError, match="kernel of 'broken' holds NaN or infinity"):
        quantize_layers(layers, "nf4")
    assert not is_quantized(layers["good"])


def test_a_float_layer_has_no_dequantised_kernel():
    with pytest.raises(ModelError, match="layer 'target' is not quantised"):
        dequantized_kernel(wide().get_layer("target"))


@pytest.mark.parametrize("dora", [False, True])
def test_lora_sits_on_packed_layers_and_merges_into_them(dora):
    model = small.llama()
    layers = {"": model, **layer_names(model)}
    quantize_layers(layers, "int8")
    places = small.places_in(model, "query", "value", "mlp_down")
    placed = place_lora(LoRA(rank=2, dora=dora), places, np.random.default_rng(0))
    small.check_fresh(model, placed)
    values, inputs = small.drawn(placed), small.inputs_of(model)
    beside = small.outputs(model, inputs, small.parts_of(placed), values)
    own = small.weights_of(model)
    kernels: dict[str, Any] = {}
    for part in small.parts_of(placed):
        kernels |= part.merged(layers, own, values[part.name])
    within = small.outputs(model, inputs, weights=repacked(layers, kernels))
    moved = np.linalg.norm(beside - small.outputs(model, inputs))
    assert np.linalg.norm(within - beside) < 0.03 * moved
