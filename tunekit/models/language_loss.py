"""The loss of a language head, token by token, without the logits of a whole batch.

Logits [B, T, V] are by far the largest array of a language model's training step: 400 MB for four
texts of 512 tokens and a vocabulary of 49,152. Here the tokens that have a loss are moved to the
front and go through the head a chunk at a time; the backward pass computes a chunk's logits anew.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import keras

from tunekit.methods.intercept import Call, Wrap
from tunekit.platforms import traced_platform

CPU_LOGIT_BYTES = 64 << 20
"""What the float32 logits of a chunk may take where caches are small and products soon large."""
LOGIT_BYTES = 512 << 20
"""The same on an accelerator."""


def losses_for_logits(layer: keras.Layer, targets: jax.Array, loss_weights: jax.Array) -> Wrap:
    """Returns the interception of a language head that gives losses in place of logits.

    Args:
        layer: from hidden states [..., D] to logits [..., V]; what its call is when the
            interception is installed, adapters included, is what runs.
        targets: int32 [B, T].
        loss_weights: float32 [B, T]; only where they are zero or not is of interest here.
    """

    def wrap(call: Call) -> Call:
        def losses(hidden: Any, *args: Any, **kwargs: Any) -> jax.Array:
            def head(rows: jax.Array) -> Any:
                return call(rows, *args, **kwargs)

            vocabulary = layer.compute_output_shape(hidden.shape)[-1]
            chunk = chunk_tokens(targets.size, vocabulary)
            return token_losses(head, hidden, targets, loss_weights, chunk)

        return losses

    return wrap


def chunk_tokens(tokens: int, vocabulary: int) -> int:
    """Returns how many tokens go through the head at once, equally many in each chunk."""
    limit = CPU_LOGIT_BYTES if traced_platform() == "cpu" else LOGIT_BYTES
    chunks = -(-tokens // max(1, limit // (4 * vocabulary)))
    return -(-tokens // chunks)


def token_losses(
    head: Call, hidden: jax.Array, targets: jax.Array, loss_weights: jax.Array, chunk: int
) -> jax.Array:
    """Returns ``-log softmax(head(hidden))[targets]`` of each token, float32 [B, T].

    It is 0 where the weight is 0: such a token's target has no influence on anything, and what its
    hidden state is has none on the loss. Chunks without any other token are passed over.

    Args:
        head: from [1, chunk, D] to logits [1, chunk, V], which are then taken as float32.
        hidden: [B, T, D].
        targets: int32 [B, T].
        loss_weights: [B, T].
        chunk: tokens that go through the head at once.
    """
    tokens, chunks = targets.size, -(-targets.size // chunk)
    counts = loss_weights.reshape(tokens) != 0
    order = jnp.argsort(~counts, stable=True)
    places = jnp.pad(order, (0, chunks * chunk - tokens))
    live = jnp.arange(chunks * chunk) < jnp.sum(counts)
    rows = hidden.reshape(tokens, -1)[places]
    wanted = jnp.where(live, targets.reshape(tokens)[places], 0)

    def losses(rows: jax.Array, wanted: jax.Array, live: jax.Array) -> jax.Array:
        logits = head(rows[None])[0].astype(jnp.float32)
        chosen = jnp.take_along_axis(logits, wanted[:, None], axis=-1)[:, 0]
        return jnp.where(live, jax.nn.logsumexp(logits, axis=-1) - chosen, 0.0)

    def nothing(rows: jax.Array, wanted: jax.Array, live: jax.Array) -> jax.Array:
        return jnp.zeros(live.shape, jnp.float32)

    def body(carry: None, operands: Any) -> tuple[None, jax.Array]:
        return carry, jax.lax.cond(jnp.any(operands[2]), losses, nothing, *operands)

    # Round the whole body: round a branch alone, the loop would keep the head's weights per chunk.
    body = jax.checkpoint(body, prevent_cse=False)
    parts = [x.reshape(chunks, chunk, *x.shape[1:]) for x in (rows, wanted, live)]
    _, found = jax.lax.scan(body, None, tuple(parts))
    whole = jnp.zeros(tokens, jnp.float32).at[order].set(found.reshape(-1)[:tokens])
    return whole.reshape(targets.shape)
