"""Attention in the form that XLA compiles well for a CPU, for the length of a trace.

Keras' attention writes the scores ``[B, N, T, S]`` of a whole batch to memory several times over,
and keeps them for the backward pass. Here a few examples at a time are attended to, so that their
scores stay in the processor's cache, and the backward pass computes the scores anew.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import keras

from tunekit.methods.intercept import Call, Wrap

CACHE_BYTES_PER_CORE = 1 << 20
"""What the scores of the examples attended to at once may take: about a core's own cache."""

MASKED = -0.7 * float(jnp.finfo(jnp.float32).max)
"""The score of a masked pair, as in ``jax.nn.dot_product_attention``."""

GROUPED = frozenset(
    f"keras_hub.src.models.{module}.{name}"
    for module, name in (
        ("llama.llama_attention", "LlamaAttention"),
        ("mistral.mistral_attention", "CachedMistralAttention"),
        ("phi3.phi3_attention", "Phi3Attention"),
        ("qwen.qwen_attention", "QwenAttention"),
        ("qwen3.qwen3_attention", "Qwen3Attention"),
    )
)
"""KerasHub 0.32's layers whose ``_compute_attention`` is ``jax.nn.dot_product_attention``."""


def cpu_attentions(layers: Iterable[keras.Layer]) -> dict[keras.Layer, Wrap]:
    """Returns an interception for each attention layer that has a faster form on a CPU."""
    wraps: dict[keras.Layer, Wrap] = {}
    for layer in layers:
        core = _core_of(layer)
        if core is not None:
            wraps[layer] = functools.partial(_with_core, layer, core)
    return wraps


def _core_of(layer: Any) -> Call | None:
    """The replacement of `layer`'s ``_compute_attention``; `None` where it has no plain one."""
    multi_head = keras.layers.MultiHeadAttention
    if isinstance(layer, multi_head):
        if type(layer)._compute_attention is multi_head._compute_attention:
            return functools.partial(_multi_head_core, layer)
    elif f"{type(layer).__module__}.{type(layer).__qualname__}" in GROUPED:
        return functools.partial(_grouped_core, layer)
    return None


def _with_core(layer: Any, core: Call, call: Call) -> Call:
    """`call` during which the layer's own projections, masks and caches use another core.

    ``_compute_attention`` is Keras 3.15's hook "for customized attention implementation".
    """

    def attention(*args: Any, **kwargs: Any) -> Any:
        object.__setattr__(layer, "_compute_attention", core)
        try:
            return call(*args, **kwargs)
        finally:
            object.__delattr__(layer, "_compute_attention")

    return attention


def _multi_head_core(
    layer: Any,
    query: Any,
    key: Any,
    value: Any,
    attention_mask: Any = None,
    training: bool | None = None,
    return_attention_scores: bool = False,
    use_causal_mask: bool = False,
) -> tuple[Any, None]:
    drops = layer.dropout > 0 and training
    if drops or return_attention_scores or use_causal_mask or query.ndim != 4:
        extra = {"use_causal_mask": True} if use_causal_mask else {}
        return type(layer)._compute_attention(
            layer, query, key, value, attention_mask, training, return_attention_scores, **extra
        )
    mask = attention_mask
    if mask is not None:
        while mask.ndim < 4:  # as the layer does: missing axes lie before the last two
            mask = jnp.expand_dims(mask, -3)
    return attend(query, key, value, mask, scale=layer._inverse_sqrt_key_dim), None


def _grouped_core(
    layer: Any, query: Any, key: Any, value: Any, attention_mask: Any = None, **cache: Any
) -> Any:
    del cache  # of use to its other implementations only
    mask = None if attention_mask is None else attention_mask[:, None]
    return attend(query, key, value, mask, scale=layer._inv_norm_factor)


def attend(query: Any, key: Any, value: Any, mask: Any = None, *, scale: float) -> jax.Array:
    """Scaled dot-product attention, a few examples at a time.

    ``softmax(scale query key') value``, the softmax in float32, as
    ``jax.nn.dot_product_attention`` computes it.

    Args:
        query: ``[B, T, N, K]``.
        key: ``[B, S, N, K]``.
        value: ``[B, S, N, V]``.
        mask: true where `query` may look, of four axes that broadcast to ``[B, N, T, S]``.
        scale: of the scores.

    Returns:
        ``[B, T, N, V]`` in the dtype of `value`.
    """
    batch, queries, heads, _ = query.shape
    keys = key.shape[1]
    some = _examples_at_once(batch, 4 * heads * queries * keys)
    if mask is not None:
        mask = jnp.broadcast_to(mask.astype(bool), (batch, *mask.shape[1:]))
    chunks = jax.tree.map(
        lambda x: x.reshape(batch // some, some, *x.shape[1:]), (query, key, value, mask)
    )
    output: Any = _attend_chunks(scale, *chunks)
    return output.reshape(batch, queries, heads, value.shape[-1])


def _examples_at_once(batch: int, score_bytes: int) -> int:
    """The largest divisor of `batch` of which the scores fit in the caches; at least 1."""
    fitting = max(1, (os.cpu_count() or 1) * CACHE_BYTES_PER_CORE // score_bytes)
    return max(n for n in range(1, batch + 1) if batch % n == 0 and n <= fitting)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend_chunks(scale: float, query: Any, key: Any, value: Any, mask: Any) -> jax.Array:
    return _forward(scale, query, key, value, mask)[0]


def _forward(scale, query, key, value, mask):
    def chunk(operands):
        query, key, value, mask = operands
        scores = _scores(scale, _by_head(query), _by_head(key), mask)
        top = jnp.max(scores, -1, keepdims=True)
        weights = jnp.exp(scores - top)
        total = jnp.sum(weights, -1, keepdims=True)
        output = _matmul(weights.astype(value.dtype), _by_head(value)) / total
        return _by_position(output, query.shape[2]).astype(value.dtype), top, total

    output, top, total = _map(chunk, (query, key, value, mask))
    return output, (query, key, value, mask, output, top, total)


def _backward(scale, saved, cotangent):
    def chunk(operands):
        query, key, value, mask, output, top, total, cotangent = operands
        q, k, v, o, c = (_by_head(x) for x in (query, key, value, output, cotangent))
        probabilities = jnp.exp(_scores(scale, q, k, mask) - top) / total
        # For softmax: scores' = p (p' - sum p p'), and that sum is output . output'.
        shared = jnp.sum(_f32(c) * _f32(o), -1, keepdims=True)
        change = _masked(probabilities * (_matmul(c, _turned(v)) - shared), mask, 0.0)
        change = (scale * change).astype(query.dtype)
        to_query = _matmul(change, k)
        to_key = _matmul(_turned(change), q)
        to_value = _matmul(_turned(probabilities.astype(value.dtype)), c)
        return tuple(
            _by_position(x, y.shape[2]).astype(y.dtype)
            for x, y in ((to_query, query), (to_key, key), (to_value, value))
        )

    return *_map(chunk, (*saved, cotangent)), None


_attend_chunks.defvjp(_forward, _backward)


def _map(chunk: Call, operands: Any) -> Any:
    """`chunk` of every part along the first axis; without a loop where there is one part."""
    if jax.tree.leaves(operands)[0].shape[0] == 1:
        return jax.tree.map(lambda x: x[None], chunk(jax.tree.map(lambda x: x[0], operands)))
    return jax.lax.map(chunk, operands)


def _scores(scale: float, query: jax.Array, key: jax.Array, mask: jax.Array | None) -> jax.Array:
    return _masked(scale * _matmul(query, _turned(key)), mask, MASKED)


def _masked(scores: jax.Array, mask: jax.Array | None, otherwise: float) -> jax.Array:
    if mask is None:
        return scores
    whole = scores.reshape(mask.shape[0], -1, *scores.shape[1:])
    return jnp.where(mask, whole, otherwise).reshape(scores.shape)


def _matmul(left: jax.Array, right: jax.Array) -> jax.Array:
    return jnp.matmul(left, right, preferred_element_type=jnp.float32)


def _by_head(x: jax.Array) -> jax.Array:
    """``[B, T, N, K]`` to ``[B N, T, K]``: with two batch axes XLA copies whole operands."""
    batch, length, heads, width = x.shape
    return x.transpose(0, 2, 1, 3).reshape(batch * heads, length, width)


def _by_position(x: jax.Array, heads: int) -> jax.Array:
    return x.reshape(-1, heads, *x.shape[1:]).transpose(0, 2, 1, 3)


def _turned(x: jax.Array) -> jax.Array:
    return jnp.swapaxes(x, -1, -2)


def _f32(x: jax.Array) -> jax.Array:
    return x.astype(jnp.float32)
