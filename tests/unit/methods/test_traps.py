"""The traps of LoRA in Keras, each a fact that was measured, and that none of them is here.

K1 to K8 are facts of Keras' own LoRA, I1 to I5 of interception. Beside these: default targets where
Keras selects none (tests of targets' families), and layers that Keras itself has quantised (tests
of training on quantised kernels).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import keras
import numpy as np
import pytest
import safetensors.numpy

from tests.unit.methods import small, texts
from tunekit.errors import ModelError
from tunekit.methods.attach import attach
from tunekit.methods.intercept import intercept
from tunekit.methods.linear import linear_form
from tunekit.methods.part import Places
from tunekit.methods.quantize import is_quantized
from tunekit.methods.spec import LoRA
from tunekit.models.forward import Forward
from tunekit.models.hub import keras_hub
from tunekit.models.loading import load_model
from tunekit.models.model import Model
from tunekit.models.trainable import resolve_trainable
from tunekit.names import layer_names, structural_names

TOKENS = [[1, 2, 3, 4], [5, 6, 7, 8]]
BATCH = {"token_ids": np.array(TOKENS, np.int32), "padding_mask": np.ones((2, 4), np.int32)}


def llama() -> Model:
    return load_model(keras_hub().models.LlamaCausalLM(texts.NETWORKS["llama"]()))


def descend(model: Model, steps: int = 1, rate: float = 0.5) -> None:
    """Gradient steps of the active adapters towards the token 3."""
    forward = model.forward()
    trains = [name for name in model.weight_names() if name.startswith("adapters/")]

    @jax.jit
    def gradient(own: Any, values: Any) -> Any:
        def loss(own: Any) -> Any:
            outputs: Any = forward({**values, **own}, BATCH, training=False)[0]
            return -jax.nn.log_softmax(outputs)[..., 3].mean()

        return jax.grad(loss)(own)

    for _ in range(steps):
        values = forward.values()
        own = {name: values[name] for name in trains}
        gradients = gradient(own, values)
        forward.assign({name: own[name] - rate * gradients[name] for name in trains})


def test_a_query_over_heads_has_two_factors_over_all_of_its_outputs():
    """K2: 36,864 numbers for 512 x 32 x 128 at rank 8, where Keras' own LoRA has 132,096."""
    layer = keras.layers.EinsumDense("btd,dnh->btnh", (None, 32, 128), name="query")
    layer.build((None, None, 512))
    adapter = attach(LoRA(rank=8), Places({"query": layer}, ("query",), {"query": "query"}, ()))
    assert adapter.parameters == 36_864


def products(jaxpr: Any) -> Iterator[tuple[int, ...]]:
    """Shapes that the matrix products of a traced program put out."""
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            yield tuple(equation.outvars[0].aval.shape)
        for value in equation.params.values():
            inner = getattr(value, "jaxpr", None)
            if inner is not None:
                yield from products(inner)


def test_the_backward_pass_has_no_gradient_of_a_kernel():
    """K3: W + s A B in the forward pass pays for a full dW, like full fine-tuning."""
    network = small.one_layer(keras.layers.Dense(48, name="target"), 64)
    layers = {"": network, **layer_names(network)}
    adapter = attach(LoRA(rank=2), Places(layers, ("target",), {"target": "linear"}, ()))
    forward = Forward.of(network, adapters={"adapters/a": adapter})
    values = forward.values()

    def shapes(*trains: str) -> set[tuple[int, ...]]:
        def loss(own: Any) -> Any:
            outputs: Any = forward({**values, **own}, jnp.ones((7, 64)), training=True)[0]
            return jnp.sum(outputs**2)

        return set(products(jax.make_jaxpr(jax.grad(loss))({n: values[n] for n in trains}).jaxpr))

    of_kernel = {(64, 48), (48, 64)}
    assert shapes("target/kernel") & of_kernel
    assert not shapes(*(f"adapters/a/target/lora_{x}" for x in "ab")) & of_kernel


def test_after_a_reload_alpha_is_what_it_was_and_training_goes_on(tmp_path):
    """K4: with Keras alpha 32 came back as 4, and further epochs changed nothing."""
    model = llama().add_adapter("a", LoRA(rank=2, alpha=32))
    descend(model, steps=2)
    trained = model.logits(TOKENS)
    model.save_adapter(tmp_path / "a")
    loaded = llama().load_adapter(tmp_path / "a")
    ((adapter, _),) = loaded.adapters.acting
    assert isinstance(adapter.spec, LoRA) and adapter.spec.alpha == 32
    np.testing.assert_array_equal(loaded.logits(TOKENS), trained)
    before = {name: np.array(v.value) for name, v in adapter.variables.items()}
    descend(loaded)
    descend(model)
    still = [n for n, v in adapter.variables.items() if np.array_equal(before[n], v.value)]
    assert all(name.endswith("/scaling") for name in still)
    np.testing.assert_array_equal(loaded.logits(TOKENS), model.logits(TOKENS))


@pytest.mark.parametrize("flags", [[False], [False, True]])
def test_trainable_flags_neither_free_a_kernel_nor_stop_an_adapter(flags):
    """K5: ``layer.trainable = False; = True`` revives a frozen kernel in Keras."""
    model, plain = (llama().add_adapter("a", LoRA(rank=2)) for _ in range(2))
    for flag in flags:
        for layer in model.keras._flatten_layers():
            layer.trainable = flag
    trains = resolve_trainable("all", model, LoRA(rank=2))
    assert trains == resolve_trainable("all", plain, LoRA(rank=2))
    assert all(name.startswith("adapters/a/") for name in trains)
    descend(model)
    descend(plain)
    np.testing.assert_array_equal(model.logits(TOKENS), plain.logits(TOKENS))


def test_biases_of_adapted_layers_do_not_train_unless_asked():
    """K6: Keras trains them, and does not save them."""
    body = texts.NETWORKS["gpt2"]()
    model = load_model(body, labels=["no", "yes"]).add_adapter("a", LoRA(rank=2))
    trains = resolve_trainable("all", model, LoRA(rank=2))
    leaves = {name.rpartition("/")[2] for name in trains if not name.startswith("heads/")}
    assert leaves == {"lora_a", "lora_b"}


def test_a_file_holds_names_and_no_indices(tmp_path):
    """K6: Keras saves LoRA by the index of a layer; here it comes back to the second block."""
    model = llama().add_adapter("a", LoRA(rank=2, within="last 1"))
    descend(model, steps=2)
    model.save_adapter(tmp_path / "a")
    tensors = safetensors.numpy.load_file(tmp_path / "a" / "adapter_model.safetensors")
    projections = {name.split(".lora_")[0].split("model.")[-1] for name in tensors}
    assert projections == {f"layers.1.self_attn.{x}_proj" for x in "qv"}
    loaded = llama().load_adapter(tmp_path / "a")
    assert [p.name for p in loaded.adapters["a"].adapter.parts] == [
        f"backbone/transformer_layer_1/self_attention/{x}" for x in ("query", "value")
    ]


def test_a_backbone_of_int8_keeps_its_embedding_and_adapters_their_gradient():
    """K7: over Keras' int8 table in reverse gradients are noise: a cosine of 0.09."""
    gradients = []
    for mode in (None, "int8"):
        model = llama().add_adapter("a", LoRA(rank=2))
        if mode is not None:
            model.quantize(mode)
            packed = {n for n, x in layer_names(model.keras).items() if is_quantized(x)}
            assert packed and not any("embedding" in name for name in packed)
        before = model.forward().values()
        descend(model)
        after = model.forward().values()
        moves = [after[n] - before[n] for n in after if n.endswith(("lora_a", "lora_b"))]
        gradients.append(np.concatenate([np.ravel(x) for x in moves]))
    cosine = gradients[0] @ gradients[1] / np.prod([np.linalg.norm(g) for g in gradients])
    assert cosine > 0.99


def test_an_adapter_is_no_part_of_the_keras_model():
    """K8: a sublayer would be dropped by a ``.keras`` file without a word."""
    model = llama()
    before = list(structural_names(model.keras)), model.keras._flatten_layers()
    descend(model.add_adapter("a", "lora"))
    assert (list(structural_names(model.keras)), model.keras._flatten_layers()) == before


def test_a_fused_activation_comes_after_the_update():
    """I1: ``tanh(x W + b + s x A B)``, and not ``tanh(x W + b) + s x A B``."""
    network, x = small.network_of("activated")
    layer: Any = layer_names(network)["target"]
    adapter = attach(LoRA(rank=2), Places({"target": layer}, ("target",), {"target": "linear"}, ()))
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(4, 2)), rng.normal(size=(2, 6))
    values = {"target/lora_a": a, "target/lora_b": b, "target/scaling": np.float32(0.7)}
    given = {name: jnp.asarray(value, "float32") for name, value in values.items()}
    with intercept(adapter.wraps({"target": layer}, given, training=False)):
        outputs = network(x)
    expected = np.tanh(x @ np.asarray(layer.kernel) + np.asarray(layer.bias) + 0.7 * x @ a @ b)
    np.testing.assert_allclose(outputs, expected, atol=1e-5)


@pytest.mark.parametrize("equation", ["btd,dnh->bnth", "bdt,dh->bth", "btnd,ndh->btnh"])
def test_an_equation_that_is_no_product_of_flat_inputs_is_refused(equation):
    """I2: flattening holds where summed axes trail the inputs, and new ones the outputs."""
    sizes = {"b": None, "t": 5, "d": 4, "n": 2, "h": 3}
    inputs, _, outputs = equation.replace("->", ",").split(",")
    shape = tuple(sizes[axis] for axis in outputs[1:])
    layer = keras.layers.EinsumDense(equation, shape, name="odd")
    layer.build(tuple(sizes[axis] for axis in inputs))
    with pytest.raises(ModelError, match="'odd' is a EinsumDense.*impossible.*does not sum over"):
        linear_form("odd", layer)


def test_after_an_error_in_a_pass_no_call_is_intercepted():
    """I3: what stays intercepted would be in every later program."""
    model = llama().add_adapter("a", LoRA(rank=2))
    expected = model.logits(TOKENS)
    descend(model)
    with pytest.raises(Exception, match="padding_mask|Missing|structure"):
        model.apply({"token_ids": BATCH["token_ids"]})
    layers = model.keras._flatten_layers()
    assert not [layer.name for layer in layers if {"call", "quantized_call"} & vars(layer).keys()]
    with model.adapters_disabled():
        np.testing.assert_array_equal(model.logits(TOKENS), expected)


def test_no_program_keeps_an_adapter_that_acted_when_it_was_compiled():
    """I4: ``predict`` and ``generate`` compiled inside of an interception keep it for good."""
    model = llama().add_adapter("a", LoRA(rank=2))
    descend(model)
    with_a = model.logits(TOKENS)
    predicted = model.keras.predict(BATCH, verbose=0)
    model.add_adapter("b", LoRA(rank=2), seed=1)
    fresh = model.logits(TOKENS)
    np.testing.assert_allclose(predicted, fresh, rtol=1e-5, atol=1e-5)
    assert np.abs(with_a - fresh).max() > 1e-3
    np.testing.assert_array_equal(model.set_adapter("a").logits(TOKENS), with_a)
    np.testing.assert_array_equal(model.keras.predict(BATCH, verbose=0), predicted)


def test_a_merged_model_gives_the_logits_of_the_intercepted_one():
    """I5: to 1.5e-6 where it was measured; here with an embedding that is the head as well."""
    model = llama().add_adapter("a", LoRA(rank=2, targets="linear, embeddings"))
    descend(model, steps=2)
    apart = model.logits(TOKENS)
    np.testing.assert_allclose(model.merge().logits(TOKENS), apart, rtol=1e-5, atol=5e-6)
