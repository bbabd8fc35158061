"""Attention traced for a TPU: what Keras' own would compute there, and what ours does."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import keras
import numpy as np
import pytest
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel
from keras.src.backend.jax import nn

from tunekit.models.forward import Forward
from tunekit.models.tpu_attention import dot_product_attention, tpu_attention
from tunekit.platforms import tracing_for


@pytest.fixture
def on_tpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Keras believes in a TPU, whose kernels are interpreted."""
    kernel = functools.partial(splash_attention_kernel.make_splash_mha, interpret=True)
    monkeypatch.setattr(splash_attention_kernel, "make_splash_mha", kernel)
    monkeypatch.setattr(jax, "devices", lambda *_: [SimpleNamespace(platform="tpu")])
    with tracing_for("tpu"):
        yield


def projections(heads: int = 2, shared_heads: int = 2) -> tuple[jax.Array, ...]:
    keys = jax.random.split(jax.random.key(0), 3)
    shape = (2, 128, heads, 128), (2, 128, shared_heads, 128)
    return tuple(jax.random.normal(key, shape[min(i, 1)]) for i, key in enumerate(keys))


def plain(query, key, value, *, causal: bool = False, cap: float | None = None) -> np.ndarray:
    """The definition, in float64."""
    query, key, value = (np.asarray(x, np.float64) for x in (query, key, value))
    key, value = (np.repeat(x, query.shape[2] // x.shape[2], axis=2) for x in (key, value))
    scores = np.einsum("btnk,bsnk->bnts", query, key) / np.sqrt(query.shape[-1])
    scores = scores if cap is None else cap * np.tanh(scores / cap)
    if causal:
        scores = np.where(np.tril(np.ones(scores.shape[-2:], bool)), scores, -np.inf)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return np.einsum("bnts,bsnk->btnk", weights / weights.sum(-1, keepdims=True), value)


@pytest.mark.parametrize("causal", [False, True])
def test_keras_own_attention_on_a_tpu_is_another_function(on_tpu: None, causal: bool) -> None:
    arrays = projections()
    found = nn.dot_product_attention(*arrays, is_causal=causal)
    assert np.abs(found - plain(*arrays, causal=causal)).max() > 1.0


@pytest.mark.parametrize("causal", [False, True])
def test_attention_in_the_block_is_the_definition(on_tpu: None, causal: bool) -> None:
    arrays = projections()
    with tpu_attention():
        found = keras.ops.dot_product_attention(*arrays, is_causal=causal)
    np.testing.assert_allclose(found, plain(*arrays, causal=causal), atol=2e-5)


@pytest.mark.parametrize("causal", [False, True])
def test_a_soft_cap_caps_the_scores(on_tpu: None, causal: bool) -> None:
    arrays = projections(heads=4, shared_heads=2)
    with tpu_attention():
        found = keras.ops.dot_product_attention(*arrays, is_causal=causal, attn_logits_soft_cap=1.5)
    np.testing.assert_allclose(found, plain(*arrays, causal=causal, cap=1.5), atol=2e-5)


def test_masks_and_biases_are_of_each_example() -> None:
    arrays = projections()
    mask = jax.random.bernoulli(jax.random.key(1), 0.7, (2, 1, 128, 128))
    bias = jnp.where(mask, 0.0, -1e9)
    masked = dot_product_attention(*arrays, mask=mask)
    np.testing.assert_allclose(masked, dot_product_attention(*arrays, bias=bias), atol=2e-5)
    capped = dot_product_attention(*arrays, mask=mask, attn_logits_soft_cap=1e4)
    np.testing.assert_allclose(capped, masked, atol=2e-5)
    biased = dot_product_attention(*arrays, bias=bias, attn_logits_soft_cap=1e4)
    np.testing.assert_allclose(biased, masked, atol=2e-5)


def test_a_model_computes_on_a_tpu_what_it_computes_elsewhere(on_tpu: None) -> None:
    inputs = keras.Input((128, 64))
    attended = keras.layers.MultiHeadAttention(2, 128)(inputs, inputs)
    forward = Forward.of(keras.Model(inputs, attended))
    texts = jax.random.normal(jax.random.key(2), (2, 128, 64))
    found, _ = forward(forward.values(), texts, training=False)
    with tracing_for("cpu"):
        expected, _ = forward(forward.values(), texts, training=False)
    np.testing.assert_allclose(found, expected, atol=2e-5)


def test_elsewhere_keras_attention_is_left_alone() -> None:
    keras_attention = nn.dot_product_attention
    with tracing_for("gpu"), tpu_attention():
        assert nn.dot_product_attention is keras_attention
    with pytest.raises(ZeroDivisionError), tracing_for("tpu"), tpu_attention():
        assert nn.dot_product_attention is dot_product_attention
        raise ZeroDivisionError
    assert nn.dot_product_attention is keras_attention
