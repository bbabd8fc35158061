"""The compiled passes by which a network writes: over prompts, and over one more token at a time.

Prompts are padded at their ends, as texts are for training, and each is read in one pass. What
follows goes into columns of the cache behind the longest prompt; masks and positions say for each
row what it sees and where it stands.
"""

from __future__ import annotations

import functools
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from tunekit.errors import ModelError
from tunekit.methods.intercept import Call, intercept
from tunekit.models.backbone import Backbone
from tunekit.models.forward import Forward, Values
from tunekit.models.key_value_cache import (
    Cache,
    CachedAttention,
    Column,
    cached_attentions,
    continuing,
    placed,
    remembering,
)
from tunekit.models.sampling import Controls, Sampler, choose

SMALLEST_BUCKET = 16
"""Columns of the smallest cache; larger ones are this times a power of two."""
SEGMENT = 32
"""Tokens after which a running program comes back at the latest."""
_ENDED = -1
"""In the place of a token after a row's end."""


class State(NamedTuple):
    """What a program hands to the next one; donated."""

    cache: Cache
    seen: jax.Array
    """bool [B, V]: tokens that the text holds."""
    token: jax.Array
    """int32 [B]: the last token of each row, which is not in the cache yet."""
    ended: jax.Array
    """bool [B]: rows that a stop id has ended, or that there is no prompt for."""


@dataclass(frozen=True, eq=False)
class Batch:
    """Prompts in arrays of sizes that programs are compiled for."""

    token_ids: np.ndarray
    """int32 [B, T], padded at the ends; B and T are of few sizes."""
    lengths: np.ndarray
    """int32 [B]: of the prompts; 1 where there is none."""
    count: int
    """Prompts."""
    room: int
    """Columns of the cache before what follows: dummy positions and T."""
    size: int
    """Columns S of the cache."""

    def controls(
        self, sampler: Sampler, stop_ids: Collection[int], seed: int, places: Sequence[int]
    ) -> Controls:
        """Returns what the programs take besides weights, tokens and state."""
        stops = np.full(_bucket(len(stop_ids), 8), _ENDED, np.int32)
        stops[: len(stop_ids)] = sorted(stop_ids)
        numbers = np.zeros(len(self.lengths), np.int32)
        numbers[: self.count] = places
        return {
            "sampler": sampler.controls(),
            "stops": stops,
            "keys": _row_keys(jax.random.key(seed), numbers),
            "lengths": self.lengths,
            "room": np.int32(self.room),
        }


class Programs:
    """The passes over one graph with adapters of one shape, compiled once for each size."""

    def __init__(self, forward: Forward, backbone: Backbone) -> None:
        """Compiles nothing yet.

        Raises:
            ModelError: an attention is of a kind that is not known.
        """
        assert backbone.language_head is not None
        self._forward, self._head = forward, backbone.language_head
        self._attentions: Mapping[str, CachedAttention] = cached_attentions(forward.layers)
        parts = [part for adapter in forward.adapters.values() for part in adapter.parts]
        self._dummies = sum(getattr(part, "prepended", 0) for part in parts)
        self._reads = jax.jit(self._read)
        self._writes = jax.jit(self._write, donate_argnums=1)

    def compiled(self) -> int:
        """Returns the number of programs with a pass over the network in them."""
        return sum(program._cache_size() for program in (self._reads, self._writes))  # type: ignore[attr-defined]

    def batch(self, prompts: Sequence[Sequence[int]], new: int) -> Batch:
        """Returns the prompts with room for `new` tokens each.

        Raises:
            ModelError: the network has no positions for so many.
        """
        rows = _bucket(len(prompts), 1)
        lengths = np.ones(rows, np.int32)
        lengths[: len(prompts)] = [len(prompt) for prompt in prompts]
        most, longest = int(lengths.max()), self._longest()
        if most + new > longest:  # JAX would read NaN beyond the last position.
            raise ModelError(
                f"a prompt of {most} tokens, {new} new ones and {self._dummies} learned positions "
                f"of adapters are more than the {longest + self._dummies} positions of the network."
                " Ask for fewer tokens, shorten the prompt, or put the adapter aside."
            )
        length = min(_bucket(most), longest)
        token_ids = np.zeros((rows, length), np.int32)
        for row, prompt in enumerate(prompts):
            token_ids[row, : len(prompt)] = prompt
        room = self._dummies + length
        return Batch(token_ids, lengths, len(prompts), room, _bucket(room + new))

    def pieces(
        self, values: Values, batch: Batch, given: Controls, new: int, every: int
    ) -> Iterator[list[list[int]]]:
        """Yields up to `new` tokens of each prompt, first one and then `every` at a time."""
        logits, seen, cache = self._reads(values, batch.token_ids, given["lengths"])
        ended = np.arange(len(batch.lengths)) >= batch.count
        state, tokens = _first(_widened(cache, batch.size), seen, ended, logits, given)
        done = 1
        yield _by_row(tokens[:, None], batch.count)
        while done < new and not np.all(state.ended):
            some = min(every, new - done)
            state, tokens = self._writes(values, state, given, done, some)
            yield _by_row(tokens, batch.count)
            done += some

    def _longest(self) -> int:
        """Tokens that learned positions reach for."""
        learned = [
            layer.sequence_length - self._dummies
            for layer in self._forward.layers.values()
            if type(layer).__name__ == "PositionEmbedding"
        ]
        return min(learned, default=np.iinfo(np.int32).max)

    def _read(
        self, values: Values, token_ids: Any, lengths: Any
    ) -> tuple[jax.Array, jax.Array, Cache]:
        """Logits [B, V] after the prompts, the tokens seen [B, V], and the cache."""
        kept: Cache = {}
        known = jnp.arange(token_ids.shape[1])[None] < lengths[:, None]
        inputs = {"token_ids": token_ids, "padding_mask": known.astype("int32")}
        with (
            intercept(remembering(self._attentions, kept)),
            self._forward.applied(values),
            # Logits of all positions would be the largest array by far.
            intercept({self._head: functools.partial(_at_index, lengths - 1)}),
        ):
            logits: Any = self._forward.model(inputs, training=False)
        seen = jnp.zeros((len(token_ids), logits.shape[-1]), bool)
        seen = seen.at[jnp.arange(len(token_ids))[:, None], token_ids].max(known)
        return logits[:, 0], seen, kept

    def _write(
        self, values: Values, state: State, given: Controls, done: Any, count: Any
    ) -> tuple[State, jax.Array]:
        """Up to `count` more tokens, [B, 32], after `done` ones."""
        tokens = jnp.full((len(state.token), SEGMENT), _ENDED, jnp.int32)

        def unfinished(carry: Any) -> Any:
            number, state, _ = carry
            return (number < count) & ~jnp.all(state.ended)

        def one(carry: Any) -> Any:
            number, state, tokens = carry
            logits, cache = self._step(values, state, given, done + number - 1)
            following = done + number
            state, token = _chosen(cache, state.seen, state.ended, logits, given, following)
            return number + 1, state, tokens.at[:, number].set(token)

        _, state, tokens = jax.lax.while_loop(unfinished, one, (jnp.int32(0), state, tokens))
        return state, tokens

    def _step(
        self, values: Values, state: State, given: Controls, number: Any
    ) -> tuple[jax.Array, Cache]:
        """Logits [B, V] after the last token, `number` tokens behind the prompt; and the cache."""
        kept: Cache = {}
        prompts, size = given["lengths"] + self._dummies, _size(state.cache)
        at = Column.after(given["room"] + number, prompts, given["room"], size)
        layers, token_ids = self._forward.layers, state.token[:, None]
        inputs = {"token_ids": token_ids, "padding_mask": jnp.ones_like(token_ids)}
        plain = layers["backbone"].call
        with (
            intercept(continuing(self._attentions, state.cache, kept, at)),
            self._forward.applied(values),
            # A pass that continues one with dummy positions puts none before its own token.
            intercept({layers["backbone"]: lambda _: plain}),
            intercept(placed(layers, self._attentions, at)),
        ):
            logits: Any = self._forward.model(inputs, training=False)
        return logits[:, 0], kept


def _chosen(
    cache: Cache, seen: Any, ended: Any, logits: Any, given: Controls, number: Any
) -> tuple[State, jax.Array]:
    """The state after the token of that number, and the token; -1 in rows that have ended."""
    keys = jax.vmap(jax.random.fold_in, (0, None))(given["keys"], number)
    token = choose(logits, seen, keys, given["sampler"])
    ended = ended | jnp.any(token[:, None] == given["stops"], axis=-1)
    seen = seen.at[jnp.arange(len(token)), token].set(True)
    return State(cache, seen, token, ended), jnp.where(ended, _ENDED, token)


@functools.partial(jax.jit, donate_argnums=(0, 1))
def _first(
    cache: Cache, seen: Any, ended: Any, logits: Any, given: Controls
) -> tuple[State, jax.Array]:
    return _chosen(cache, seen, ended, logits, given, 0)


@jax.jit
def _row_keys(key: jax.Array, places: Any) -> jax.Array:
    return jax.vmap(jax.random.fold_in, (None, 0))(key, places)


@functools.partial(jax.jit, static_argnums=1)
def _widened(cache: Cache, size: int) -> Cache:
    def wider(x: jax.Array) -> jax.Array:
        return jnp.pad(x, ((0, 0), (0, 0), (0, size - x.shape[2]), (0, 0)))

    return jax.tree.map(wider, cache)


def _size(cache: Cache) -> int:
    return next(iter(cache.values()))[0].shape[2]


def _at_index(index: Any, call: Call) -> Call:
    """`call` of one position [B, 1, D] of each row alone."""

    def at_index(x: Any, *args: Any, **kwargs: Any) -> Any:
        return call(jnp.take_along_axis(x, index[:, None, None], axis=1), *args, **kwargs)

    return at_index


def _by_row(tokens: Any, count: int) -> list[list[int]]:
    """The tokens of each row until its end."""
    rows = np.asarray(tokens)[:count].tolist()
    return [[token for token in row if token != _ENDED] for row in rows]


def _bucket(count: int, smallest: int = SMALLEST_BUCKET) -> int:
    """Returns the smallest power of two times `smallest` that is not below `count`."""
    size = smallest
    while size < count:
        size *= 2
    return size
