"""Training on packed kernels: what is kept in memory, and what the gradients are worth."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import keras
import numpy as np
import pytest

from tests.unit.methods import small
from tunekit.errors import ModelError
from tunekit.methods.intercept import Wrap, intercept
from tunekit.methods.quantize import (
    check_keras_quantization,
    dequantized_kernel,
    quantize_layers,
)
from tunekit.methods.quantized_matmul import PackedForm, packed_product
from tunekit.models.hub import keras_hub
from tunekit.models.initialisation import without_values
from tunekit.names import layer_names, structural_names

WIDTH, DEPTH = 256, 6
KERNEL = 4 * WIDTH * WIDTH
"""Bytes of one unpacked kernel."""
FORM = PackedForm("nf4", "...i,io->...o", (WIDTH, WIDTH))

keras_quantises = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

Product = Callable[[PackedForm, jax.Array, Mapping[str, jax.Array]], jax.Array]


def stack() -> list[dict[str, jax.Array]]:
    return [FORM.pack(jnp.asarray(small.normal(WIDTH, WIDTH, seed=i) / 16)) for i in range(DEPTH)]


def plain_product(form: PackedForm, x: jax.Array, packed: Mapping[str, jax.Array]) -> jax.Array:
    return x @ form.kernel(packed)


def loss(x: jax.Array, packed: list[dict[str, jax.Array]], product: Product) -> jax.Array:
    for kernel in packed:
        x = jnp.tanh(product(FORM, x, kernel))
    return jnp.sum(x)


def temporary_bytes(function: Callable[..., Any], *arguments: Any) -> int:
    return jax.jit(function).lower(*arguments).compile().memory_analysis().temp_size_in_bytes


def gradient(product: Any = packed_product) -> Callable[..., jax.Array]:
    return jax.grad(lambda x, packed: loss(x, packed, product))


def test_a_step_holds_one_unpacked_kernel_not_all():
    x, packed = jnp.ones((4, WIDTH)), stack()
    ours = temporary_bytes(gradient(), x, packed)
    assert ours < 1.5 * KERNEL
    # What differentiation keeps without the packed product.
    assert temporary_bytes(gradient(plain_product), x, packed) >= DEPTH * KERNEL


def test_members_of_a_vmap_share_the_unpacked_kernel():
    packed = stack()
    x = jnp.asarray(small.normal(5, 4, WIDTH))
    members = jax.vmap(gradient(), in_axes=(0, None))
    assert temporary_bytes(members, x, packed) < 1.5 * KERNEL
    alone = jnp.stack([gradient()(one, packed) for one in x])
    np.testing.assert_allclose(members(x, packed), alone, atol=1e-5)


def test_a_checkpointed_step_has_the_same_gradient_and_no_more_memory():
    x, packed = jnp.asarray(small.normal(4, WIDTH)), stack()
    checkpointed = jax.grad(jax.checkpoint(lambda x, p: loss(x, p, packed_product)))
    np.testing.assert_allclose(checkpointed(x, packed), gradient()(x, packed), atol=1e-6)
    assert temporary_bytes(checkpointed, x, packed) < 1.5 * KERNEL


def test_no_gradient_goes_to_the_packed_arrays():
    gradients = jax.grad(lambda p: loss(jnp.ones((1, WIDTH)), p, packed_product), allow_int=True)(
        stack()
    )
    floats = [g for g in jax.tree.leaves(gradients) if g.dtype != jax.dtypes.float0]
    assert floats and not any(g.any() for g in floats)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("first", [0.0, -1.5, np.inf, np.nan])
def test_one_bad_number_spoils_its_own_row_alone(dtype, first):
    # The first number orders the computation, and must have no other part in it.
    x = jnp.asarray(small.normal(3, WIDTH)).astype(dtype)
    packed = stack()[0]
    product = jax.jit(lambda x: packed_product(FORM, x, packed))
    outputs = product(x.at[0, 0].set(first))
    np.testing.assert_array_equal(*(np.asarray(y[1:], "float32") for y in (outputs, product(x))))


def test_the_program_lowers_for_other_platforms_without_the_trick_for_cpus():
    packed = stack()[:1]
    lower = jax.jit(gradient()).trace(jnp.ones((4, WIDTH)), packed).lower
    texts = {name: lower(lowering_platforms=(name,)).as_text() for name in ("cpu", "cuda", "tpu")}
    counts = {name: text.count("ui32") for name, text in texts.items()}
    assert all("optimization_barrier" in text for text in texts.values())
    assert counts["cpu"] > counts["cuda"] == counts["tpu"]


QUERIES = tuple(f"transformer_layer_{i}/self_attention/query" for i in range(3))
DENSE = (keras.layers.Dense, keras.layers.EinsumDense)


def llama() -> keras.Model:
    sizes = {"hidden_dim": 128, "intermediate_dim": 512, "vocabulary_size": 32}
    heads = {"num_query_heads": 4, "num_key_value_heads": 2}
    with without_values():
        model = keras_hub().models.LlamaBackbone(num_layers=len(QUERIES), **sizes, **heads)
    return small.filled(model)


def projections(model: keras.Model) -> dict[str, Any]:
    """Its dense layers by structural name."""
    return {name: x for name, x in layer_names(model).items() if isinstance(x, DENSE)}


@dataclass(frozen=True)
class Step:
    """The gradient of factors beside the queries of a Llama."""

    gradient: dict[str, Any]
    temporary: int
    """Bytes that it takes beside weights and gradients."""
    weights: int
    """Bytes."""

    @classmethod
    def of(cls, model: keras.Model) -> Step:
        layers, variables = layer_names(model), structural_names(model)
        rng = np.random.default_rng(0)
        target = rng.normal(size=(2, 8, 128))
        inputs = {"token_ids": rng.integers(1, 32, (2, 8)), "padding_mask": np.ones((2, 8), bool)}

        def wrap(a: Any, b: Any) -> Wrap:
            return lambda call: lambda x: (y := call(x)) + ((x @ a) @ b).reshape(y.shape)

        def run(factors: Any, weights: Any) -> jax.Array:
            mapping = [(variables[name], value) for name, value in weights.items()]
            wraps = {layers[name]: wrap(*factors[name]) for name in factors}
            with keras.StatelessScope(state_mapping=mapping), intercept(wraps):
                return jnp.mean(model(inputs) * target)

        factors = {
            name: (small.normal(128, 4, seed=i) / 11, np.zeros((4, 128), np.float32))
            for i, name in enumerate(QUERIES)
        }
        weights = {name: variable.value for name, variable in variables.items()}
        compiled = jax.jit(jax.grad(run)).lower(factors, weights).compile()
        memory: Any = compiled.memory_analysis()
        nbytes = sum(value.nbytes for value in weights.values())
        return cls(compiled(factors, weights), memory.temp_size_in_bytes, nbytes)


@pytest.fixture(scope="module")
def exact() -> Step:
    return Step.of(llama())


def cosine(first: Any, second: Any) -> float:
    a, b = (np.concatenate([np.ravel(x) for x in jax.tree.leaves(t)]) for t in (first, second))
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


def test_a_llama_step_on_nf4_is_that_on_its_dequantised_kernels_in_less_memory(exact):
    model, float_model = llama(), llama()
    largest = max(layer.kernel.value.nbytes for layer in projections(float_model).values())
    quantize_layers(layer_names(model), "nf4")
    for name, layer in projections(float_model).items():
        layer.kernel.assign(dequantized_kernel(projections(model)[name]))
    step, twin = Step.of(model), Step.of(float_model)
    jax.tree.map(
        lambda ours, theirs: np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-7),
        step.gradient,
        twin.gradient,
    )
    assert step.weights < 0.2 * exact.weights
    assert step.temporary < exact.temporary + largest


@pytest.mark.parametrize(("mode", "least"), [("int8", 0.999), ("int4", 0.8), ("nf4", 0.85)])
def test_gradients_of_adapters_point_where_those_on_the_float_base_do(exact, mode, least):
    # Depends on the weights; on drawn ones, whose columns say nothing twice, it is least.
    model = llama()
    quantize_layers(layer_names(model), mode)
    assert cosine(Step.of(model).gradient, exact.gradient) > least


@keras_quantises
@pytest.mark.parametrize(("mode", "least"), [("int8", 0.999), ("int4", 0.95)])
def test_adapters_sit_on_layers_that_keras_quantised(exact, mode, least):
    # Shadowing `call` there would have no effect: the factors' gradient would be zero.
    model = llama()
    for name in QUERIES:
        layer_names(model)[name].quantize(mode)
    check_keras_quantization(layer_names(model))
    assert cosine(Step.of(model).gradient, exact.gradient) > least


@keras_quantises
def test_an_int8_table_used_in_reverse_by_keras_is_refused():
    table = keras.layers.ReversibleEmbedding(32, 64, tie_weights=True, name="tokens")
    table.build((None,))
    hidden, weights = small.normal(5, 64), small.normal(5, 32)

    def gradient() -> Any:
        return jax.grad(lambda x: jnp.sum(table(x, reverse=True) * weights))(jnp.asarray(hidden))

    exact = gradient()
    table.quantize("int8")
    # The reason: where Keras mends this, the refusal goes.
    assert cosine(gradient(), exact) < 0.5
    with pytest.raises(
        ModelError, match="'tokens' is an int8 embedding.*keeps embeddings in float"
    ):
        check_keras_quantization({"tokens": table})


@keras_quantises
def test_float8_by_keras_is_refused():
    layer = keras.layers.Dense(4, name="up")
    layer.build((None, 4))
    layer.quantize("float8")
    with pytest.raises(ModelError, match="'up' is quantised by Keras as 'float8'.*int8, int4, nf4"):
        check_keras_quantization({"up": layer})
