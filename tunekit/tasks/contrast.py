"""Vectors of texts, and which of a batch are held against each other."""

from __future__ import annotations

from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

Pooling = Literal["avg", "token", "max", "last"]
LOWEST = -1e9
"""Stands for what is no candidate in a softmax; finite, for a row without any."""


@partial(jax.jit, static_argnames="pooling")
def pooled_states(states: Any, padding_mask: Any, pooling: Pooling) -> jax.Array:
    """Returns float32 [N, D] of hidden states [N, T, D]; padding takes no part.

    Args:
        states: of any float type.
        padding_mask: [N, T], 0 where there is padding.
        pooling: "avg", "token" (the first), "max", or "last" (that is no padding).
    """
    states, real = jnp.asarray(states, jnp.float32), padding_mask[..., None] > 0
    match pooling:
        case "token":
            return states[:, 0]
        case "max":
            return jnp.where(real, states, LOWEST).max(axis=1)
        case "last":
            last = jnp.max(jnp.arange(states.shape[1]) * padding_mask, axis=1)
            return jnp.take_along_axis(states, last[:, None, None], axis=1)[:, 0]
        case "avg":
            count = jnp.maximum(padding_mask.sum(axis=1, keepdims=True), 1)
            return jnp.where(real, states, 0).sum(axis=1) / count


@partial(jax.jit, static_argnames="pooling")
def unit_vectors(states: Any, padding_mask: Any, pooling: Pooling) -> jax.Array:
    """Returns what `pooled_states` does, each vector of length 1."""
    pooled = pooled_states(states, padding_mask, pooling)
    return pooled / jnp.sqrt(jnp.maximum(jnp.sum(pooled**2, axis=-1, keepdims=True), 1e-24))


def similarity(first: np.ndarray, second: np.ndarray | None = None) -> np.ndarray:
    """Returns the cosine of each vector with each other: [N, M] of [N, D] and [M, D].

    Args:
        first: vectors of any length but 0.
        second: `None` is `first`.
    """
    first = first / np.linalg.norm(first, axis=-1, keepdims=True)
    if second is None:
        return first @ first.T
    return first @ (second / np.linalg.norm(second, axis=-1, keepdims=True)).T


def candidates_of(token_ids: jax.Array, weight: Any) -> tuple[jax.Array, jax.Array]:
    """Returns what each first text is compared with, bool [B, M], and its own there, int32 [B].

    M are the second and third texts of the batch, each text once. Left out are those of rows that
    fill the batch up, a text that is the first one itself, and what another row with the same first
    text has for its own.

    Args:
        token_ids: [B, S, T], a pair or a pair and a third text in each row.
        weight: [B], 0 of rows that fill the batch up.
    """
    rows, texts, _ = token_ids.shape
    firsts, seconds = token_ids[:, 0], token_ids[:, 1:].reshape(rows * (texts - 1), -1)
    real = jnp.repeat(jnp.asarray(weight) > 0, texts - 1)
    once = jnp.argmax(_equal(seconds, seconds) & real, axis=1)
    own = once[:: texts - 1]
    is_own = own[:, None] == jnp.arange(len(seconds))
    of_same = (_equal(firsts, firsts).astype(jnp.int32) @ is_own.astype(jnp.int32)) > 0
    others = real & (once == jnp.arange(len(seconds))) & ~_equal(firsts, seconds) & ~of_same
    return others | is_own, own


def _equal(these: jax.Array, those: jax.Array) -> jax.Array:
    """Whether the rows of [N, T] and [M, T] are equal: bool [N, M]."""
    return jnp.all(these[:, None] == those[None], axis=-1)
