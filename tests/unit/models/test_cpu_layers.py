"""What a CPU computes in its own form equals what the layers compute: outputs and gradients."""

from __future__ import annotations

import collections
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import keras
import numpy as np
import pytest

from tunekit.methods.intercept import intercept
from tunekit.models import cpu_attention
from tunekit.models.cpu_attention import attend, cpu_attentions
from tunekit.models.cpu_batch_norm import cpu_batch_norms
from tunekit.models.cpu_gradients import cpu_gradients, gelu
from tunekit.models.cpu_layers import cpu_layers
from tunekit.models.forward import Forward
from tunekit.models.initialisation import seeded
from tunekit.names import layer_names

IMAGES = np.random.default_rng(0).normal(size=(2, 16, 16, 3)).astype(np.float32)
TOKENS = {
    "token_ids": np.random.default_rng(1).integers(1, 20, (2, 6)),
    "padding_mask": np.array([[1, 1, 1, 1, 0, 0], [1] * 6]),
}


def vit(dtype: str) -> keras.Model:
    import keras_hub

    return keras_hub.models.ViTBackbone(
        image_shape=(16, 16, 3), patch_size=8, num_layers=1, num_heads=2, hidden_dim=16,
        mlp_dim=32, dtype=dtype,
    )  # fmt: skip


def dinov2(dtype: str) -> keras.Model:
    import keras_hub

    return keras_hub.models.DINOV2Backbone(
        patch_size=8, num_layers=1, num_heads=2, hidden_dim=16, intermediate_dim=32,
        image_shape=(16, 16, 3), position_embedding_shape=(16, 16), dtype=dtype,
    )  # fmt: skip


def bert(dtype: str) -> keras.Model:
    import keras_hub

    return keras_hub.models.BertBackbone(
        vocabulary_size=20, num_layers=1, num_heads=2, hidden_dim=16, intermediate_dim=32,
        max_sequence_length=6, dtype=dtype,
    )  # fmt: skip


def llama(dtype: str) -> keras.Model:
    import keras_hub

    return keras_hub.models.LlamaBackbone(
        vocabulary_size=20, num_layers=1, num_query_heads=4, num_key_value_heads=2, hidden_dim=16,
        intermediate_dim=32, dtype=dtype,
    )  # fmt: skip


def inputs_of(model: keras.Model) -> object:
    if not isinstance(model.input, dict):
        return IMAGES
    given = {"images": IMAGES, "segment_ids": np.zeros((2, 6), int), **TOKENS}
    return {name: given[name] for name in model.input}


def randomised(model: keras.Model) -> keras.Model:
    """`model` with weights at which nothing vanishes: scales, shifts and biases too."""
    rng = np.random.default_rng(2)
    for variable in model.variables:
        if variable.trainable:
            variable.assign(np.asarray(variable) + 0.2 * rng.normal(size=variable.shape))
    return model


def outputs_and_gradients(model: keras.Model, wraps: dict, inputs: object) -> Callable:
    names = [v.path for v in model.trainable_variables]
    frozen = [(v, v.value) for v in model.non_trainable_variables]

    def loss(values):
        mapping = [*zip(model.trainable_variables, values, strict=True), *frozen]
        with keras.StatelessScope(state_mapping=mapping), intercept(wraps):
            outputs = jax.tree.leaves(model(inputs, training=False))
        return sum(jnp.sum(jnp.sin(x.astype(jnp.float32))) for x in outputs), outputs

    def both(values):
        gradients, outputs = jax.grad(loss, has_aux=True)(values)
        return dict(zip(names, gradients, strict=True)), outputs

    return both


def assert_close(ours, theirs, tolerance: float) -> None:
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    for left, right in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        assert left.dtype == right.dtype
        left, right = np.asarray(left, np.float32), np.asarray(right, np.float32)
        # Softmax takes no notice of the keys' bias: its gradient is nothing but rounding.
        scale = max(float(np.abs(right).max()), 0.25)
        np.testing.assert_allclose(left / scale, right / scale, atol=tolerance)


# float32: sums in another order through a block. bfloat16 keeps 8 bits: 2^-8 a rounding, and the
# layers round at other places, a dozen times in a row.
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 3e-5), ("bfloat16", 6e-2)])
@pytest.mark.parametrize(
    ("build", "kinds"),
    [
        (vit, {"Conv2D": 1, "LayerNormalization": 3, "MultiHeadAttention": 1, "Dense": 1}),
        (dinov2, {"Conv2D": 1, "LayerNormalization": 3, "MultiHeadAttention": 1, "Dense": 1}),
        (bert, {"LayerNormalization": 3, "MultiHeadAttention": 1}),
        (llama, {"LlamaAttention": 1}),
    ],
)
def test_outputs_and_gradients_of_a_transformer_equal_its_layers_own(
    build, kinds, dtype, tolerance
):
    with seeded(2):  # Rounding in bfloat16 depends on the values; these are always the same.
        model = randomised(build(dtype))
    wraps = cpu_layers(layer_names(model).values())
    assert collections.Counter(type(layer).__name__ for layer in wraps) == kinds
    inputs = inputs_of(model)
    programs = [outputs_and_gradients(model, w, inputs) for w in (wraps, {})]
    values = [v.value for v in model.trainable_variables]
    ours, theirs = jax.jit(lambda values: [p(values) for p in programs])(values)
    assert_close(ours, theirs, tolerance)


def test_the_forward_pass_uses_these_forms_on_a_cpu():
    model = vit("float32")
    forward = Forward.of(model)
    traced = jax.make_jaxpr(lambda v: forward(v, IMAGES, training=False)[0])(forward.values())
    own_gradients = [e for e in traced.eqns if e.primitive.name == "custom_vjp_call"]
    assert len(own_gradients) == 5  # three norms, an attention and a GELU


def operands(batch=4, queries=5, keys=7, heads=2, width=3, dtype=jnp.float32):
    keys_ = jax.random.split(jax.random.key(0), 3)
    shapes = ((batch, queries, heads, width), (batch, keys, heads, width), (batch, keys, heads, 4))
    return [jax.random.normal(k, s, dtype) for k, s in zip(keys_, shapes, strict=True)]


def attention_in_full(query, key, value, mask, scale):
    scores = scale * jnp.einsum("btnk,bsnk->bnts", query, key)
    if mask is not None:
        scores = jnp.where(mask, scores, cpu_attention.MASKED)
    return jnp.einsum("bnts,bsnv->btnv", jax.nn.softmax(scores), value)


MASKS = {
    "none": None,
    "keys": np.arange(7)[None, None, None] < np.array([7, 3, 1, 5])[:, None, None, None],
    "pairs": np.tri(5, 7, dtype=bool)[None, None],
    "heads": np.random.default_rng(3).random((4, 2, 5, 7)) < 0.6,
    "a row that sees nothing": np.arange(5)[None, None, :, None] != np.zeros((4, 1, 1, 1)),
}


@pytest.mark.parametrize("at_once", [1, 2, 4])
@pytest.mark.parametrize("mask", MASKS)
def test_attention_a_few_examples_at_a_time_equals_attention_in_full(mask, at_once, monkeypatch):
    monkeypatch.setattr(cpu_attention, "_examples_at_once", lambda batch, score_bytes: at_once)
    given = operands()
    ours = functools.partial(attend, mask=MASKS[mask], scale=0.7)
    theirs = functools.partial(attention_in_full, mask=MASKS[mask], scale=0.7)
    assert_close(ours(*given), theirs(*given), 1e-6)
    gradients = [jax.grad(_wavy(f), (0, 1, 2))(*given) for f in (ours, theirs)]
    assert_close(*gradients, 2e-6)


def _wavy(function: Callable) -> Callable:
    return lambda *x: jnp.sum(jnp.sin(function(*x)))


def test_the_scores_attended_to_at_once_fit_in_the_caches(monkeypatch):
    monkeypatch.setattr(cpu_attention.os, "cpu_count", lambda: 2)
    sizes = [cpu_attention._examples_at_once(12, size << 10) for size in (4096, 1024, 600, 400, 1)]
    assert sizes == [1, 2, 3, 4, 12]


def attention_layer(**options) -> keras.layers.MultiHeadAttention:
    layer = keras.layers.MultiHeadAttention(2, 4, **options)
    layer.build((2, 5, 8), (2, 5, 8))
    return layer


@pytest.mark.parametrize(
    ("options", "arguments"),
    [
        ({}, {"return_attention_scores": True}),
        ({}, {"use_causal_mask": True}),
        ({}, {"attention_mask": np.tri(5, dtype=bool)[None]}),
        ({"dropout": 0.5, "seed": 0}, {"training": False}),
        ({"use_gate": True}, {}),
        ({"sliding_window": 2}, {}),
        ({"output_shape": 6}, {}),
    ],
)
def test_attention_with_other_options_equals_the_layers_own(options, arguments):
    layer = attention_layer(**options)
    x = jax.random.normal(jax.random.key(1), (2, 5, 8))
    theirs = layer(x, x, **arguments)
    with intercept(cpu_attentions([layer])):
        ours = layer(x, x, **arguments)
    assert_close(ours, theirs, 1e-6)
    assert "_compute_attention" not in vars(layer)


def test_attention_drops_what_the_layer_itself_drops():
    layer = attention_layer(dropout=0.5, seed=0)
    x = jax.random.normal(jax.random.key(1), (2, 5, 8))
    seed = [v for v in layer.variables if "seed" in v.path]
    start = [np.asarray(v) for v in seed]
    theirs = layer(x, x, training=True)
    for variable, value in zip(seed, start, strict=True):
        variable.assign(value)
    with intercept(cpu_attentions([layer])):
        ours = layer(x, x, training=True)
    np.testing.assert_array_equal(ours, theirs)
    assert np.abs(np.asarray(ours - layer(x, x))).max() > 1e-3


def test_a_layer_whose_attention_is_its_own_is_left_alone():
    class Windowed(keras.layers.MultiHeadAttention):
        def _compute_attention(self, query, key, value, *args, **kwargs):
            return value, None

    assert cpu_attentions([Windowed(2, 4), keras.layers.Dense(3)]) == {}


def test_an_error_leaves_the_layers_attention_as_it_was():
    layer = attention_layer()
    with intercept(cpu_attentions([layer])), pytest.raises(ValueError):
        layer(jnp.ones((2, 5, 3)), jnp.ones((2, 5, 3)))
    assert "_compute_attention" not in vars(layer)


def test_gelu_and_its_slope_equal_those_of_the_error_function():
    from scipy.special import ndtr  # in double precision

    x = np.linspace(-12, 12, 401)
    slope = ndtr(x) + x * np.exp(-0.5 * x * x) / np.sqrt(2 * np.pi)
    given = jnp.asarray(x, jnp.float32)
    # A few float32 roundings of numbers next to one, times x.
    np.testing.assert_allclose(gelu(given), x * ndtr(x), rtol=3e-7, atol=2e-6)
    np.testing.assert_allclose(jax.vmap(jax.grad(gelu))(given), slope, rtol=1e-6, atol=2e-6)


@pytest.mark.parametrize(
    "layer",
    [
        keras.layers.LayerNormalization(axis=1),
        keras.layers.LayerNormalization(center=False),
        keras.layers.LayerNormalization(scale=False),
        keras.layers.LayerNormalization(axis=[1, 2]),
    ],
)
def test_a_norm_of_another_kind_is_left_alone(layer):
    layer.build((2, 3, 4))
    assert cpu_gradients([layer]) == {}


@pytest.mark.parametrize("dtype", ["float32", "mixed_bfloat16", "bfloat16"])
def test_a_norm_far_from_zero_equals_its_layers_own(dtype):
    layer = keras.layers.LayerNormalization(dtype=dtype)
    layer.build((4, 3, 8))
    x = 50 + jax.random.normal(jax.random.key(0), (4, 3, 8), layer.compute_dtype)
    theirs = layer(x)
    with intercept(cpu_gradients([layer])):
        ours = layer(x)
    assert ours.dtype == theirs.dtype
    # The layer multiplies out (x - mean), which costs it 50 / 1 of the precision.
    np.testing.assert_allclose(*np.asarray([ours, theirs], np.float32), atol=5e-5, rtol=1e-2)


@pytest.mark.parametrize("size_px", [(12, 8), (14, 11)])
def test_patches_as_a_product_equal_the_convolution(size_px):
    layer = keras.layers.Conv2D(5, 4, strides=4, activation="tanh")
    layer.build((2, *size_px, 3))
    x = jax.random.normal(jax.random.key(0), (2, *size_px, 3))
    theirs = layer(x)
    wraps = cpu_layers([layer])
    assert list(wraps) == [layer]
    with intercept(wraps):
        assert_close(layer(x), theirs, 1e-5)


@pytest.mark.parametrize(
    "options",
    [{"strides": 3}, {"padding": "same"}, {"groups": 3}, {"strides": 1, "dilation_rate": 2}],
)
def test_a_convolution_of_another_kind_is_left_alone(options):
    layer = keras.layers.Conv2D(6, 4, **{"strides": 4, **options})
    layer.build((2, 12, 12, 3))
    assert cpu_layers([layer]) == {}


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("bfloat16", 2e-2)])
def test_batch_norm_is_that_of_keras_with_its_statistics(training, affine, dtype, tolerance):
    rng = np.random.default_rng(0)
    layer = keras.layers.BatchNormalization(
        momentum=0.7, scale=affine, center=affine, dtype=keras.DTypePolicy(f"mixed_{dtype}")
        if dtype == "bfloat16" else dtype,
    )  # fmt: skip
    layer.build((None, 3, 5, 4))
    for variable in layer.variables:
        variable.assign(rng.uniform(0.5, 2, variable.shape))
    x = jnp.asarray(rng.normal(3, 2, (6, 3, 5, 4)), layer.compute_dtype)
    others = [(v, v.value) for v in layer.non_trainable_variables]

    def loss(values, x):
        mapping = [*zip(layer.trainable_variables, values, strict=True), *others]
        with keras.StatelessScope(state_mapping=mapping) as scope:
            y = layer(x, training=training)
        moved = [scope.get_current_value(v) for v, _ in others]
        return jnp.sum(jnp.sin(y.astype(jnp.float32))), (y, moved)

    def both():
        values = [v.value for v in layer.trainable_variables]
        return jax.jit(jax.grad(loss, (0, 1), has_aux=True))(values, x)

    theirs = both()
    wraps = cpu_batch_norms([layer])
    assert len(wraps) == 1
    with intercept(wraps):
        ours = both()
    assert_close(ours, theirs, tolerance)
    assert any(np.any(m != v) for m, (_, v) in zip(ours[1][1], others, strict=True)) == training


def test_batch_norms_of_other_axes_and_kinds_stay_with_keras():
    def built(shape, **given):
        layer = keras.layers.BatchNormalization(**given)
        layer.build(shape)
        return layer

    others = [
        built((None, 8)),
        built((None, 4, 4, 8), axis=1),
        built((None, 4, 4, 8), renorm=True),
        keras.layers.BatchNormalization(),
    ]
    assert cpu_batch_norms(others) == {}
    masked = built((None, 4, 4, 8))
    x, mask = np.random.default_rng(0).normal(size=(2, 4, 4, 8)), np.zeros((2, 4, 4), bool)
    mask[:, :2] = True
    theirs = masked(x, training=True, mask=mask)
    with intercept(cpu_batch_norms([masked])):
        np.testing.assert_array_equal(masked(x, training=True, mask=mask), theirs)
