"""Positions before a text's own, for methods that learn what stands there.

The network is given P more tokens than the text has, and gives the outputs of the text alone. What
is learned takes their place inside: embeddings (prompt tuning), or keys and values (prefix tuning).

**The start-position rule.** A call on more than P positions begins at position 0, and its first P
are the dummies; a call on fewer continues one that did, as the single-token steps of generation
with a cache do, and nothing in it is replaced. So whoever generates without calling the network
whole passes `with_dummies` of its inputs to the first step, and cuts P positions off its outputs.
The text's own positions count from P on, in learned, rotary and relative position embeddings alike.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import keras

from tunekit.errors import ModelError
from tunekit.methods.intercept import Call, Wrap
from tunekit.methods.part import Layers


def unmergeable(what: str, positions: str) -> ModelError:
    """Returns the error of merging learned positions, which are no other weights.

    Args:
        what: cannot be merged: "the prompt at 'embedding'".
        positions: what it is more of: "8 more positions".
    """
    return ModelError(
        f"{what} cannot be merged: it is {positions}, which no weights of the network are. Keep it "
        "apart, or train a LoRA."
    )


def with_dummies(inputs: Mapping[str, Any], length: int) -> dict[str, Any]:
    """Returns token inputs [B, T] as [B, P + T], the P before each text not masked.

    Args:
        inputs: token ids, padding masks and the like, by name; those of a mask say so.
        length: P.
    """
    # Not token 0, which some embeddings take for padding.
    ones = ("mask", "token_ids")
    before = ((0, 0), (length, 0))
    return {
        name: jnp.pad(jnp.asarray(x), before, constant_values=int(name.endswith(ones)))
        for name, x in inputs.items()
    }


def around_network(layers: Layers, length: int) -> dict[keras.Layer, Wrap]:
    """Returns the interception of the backbone that adds P dummies and cuts them off again.

    Heads see the text's own positions alone. Without a layer "backbone" it is the whole network.
    """

    def wrap(call: Call) -> Call:
        def longer(inputs: Mapping[str, Any], *args: Any, **kwargs: Any) -> Any:
            padded = with_dummies(inputs, length)
            total = next(iter(padded.values())).shape[1]
            _check_positions(layers, total, length)
            outputs = call(padded, *args, **kwargs)
            return keras.tree.map_structure(lambda x: _without(x, total, length), outputs)

        return longer

    return {layers.get("backbone", layers[""]): wrap}


def replacing(learned: Any, length: int, *, per_example: bool) -> Wrap:
    """Returns the interception of a layer whose first P outputs are `learned` instead.

    The layer itself sees the other positions only. Two such adapters, one round the other, both
    have their own P.

    Args:
        learned: [P, ...], or [B, P, ...] where `per_example`.
        length: P.
        per_example: whether every example has its own.
    """

    def wrap(call: Call) -> Call:
        def replaced(inputs: Any, *args: Any, **kwargs: Any) -> Any:
            if kwargs.get("reverse") or inputs.shape[1] <= length:
                return call(inputs, *args, **kwargs)
            outputs = call(inputs[:, length:], *args, **kwargs)
            return in_front(learned, outputs, per_example=per_example)

        return replaced

    return wrap


def in_front(learned: Any, outputs: Any, *, per_example: bool) -> Any:
    """Returns [B, P + T, ...]: what is learned, before `outputs` [B, T, ...]."""
    rows = learned if per_example else learned[None]
    rows = jnp.broadcast_to(rows, (outputs.shape[0], *rows.shape[1:])).astype(outputs.dtype)
    return jnp.concatenate([rows, outputs], axis=1)


def _without(outputs: Any, total: int, length: int) -> Any:
    by_position = outputs.ndim > 2 and outputs.shape[1] == total
    return outputs[:, length:] if by_position else outputs


def _check_positions(layers: Layers, total: int, length: int) -> None:
    """Passes where the network's learned position embeddings reach so far.

    Raises:
        ModelError: they do not; they would be read beyond their end.
    """
    limits = [x.sequence_length for x in layers.values() if type(x).__name__ == "PositionEmbedding"]
    if total > min(limits, default=total):
        raise ModelError(
            f"{total - length} tokens and {length} learned positions are {total}, and the network "
            f"has positions for {min(limits)}. Give shorter texts, or the adapter a smaller length."
        )
