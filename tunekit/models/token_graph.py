"""The graph of a model of tokens: token ids and padding mask, a backbone, heads on top."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import keras
import numpy as np
from keras import ops

from tunekit.errors import ModelError

LANGUAGE_HEAD = "lm_head"
"""Name of the head that gives a logit per token of the vocabulary, as Hugging Face calls it."""


class TiedHead(keras.layers.Layer):
    """Logits over the vocabulary by the token embedding in reverse, whose weights it shares.

    A layer of its own, so that an adapter can sit on the head and leave the embedding alone.
    """

    def __init__(self, embedding: keras.layers.ReversibleEmbedding, **kwargs: Any) -> None:
        """Projects onto the rows of `embedding`."""
        super().__init__(**kwargs)
        self.embedding = embedding
        self.built = True

    def call(self, x: Any) -> Any:
        """Returns logits [..., V] of hidden states [..., D]."""
        return self.embedding(x, reverse=True)

    def compute_output_shape(self, input_shape: Any) -> tuple[int | None, ...]:
        """Returns (..., V)."""
        return *input_shape[:-1], self.embedding.input_dim


def token_inputs() -> dict[str, Any]:
    """Returns inputs for token ids and padding mask, both int32 [B, T]; 0 masks padding."""
    names = ("token_ids", "padding_mask")
    return {name: keras.Input((None,), dtype="int32", name=name) for name in names}


def language_head(body: keras.Model, *, tied: bool) -> keras.layers.Layer:
    """Returns the head of a language model on `body`, built: hidden states [B, T, D] to [B, T, V].

    Args:
        body: from token ids to hidden states, with a layer "token_embedding".
        tied: whether it shares the embedding's weights, or has a kernel [D, V] of its own.
    """
    embedding: Any = body.get_layer("token_embedding")
    policy = embedding.dtype_policy
    if tied:
        return TiedHead(embedding, dtype=policy, name=LANGUAGE_HEAD)
    initializer: Any = keras.initializers.TruncatedNormal(stddev=0.02)
    head = keras.layers.Dense(
        embedding.input_dim,
        use_bias=False,
        kernel_initializer=initializer,
        dtype=policy,
        name=LANGUAGE_HEAD,
    )
    head.build((None, None, embedding.output_dim))
    return head


def assemble_tokens(
    body: keras.Model,
    heads: Mapping[str, keras.Model],
    language_head: keras.layers.Layer | None = None,
) -> keras.Model:
    """Returns the model "model": token ids and padding mask to logits, or to hidden states.

    Its sublayers are "backbone", on the layers of `body`, and "heads" with a layer for each head.

    Args:
        body: from {"token_ids", "padding_mask"} to hidden states [B, T, D].
        heads: models of {"features", "padding_mask"}, hidden states and int32 [B, T], by name.
        language_head: gives float32 logits [B, T, V], under the name "lm_head".
    """
    inputs = token_inputs()
    features = keras.Model(body.input, body.output, name="backbone")(inputs)
    if not heads and language_head is None:
        return keras.Model(inputs, features, name="model")
    hidden = keras.Input(features.shape[1:], dtype=features.dtype, name="features")
    states = {"features": hidden, "padding_mask": token_inputs()["padding_mask"]}
    outputs = {name: head(states) for name, head in heads.items()}
    if language_head is not None:
        outputs[LANGUAGE_HEAD] = ops.cast(language_head(hidden), "float32")
    only = next(iter(outputs.values()))
    tops = keras.Model(states, only if len(outputs) == 1 else outputs, name="heads")
    logits = tops({"features": features, "padding_mask": inputs["padding_mask"]})
    return keras.Model(inputs, logits, name="model")


def check_token_ids(token_ids: np.ndarray, vocabulary: int) -> None:
    """Passes where every id names a row of the embedding.

    JAX reads outside of it without an error and gives NaN.

    Raises:
        ModelError: an id is negative, or not below `vocabulary`.
    """
    ids = np.asarray(token_ids)
    outside = (ids < 0) | (ids >= vocabulary)
    if outside.any():
        place = tuple(int(i) for i in np.argwhere(outside)[0])
        raise ModelError(
            f"token id {ids[place]} at {list(place)} is outside of the vocabulary: expected 0 to "
            f"{vocabulary - 1}. The tokenizer is of another model, or has tokens added to it."
        )
