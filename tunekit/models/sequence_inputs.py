"""What a batch tells a network of tokens beside ids and padding mask: by interception of layers.

The graph takes token ids and a padding mask. Segments, positions and documents reach the layers
that know of such things: embeddings, rotary embeddings, attentions. Targets reach the language
head, which then gives losses in place of logits.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import keras

from tunekit.errors import ModelError
from tunekit.methods.intercept import Call, Wrap
from tunekit.methods.part import Layers
from tunekit.models.language_loss import losses_for_logits
from tunekit.models.token_graph import LANGUAGE_HEAD

EXTRAS = ("token_types", "positions", "documents", "targets", "loss_weights")
"""Inputs that no graph has: [B, T], all int32 but the float32 weights.

- token_types: the segment of each token; of no effect on a network that has no segments.
- positions: place of each token in its text, from 0.
- documents: number of its text; tokens see their own text's alone.
- targets, loss_weights: the outputs of the language head are then the losses of the tokens.
"""

_POSITIONS = frozenset({"PositionEmbedding", "RotaryEmbedding", "LlamaRotaryEmbedding"})
"""KerasHub 0.32's layers whose call takes `positions` [B, T]."""
_ATTENTIONS = frozenset(
    {
        "MultiHeadAttention",
        "CachedMultiHeadAttention",
        "CachedGemmaAttention",
        "CachedMistralAttention",
        "LlamaAttention",
        "QwenAttention",
    }
)
"""Layers whose call takes `attention_mask` [B, T, T], 0 where a token must not look."""
_HARMLESS = frozenset(
    {
        *("InputLayer", "Embedding", "ReversibleEmbedding", "TokenAndPositionEmbedding"),
        *("Dense", "EinsumDense", "Add", "Dropout", "Softmax", "Activation"),
        *("LayerNormalization", "LlamaLayerNorm", "MistralLayerNormalization", "QwenLayerNorm"),
        *("RMSNormalization", "TransformerDecoder", "TransformerEncoder", "GemmaDecoderBlock"),
        *("LlamaTransformerDecoder", "MistralTransformerDecoder", "QwenTransformerDecoder"),
    }
)
"""Layers in which tokens meet in such attentions only."""


def split_extras(inputs: Any) -> tuple[Any, dict[str, jax.Array]]:
    """Returns what the graph takes, and the extras there are."""
    if not isinstance(inputs, Mapping):
        return inputs, {}
    extras = {name: inputs[name] for name in EXTRAS if name in inputs}
    if not extras:
        return inputs, extras
    return {name: x for name, x in inputs.items() if name not in extras}, extras


def extra_wraps(layers: Layers, extras: Mapping[str, jax.Array]) -> dict[keras.Layer, Wrap]:
    """Returns the interceptions by which a network of these layers is told the extras.

    To be installed outside of adapters: what they make of the language head is what the losses
    are of.

    Raises:
        ModelError: texts cannot share rows in this network, or it has no language head.
    """
    wraps: dict[keras.Layer, Wrap] = {}
    if "token_types" in extras:
        wraps |= _segments(layers, extras["token_types"])
    if "positions" in extras or "documents" in extras:
        check_packable(layers)
    if "positions" in extras:
        wraps |= _placed(layers, extras["positions"])
    if "documents" in extras:
        wraps |= _apart(layers, extras["documents"])
    if "targets" in extras or "loss_weights" in extras:
        wraps |= _losses(layers, extras)
    return wraps


def check_packable(layers: Layers) -> None:
    """Passes where several texts in one row of this network do not see each other.

    Args:
        layers: by structural name.

    Raises:
        ModelError: tokens meet, or are counted, in a layer that is not known here.
    """
    body = {name: x for name, x in layers.items() if not name.startswith("heads") and name}
    known = _POSITIONS | _ATTENTIONS | _HARMLESS
    kinds = {name: type(layer).__name__ for name, layer in body.items()}
    strange = [n for n, kind in kinds.items() if kind not in known and not _is_graph(body[n])]
    if not strange and _POSITIONS & {*kinds.values()} and _ATTENTIONS & {*kinds.values()}:
        return
    what = f"'{strange[0]}', a {kinds[strange[0]]}," if strange else "what makes up this network"
    raise ModelError(
        f"batch.packing: texts that share a row must not see each other, and {what} cannot be told "
        "so; the networks of BERT, RoBERTa, DistilBERT, GPT-2, Llama, Mistral, Qwen2 and Gemma "
        "can. Set batch.packing: false."
    )


def _is_graph(layer: keras.Layer) -> bool:
    return hasattr(layer, "_nodes_by_depth")


def _segments(layers: Layers, types: jax.Array) -> dict[keras.Layer, Wrap]:
    def wrap(call: Call) -> Call:
        def with_types(ids: Any, *args: Any, **kwargs: Any) -> Any:
            # Positions that an adapter puts before the text are of the first segment.
            added = ids.shape[1] - types.shape[1]
            return call(jnp.pad(types, ((0, 0), (added, 0))), *args, **kwargs)

        return with_types

    return {
        layer: wrap
        for name, layer in layers.items()
        if name.rpartition("/")[2] == "segment_embedding" and getattr(layer, "input_dim", 0) > 1
    }


def _placed(layers: Layers, positions: jax.Array) -> dict[keras.Layer, Wrap]:
    def wrap(call: Call) -> Call:
        def with_positions(x: Any, *args: Any, **kwargs: Any) -> Any:
            del args, kwargs  # Where the row begins, which these say.
            _check_length(x.shape[1], positions)
            return call(x, positions=positions)

        return with_positions

    return {layer: wrap for layer in layers.values() if type(layer).__name__ in _POSITIONS}


def _apart(layers: Layers, documents: jax.Array) -> dict[keras.Layer, Wrap]:
    same = documents[:, :, None] == documents[:, None, :]

    def wrap(call: Call) -> Call:
        def within_documents(*args: Any, **kwargs: Any) -> Any:
            mask = kwargs.get("attention_mask")
            if mask is not None:
                _check_length(mask.shape[-1], documents)
            own = same if mask is None else jnp.where(same, mask, jnp.zeros_like(mask))
            return call(*args, **{**kwargs, "attention_mask": own})

        return within_documents

    return {layer: wrap for layer in layers.values() if type(layer).__name__ in _ATTENTIONS}


def _losses(layers: Layers, extras: Mapping[str, jax.Array]) -> dict[keras.Layer, Wrap]:
    if not {"targets", "loss_weights"} <= extras.keys():
        raise ModelError("a batch has both or neither of the columns targets and loss_weights.")
    head = layers.get(f"heads/{LANGUAGE_HEAD}")
    if head is None:
        raise ModelError(
            "targets are given, and this model has no language head whose losses they would be "
            "of; load it for a task of language modelling."
        )
    return {head: losses_for_logits(head, extras["targets"], extras["loss_weights"])}


def _check_length(length: int, column: jax.Array) -> None:
    if length != column.shape[1]:
        raise ModelError(
            f"batch.packing: an adapter puts {length - column.shape[1]} learned positions before "
            "each row, and texts that share a row cannot each have them; set batch.packing: false, "
            "or use a method without such positions, as LoRA."
        )
