"""Keys and values of the tokens seen so far, for attention that takes one more token at a time.

The layers run as they are: only how queries, keys and values meet is replaced, by Keras' own hook
for that (``_compute_attention``), and learned or rotary positions are told where a token stands.
Whatever sits on the projections, a LoRA or a prefix, therefore acts on what is cached as well.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import keras
import numpy as np

from tunekit.errors import ModelError
from tunekit.methods.intercept import Call, Wrap
from tunekit.methods.part import Layers
from tunekit.models.cpu_attention import MASKED
from tunekit.models.graph import is_attention
from tunekit.models.sequence_inputs import extra_wraps

Cache = dict[str, tuple[jax.Array, jax.Array]]
"""Keys and values [B, H, S, K] by the attention's structural name, H the heads that differ."""
_REPEATED = frozenset(
    f"keras_hub.src.models.{module}"
    for module in (
        "llama.llama_attention.LlamaAttention",
        "mistral.mistral_attention.CachedMistralAttention",
        "qwen.qwen_attention.QwenAttention",
    )
)
"""KerasHub 0.32's layers that repeat keys and values for each query head before they meet."""
_GEMMA = "keras_hub.src.models.gemma.gemma_attention.CachedGemmaAttention"


@dataclass(frozen=True, eq=False)
class CachedAttention:
    """An attention layer, and what its scores are made by."""

    layer: keras.Layer
    scale: float
    """Of the scores."""
    repeats: int = 1
    """How many equal heads in a row its keys and values have when they meet the queries."""
    window: int | None = None
    """Tokens that it looks back on, itself included; None looks back on all."""
    soft_cap: float | None = None
    """Scores become ``cap * tanh(scores / cap)``; None leaves them."""

    def remembers(self, kept: Cache, name: str) -> Wrap:
        """Returns the interception that puts the layer's keys and values into `kept`."""

        def core(own: Call, query: Any, key: Any, value: Any, *args: Any, **kwargs: Any) -> Any:
            kept[name] = self._by_head(key), self._by_head(value)
            return own(query, key, value, *args, **kwargs)

        return functools.partial(_with_core, self.layer, core)

    def continues(self, cache: Cache, kept: Cache, name: str, at: Column) -> Wrap:
        """Returns the interception by which one more token attends to what is in `cache`.

        Args:
            cache: where the tokens before it are.
            kept: where keys and values with the token's own go.
            name: under which both are known.
            at: where the token's own go, and how far away the others are.
        """

        def core(
            own: Call, query: Any, key: Any, value: Any, attention_mask: Any, *_: Any, **__: Any
        ) -> Any:
            new, start = (self._by_head(key), self._by_head(value)), (0, 0, at.index, 0)
            keys, values = (
                jax.lax.dynamic_update_slice(old, x.astype(old.dtype), start)
                for old, x in zip(cache[name], new, strict=True)
            )
            kept[name] = keys, values
            seen = attention_mask[:, 0].astype(bool)
            if self.window is not None:
                seen &= at.distances < self.window
            output = self._attend(query, keys, values, seen)
            return (output, None) if isinstance(self.layer, _MULTI_HEAD) else output

        return functools.partial(_with_core, self.layer, core)

    def _attend(self, query: Any, keys: Any, values: Any, seen: Any) -> jax.Array:
        """Returns [B, 1, N, K], of queries of that shape; `seen` is [B, S]."""
        batch, _, heads, width = query.shape
        grouped = query.reshape(batch, keys.shape[1], heads // keys.shape[1], width)
        scores = jnp.einsum("bhgk,bhsk->bhgs", grouped, keys, preferred_element_type=jnp.float32)
        scores = scores * self.scale
        if self.soft_cap is not None:
            scores = self.soft_cap * jnp.tanh(scores / self.soft_cap)
        scores = jnp.where(seen[:, None, None], scores, MASKED)
        weights = jax.nn.softmax(scores, axis=-1).astype(values.dtype)
        output = jnp.einsum("bhgs,bhsk->bhgk", weights, values)
        return output.reshape(batch, 1, heads, values.shape[-1])

    def _by_head(self, x: Any) -> jax.Array:
        """[B, T, N, K] as [B, H, T, K], each of the repeated heads once."""
        return jnp.swapaxes(x[:, :, :: self.repeats], 1, 2)


@dataclass(frozen=True, eq=False)
class Column:
    """Where in a cache a token's keys and values go, and what it sees of the others."""

    index: Any
    """Of the column, which is the same for all rows."""
    positions: Any
    """int32 [B]: where in its text the token stands."""
    seen: Any
    """bool [B, S]: the columns that hold tokens of its text, its own among them."""
    distances: Any
    """int32 [B, S]: how many tokens earlier each stands."""

    @classmethod
    def after(cls, index: Any, prompts: Any, room: Any, size: int) -> Column:
        """Returns the column `index` of a cache whose first `room` ones are of prompts.

        Args:
            index: `room` at first, and one more for every token.
            prompts: int32 [B], how many of the first columns hold a row's prompt.
            room: columns kept for prompts.
            size: columns S in all.
        """
        columns, prompts = jnp.arange(size)[None], prompts[:, None]
        is_prompt = columns < room
        own = jnp.where(is_prompt, columns, columns - room + prompts)
        position = index - room + prompts
        seen = jnp.where(is_prompt, columns < prompts, columns <= index)
        return cls(index, position[:, 0], seen, position - own)


def cached_attentions(layers: Layers) -> dict[str, CachedAttention]:
    """Returns every attention of a decoder, by structural name.

    Raises:
        ModelError: there is none, or one computes otherwise than is known here.
    """
    found = {n: cached_attention(n, layer) for n, layer in layers.items() if is_attention(layer)}
    if not found:
        raise ModelError(
            "generation needs a decoder of tokens with attention, and this network has none."
        )
    return found


def cached_attention(name: str, layer: Any) -> CachedAttention:
    """Returns how a layer attends.

    Raises:
        ModelError: it is of no class that is known here.
    """
    known = f"{type(layer).__module__}.{type(layer).__qualname__}"
    if isinstance(layer, _MULTI_HEAD):
        if type(layer)._compute_attention is _MULTI_HEAD._compute_attention:
            return CachedAttention(layer, layer._inverse_sqrt_key_dim)
    elif known in _REPEATED:
        # KerasHub 0.32 says it with and without an underscore.
        own, window = vars(layer), None
        repeats = own.get("num_key_value_groups", own.get("_num_key_value_groups"))
        if own.get("use_sliding_window_attention", "_sliding_window" in own):
            window = own.get("sliding_window_size", own.get("_sliding_window"))
        return CachedAttention(layer, layer._inv_norm_factor, repeats, window)
    elif known == _GEMMA:
        heads = layer.num_query_heads
        width = layer.head_dim if layer.query_head_dim_normalize else layer.hidden_dim // heads
        window = layer.sliding_window_size if layer.use_sliding_window_attention else None
        cap = layer.logit_soft_cap
        return CachedAttention(layer, 1 / np.sqrt(width), window=window, soft_cap=cap)
    raise ModelError(
        f"generation is not known for '{name}', a {type(layer).__name__}: expected the attention "
        "of GPT-2, Llama, Mistral, Qwen2 or Gemma. KerasHub's own generate() may know it."
    )


def remembering(attentions: Mapping[str, CachedAttention], kept: Cache) -> dict[Any, Wrap]:
    """Returns interceptions by which a pass over prompts leaves its keys and values in `kept`.

    They go round the layers' own calls directly, so inside of all others.
    """
    return {each.layer: each.remembers(kept, name) for name, each in attentions.items()}


def continuing(
    attentions: Mapping[str, CachedAttention], cache: Cache, kept: Cache, at: Column
) -> dict[Any, Wrap]:
    """Returns interceptions by which a pass over one token [B, 1] attends to `cache`.

    They go round the layers' own calls directly; those of `placed` outside of all others.
    """
    named = attentions.items()
    return {each.layer: each.continues(cache, kept, name, at) for name, each in named}


def placed(
    layers: Layers, attentions: Mapping[str, CachedAttention], at: Column
) -> dict[Any, Wrap]:
    """Returns interceptions that tell positions and attentions where the token [B, 1] stands."""
    mask = at.seen[:, None].astype("int32")
    masked = {each.layer: functools.partial(_with_mask, mask) for each in attentions.values()}
    return {**extra_wraps(layers, {"positions": at.positions[:, None]}), **masked}


_MULTI_HEAD = keras.layers.MultiHeadAttention


def _with_mask(mask: Any, call: Call) -> Call:
    return lambda *args, **kwargs: call(*args, **{**kwargs, "attention_mask": mask})


def _with_core(layer: Any, core: Call, call: Call) -> Call:
    """`call` during which `core`, given the layer's core, is how queries meet keys."""

    def attention(*args: Any, **kwargs: Any) -> Any:
        before = vars(layer).get("_compute_attention")
        own = layer._compute_attention
        object.__setattr__(layer, "_compute_attention", functools.partial(core, own))
        try:
            return call(*args, **kwargs)
        finally:
            if before is None:
                object.__delattr__(layer, "_compute_attention")
            else:
                object.__setattr__(layer, "_compute_attention", before)

    return attention
