"""Attention on a TPU as it is defined, for the length of a trace.

On a TPU Keras 3.15 hands ``dot_product_attention`` to the Splash kernel wherever its mask is known
while tracing, and computes something else there: without a mask it masks causally, it does not
divide the scores by the root of their depth, and of a batch's masks it takes the first for all.
Where the mask is not known it leaves the kernel, and drops the soft cap of the scores. Nor can XLA
divide the kernel over a mesh of devices. So on a TPU attention is a product, a softmax and a
product here, whatever the mask: XLA fuses them, and shares them among devices by itself.

Replaces ``keras.src.backend.jax.nn.dot_product_attention``, as of Keras 3.15.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import jax
import jax.numpy as jnp
from keras.src.backend.jax import nn

from tunekit.platforms import traced_platform


@contextmanager
def tpu_attention() -> Iterator[None]:
    """Within the block attention that is traced for a TPU is what it would be elsewhere."""
    if traced_platform() != "tpu":
        yield
        return
    keras_attention = nn.dot_product_attention
    nn.dot_product_attention = dot_product_attention
    try:
        yield
    finally:
        nn.dot_product_attention = keras_attention


def dot_product_attention(
    query: Any,
    key: Any,
    value: Any,
    bias: Any = None,
    mask: Any = None,
    scale: float | None = None,
    is_causal: bool = False,
    flash_attention: bool | None = None,
    attn_logits_soft_cap: float | None = None,
) -> jax.Array:
    """Returns ``softmax(scale query key + bias) value`` over the pairs that the mask leaves.

    Args:
        query: [B, T, N, K].
        key: [B, S, M, K]; M divides N, and heads share it.
        value: [B, S, M, K].
        bias: of the scores, broadcast to [B, N, T, S].
        mask: true where a pair counts, broadcast to [B, N, T, S].
        scale: of the scores; `None` is ``K ** -0.5``.
        is_causal: whether no position sees a later one.
        flash_attention: what a layer asks of Keras; no kernel is used either way.
        attn_logits_soft_cap: scores become ``cap * tanh(scores / cap)``.

    Returns:
        [B, T, N, K], in the dtype that the three have together.
    """
    del flash_attention
    query, key, value = (jnp.asarray(x) for x in (query, key, value))
    dtype = jnp.result_type(query, key, value)
    query, key, value = (x.astype(dtype) for x in (query, key, value))
    bias = None if bias is None else jnp.asarray(bias, dtype)
    mask = None if mask is None else jnp.asarray(mask, bool)
    if attn_logits_soft_cap is None:
        return jax.nn.dot_product_attention(
            query,
            key,
            value,
            bias=bias,
            mask=mask,
            scale=scale,
            is_causal=is_causal,
            implementation="xla",
        )
    return _soft_capped(query, key, value, bias, mask, scale, is_causal, attn_logits_soft_cap)


def _soft_capped(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    bias: jax.Array | None,
    mask: jax.Array | None,
    scale: float | None,
    is_causal: bool,
    cap: float,
) -> jax.Array:
    """The same with capped scores; the cap comes before bias and mask, as in Gemma 2."""
    shared = query.shape[2] // key.shape[2]
    key, value = (jnp.repeat(x, shared, axis=2) for x in (key, value))
    factor = query.shape[-1] ** -0.5 if scale is None else scale
    scores = jnp.einsum("btnk,bsnk->bnts", query, key, preferred_element_type=jnp.float32)
    scores = cap * jnp.tanh(scores * factor / cap)
    if bias is not None:
        scores += bias
    if is_causal:
        causal = jnp.tril(jnp.ones(scores.shape[-2:], bool))
        mask = causal if mask is None else mask & causal
    if mask is not None:
        scores = jnp.where(mask, scores, -0.7 * float(jnp.finfo(jnp.float32).max))
    return jnp.einsum("bnts,bsnk->btnk", jax.nn.softmax(scores).astype(value.dtype), value)
