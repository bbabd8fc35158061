"""Tokens that follow prompts, one after another, with keys and values of those before kept.

Prompts are padded at their ends, as texts are for training, and each is read in one pass. What
follows goes into columns of the cache behind the longest prompt; masks and positions say for each
row what it sees and where it stands, so a batch gives what its prompts give alone. Programs are
compiled for a few sizes of batch and of cache, and the weights are their arguments.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from tunekit.errors import ModelError
from tunekit.methods.intercept import Call, intercept
from tunekit.models.backbone import Backbone
from tunekit.models.forward import Forward, Values
from tunekit.models.inference import slots
from tunekit.models.key_value_cache import (
    Cache,
    CachedAttention,
    Column,
    cached_attentions,
    continuing,
    placed,
    remembering,
)
from tunekit.models.sampling import Controls, Greedy, Sampler, choose
from tunekit.models.token_graph import check_token_ids

if TYPE_CHECKING:
    from tunekit.models.model import Model

SMALLEST_BUCKET = 16
"""Columns of the smallest cache; larger ones are this times a power of two."""
_SEGMENT = 32
"""Tokens after which a running program comes back at the latest."""
_ENDED = -1
"""In the place of a token after a row's end."""


class _State(NamedTuple):
    """What a program hands to the next one; donated."""

    cache: Cache
    seen: jax.Array
    """bool [B, V]: tokens that the text holds."""
    token: jax.Array
    """int32 [B]: the last token of each row, which is not in the cache yet."""
    ended: jax.Array
    """bool [B]: rows that a stop id has ended."""


class Generator:
    """What a model writes after prompts, with the adapters that are active then.

    Example:
        >>> generator = Generator(model)
        >>> generator.generate([[1, 2, 3], [4]], max_new_tokens=5)
    """

    def __init__(self, model: Model) -> None:
        """Compiles nothing yet; what is compiled later stays with the model's graph.

        Raises:
            ModelError: the model is no causal language model.
        """
        self.model = model
        self._check_writes()

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        max_new_tokens: int,
        sampler: Sampler | None = None,
        stop_ids: Collection[int] = (),
        seed: int = 0,
        batch_size: int = 16,
        on_token: Callable[[int, int], None] | None = None,
    ) -> list[list[int]]:
        """Returns the tokens that follow each prompt, without the one that ended it.

        Args:
            prompts: token ids of each.
            max_new_tokens: how many may follow.
            sampler: how a token is chosen; `None` takes the likeliest.
            stop_ids: tokens that end a text.
            seed: of what is drawn; a row's draws depend on it and on the row's place in `prompts`.
            batch_size: prompts at a time, at most; those of like length together.
            on_token: is told the row and each of its tokens, soon after it is chosen.

        Raises:
            ModelError: a prompt is empty, has ids outside of the vocabulary, or has with
                `max_new_tokens` more tokens than the model was made for.
        """
        rows: list[list[int]] = [[] for _ in prompts]
        order = sorted(range(len(prompts)), key=lambda row: len(prompts[row]))
        options = {"max_new_tokens": max_new_tokens, "sampler": sampler, "stop_ids": stop_ids}
        self._check(prompts, max_new_tokens, range(len(prompts)))
        for start in range(0, len(order), batch_size):
            places = order[start : start + batch_size]
            batch = [prompts[row] for row in places]
            every = _SEGMENT if on_token is None else 4
            for pieces in self.stream(batch, **options, seed=seed, places=places, every=every):
                for row, tokens in zip(places, pieces, strict=True):
                    rows[row] += tokens
                    if on_token is not None:
                        for token in tokens:
                            on_token(row, token)
        return rows

    def stream(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        max_new_tokens: int,
        sampler: Sampler | None = None,
        stop_ids: Collection[int] = (),
        seed: int = 0,
        places: Sequence[int] | None = None,
        every: int = 4,
    ) -> Iterator[list[list[int]]]:
        """Returns an iterator over the next tokens of each prompt of a batch, until all have ended.

        Args:
            prompts: token ids of each.
            max_new_tokens: how many may follow.
            sampler: how a token is chosen; `None` takes the likeliest.
            stop_ids: tokens that end a text; they are not yielded.
            seed: of what is drawn.
            places: of each prompt, by which rows draw differently; `None` numbers them.
            every: tokens of a row at a time, at most 32.

        Raises:
            ModelError: as of `generate`.
        """
        places = range(len(prompts)) if places is None else places
        self._check(prompts, max_new_tokens, places)
        if not prompts or max_new_tokens < 1:
            return iter(())
        programs, values = self._present()
        run = programs.run(prompts, max_new_tokens, places)
        given = run.controls((sampler or Greedy()).controls(), stop_ids, seed)
        return programs.pieces(values, run, given, max_new_tokens, min(every, _SEGMENT))

    def compiled(self) -> int:
        """Returns the number of passes over the network compiled so far."""
        return sum(programs.compiled() for programs in self.model._inference.writers.values())

    def _present(self) -> tuple[_Programs, Values]:
        """The programs for the model as it is now, and its values."""
        self._check_writes()
        model, inference = self.model, self.model._inference
        adapters = [adapter for adapter, _ in model.adapters.acting]
        key = tuple(adapter.parts for adapter in adapters)
        if key not in inference.writers:
            inference.writers[key] = _Programs(inference.forward(adapters), model.backbone)
        return inference.writers[key], inference.values() | slots(model.adapters.acting)

    def _check_writes(self) -> None:
        model = self.model
        if model.backbone.language_head is None or model.backbone.features != "decoder_states":
            raise ModelError(
                f"the model on '{model.backbone.source}' is no causal language model, so it writes "
                "no text: load one, such as a Llama, Mistral, Qwen2, Gemma or GPT-2."
            )
        if model.labels:
            raise ModelError(
                f"the model on '{model.backbone.source}' has a head for the labels "
                f"{', '.join(model.labels[:3])}{'…' * (len(model.labels) > 3)} in the place of its "
                "language head, so it writes no text; load it anew without labels."
            )

    def _check(self, prompts: Sequence[Any], new: int, places: Sequence[int]) -> None:
        backbone = self.model.backbone
        if new < 0:
            raise ModelError(f"max_new_tokens: expected a number from 0 on, got {new}.")
        for place, prompt in zip(places, prompts, strict=True):
            if not len(prompt):
                raise ModelError(f"prompt {place} is empty: there is no token to go on from.")
            if backbone.vocabulary is not None:
                check_token_ids(np.asarray(prompt), backbone.vocabulary)
            longest = backbone.max_length_tokens
            if longest is not None and len(prompt) + new > longest:
                room = longest - len(prompt)
                do = f"ask for at most {room}, or shorten it" if room > 0 else "shorten it"
                raise ModelError(
                    f"prompt {place} has {len(prompt)} tokens, and with {new} new ones they are "
                    f"more than the {longest} that the model was made for: {do}."
                )


@dataclass(frozen=True, eq=False)
class _Run:
    """One batch of prompts, in arrays of sizes that programs are compiled for."""

    token_ids: np.ndarray
    """int32 [B, T], padded at the ends; B and T are of few sizes."""
    lengths: np.ndarray
    """int32 [B]: of the prompts."""
    places: np.ndarray
    """int32 [B]: by which rows draw differently."""
    filled: np.ndarray
    """bool [B]: rows that there is a prompt for."""
    dummies: int
    """Positions P that adapters put before the text."""
    size: int
    """Columns S of the cache: P, the prompts, and what is to follow."""

    def controls(self, sampler: Controls, stop_ids: Collection[int], seed: int) -> Controls:
        """Returns what the programs take besides weights, tokens and state."""
        stops = np.full(_bucket(len(stop_ids), 8), _ENDED, np.int32)
        stops[: len(stop_ids)] = sorted(stop_ids)
        return {
            "sampler": sampler,
            "stops": stops,
            "key": jax.random.key(seed),
            "places": self.places,
            "lengths": self.lengths,
            "filled": self.filled,
            "room": np.int32(self.dummies + self.token_ids.shape[1]),
        }


class _Programs:
    """The passes over one graph with adapters of one shape, compiled once for each size."""

    def __init__(self, forward: Forward, backbone: Backbone) -> None:
        assert backbone.language_head is not None
        self._forward, self._head = forward, backbone.language_head
        self._attentions: Mapping[str, CachedAttention] = cached_attentions(forward.layers)
        parts = [part for adapter in forward.adapters.values() for part in adapter.parts]
        self._dummies = sum(getattr(part, "prepended", 0) for part in parts)
        self.read = jax.jit(self._read)
        self.write = jax.jit(self._write, donate_argnums=1)
        self.widened = jax.jit(_widened, static_argnums=1)

    def compiled(self) -> int:
        """Programs with a pass over the network in them."""
        return sum(program._cache_size() for program in (self.read, self.write))  # type: ignore[attr-defined]

    def run(self, prompts: Sequence[Sequence[int]], new: int, places: Sequence[int]) -> _Run:
        """Returns the batch in arrays of few sizes."""
        rows = _bucket(len(prompts), 1)
        lengths = np.ones(rows, np.int32)
        lengths[: len(prompts)] = [len(prompt) for prompt in prompts]
        length = min(_bucket(int(lengths.max())), self._longest())
        token_ids = np.zeros((rows, length), np.int32)
        for row, prompt in enumerate(prompts):
            token_ids[row, : len(prompt)] = prompt
        where = np.zeros(rows, np.int32)
        where[: len(prompts)] = places
        filled = np.arange(rows) < len(prompts)
        size = _bucket(self._dummies + length + new)
        return _Run(token_ids, lengths, where, filled, self._dummies, size)

    def pieces(
        self, values: Values, run: _Run, given: Controls, new: int, every: int
    ) -> Iterator[list[list[int]]]:
        """Yields up to `new` tokens of each prompt, `every` at a time."""
        count, done = int(run.filled.sum()), 1
        state, tokens = self.read(values, run.token_ids, given)
        yield _by_row(tokens[:, None], count)
        state = state._replace(cache=self.widened(state.cache, run.size))
        while done < new and not np.all(state.ended):
            some = min(every, new - done)
            state, tokens = self.write(values, state, given, done, some)
            yield _by_row(tokens, count)
            done += some

    def _longest(self) -> int:
        """Tokens that learned positions reach for."""
        learned = [
            layer.sequence_length - self._dummies
            for layer in self._forward.layers.values()
            if type(layer).__name__ == "PositionEmbedding"
        ]
        return min(learned, default=np.iinfo(np.int32).max)

    def _read(self, values: Values, token_ids: Any, given: Controls) -> tuple[_State, jax.Array]:
        """The pass over prompts; the tokens are the first that follow."""
        kept: Cache = {}
        known = jnp.arange(token_ids.shape[1])[None] < given["lengths"][:, None]
        inputs = {"token_ids": token_ids, "padding_mask": known.astype("int32")}
        last = functools.partial(_rows_of, given["lengths"] - 1)
        with (
            intercept(remembering(self._attentions, kept)),
            self._forward.applied(values),
            intercept({self._head: last}),
        ):
            logits: Any = self._forward.model(inputs, training=False)
        rows = jnp.arange(len(token_ids))[:, None]
        seen = jnp.zeros((len(token_ids), logits.shape[-1]), bool)
        seen = seen.at[rows, token_ids].max(known)
        return self._chosen(kept, seen, ~given["filled"], logits[:, 0], given, 0)

    def _write(
        self, values: Values, state: _State, given: Controls, done: Any, count: Any
    ) -> tuple[_State, jax.Array]:
        """Up to `count` more tokens, [B, 32], after `done` ones."""
        tokens = jnp.full((len(state.token), _SEGMENT), _ENDED, jnp.int32)

        def unfinished(carry: Any) -> Any:
            number, state, _ = carry
            return (number < count) & ~jnp.all(state.ended)

        def one(carry: Any) -> Any:
            number, state, tokens = carry
            logits, cache = self._step(values, state, given, done + number - 1)
            state, chosen = self._chosen(
                cache, state.seen, state.ended, logits, given, done + number
            )
            return number + 1, state, tokens.at[:, number].set(chosen)

        _, state, tokens = jax.lax.while_loop(unfinished, one, (jnp.int32(0), state, tokens))
        return state, tokens

    def _step(
        self, values: Values, state: _State, given: Controls, number: Any
    ) -> tuple[jax.Array, Cache]:
        """Logits [B, V] after the token of that number, and the cache with it."""
        kept: Cache = {}
        size = next(iter(state.cache.values()))[0].shape[2]
        prompts = given["lengths"] + self._dummies
        at = Column.after(given["room"] + number, prompts, given["room"], size)
        layers = self._forward.layers
        inputs = {"token_ids": state.token[:, None], "padding_mask": jnp.ones_like(state.token)}
        inputs["padding_mask"] = inputs["padding_mask"][:, None]
        backbone = layers["backbone"]
        plain = backbone.call
        with (
            intercept(continuing(self._attentions, state.cache, kept, at)),
            self._forward.applied(values),
            # A pass that continues one with dummy positions has none of its own.
            intercept({backbone: lambda _: plain}),
            intercept(placed(layers, self._attentions, at)),
        ):
            logits: Any = self._forward.model(inputs, training=False)
        return logits[:, 0], kept

    def _chosen(
        self, cache: Cache, seen: Any, ended: Any, logits: Any, given: Controls, number: Any
    ) -> tuple[_State, jax.Array]:
        """The state after the token of that number, and the token; -1 in rows that have ended."""
        key = jax.random.fold_in(given["key"], number)
        keys = jax.vmap(jax.random.fold_in, (None, 0))(key, given["places"])
        token = choose(logits, seen, keys, given["sampler"])
        ended = ended | jnp.any(token[:, None] == given["stops"], axis=-1)
        seen = seen.at[jnp.arange(len(token)), token].set(True)
        return _State(cache, seen, token, ended), jnp.where(ended, _ENDED, token)


def _widened(cache: Cache, size: int) -> Cache:
    def wider(x: jax.Array) -> jax.Array:
        return jnp.pad(x, ((0, 0), (0, 0), (0, size - x.shape[2]), (0, 0)))

    return jax.tree.map(wider, cache)


def _rows_of(index: Any, call: Call) -> Call:
    """`call` of one position [B, 1, D] of each row alone."""

    def at_index(x: Any, *args: Any, **kwargs: Any) -> Any:
        return call(jnp.take_along_axis(x, index[:, None, None], axis=1), *args, **kwargs)

    return at_index


def _by_row(tokens: Any, count: int) -> list[list[int]]:
    """The tokens of each row until its end."""
    return [
        [token for token in row if token != _ENDED] for row in np.asarray(tokens)[:count].tolist()
    ]


def _bucket(count: int, smallest: int = SMALLEST_BUCKET) -> int:
    """Returns the smallest power of two times `smallest` that is not below `count`."""
    size = smallest
    while size < count:
        size *= 2
    return size
