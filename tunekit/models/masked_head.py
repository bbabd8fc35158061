"""The head of a masked language model: a layer on each hidden state, then the vocabulary."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import keras
import numpy as np

from tunekit.errors import ModelError
from tunekit.models.backbone import Backbone
from tunekit.models.initialisation import without_values
from tunekit.models.text_encoder import activation
from tunekit.models.token_graph import LANGUAGE_HEAD, TiedHead, language_head
from tunekit.models.torch_weights import TorchWeights

_FRESH_SHIFT = 4.0
"""GELU leaves what lies this far above zero as it is."""


class MaskedHead(keras.layers.Layer):
    """Logits over the vocabulary: ``project(norm(activation(x W + b))) + bias``.

    The head of Devlin et al. 2018 (https://arxiv.org/abs/1810.04805); RoBERTa and DistilBERT have
    the same.
    """

    def __init__(
        self, projection: keras.layers.Layer, dim: int, activation_name: str, epsilon: float
    ) -> None:
        """Is built, on hidden states of width `dim`.

        Args:
            projection: onto the vocabulary, from `language_head`.
            dim: D.
            activation_name: as Hugging Face calls it.
            epsilon: of the normalisation.
        """
        policy = projection.dtype_policy
        super().__init__(dtype=policy, name=LANGUAGE_HEAD)
        self.activation_name, self.epsilon = activation_name, epsilon
        self.transform = keras.layers.Dense(
            dim, activation(activation_name), dtype=policy, name="transform"
        )
        self.norm = keras.layers.LayerNormalization(epsilon=epsilon, dtype=policy, name="norm")
        self.projection = projection
        for layer in (self.transform, self.norm):
            layer.build((None, None, dim))
        vocabulary = projection.compute_output_shape((None, None, dim))[-1]
        self.bias = self.add_weight(name="bias", shape=(vocabulary,), initializer="zeros")
        self.built = True

    def call(self, x: Any) -> Any:
        """Returns logits [..., V] of hidden states [..., D]."""
        return self.projection(self.norm(self.transform(x))) + self.bias

    def compute_output_shape(self, input_shape: Any) -> tuple[int | None, ...]:
        """Returns (..., V)."""
        return self.projection.compute_output_shape(input_shape)


@dataclass(frozen=True)
class MaskedNames:
    """A family's tensors of the head."""

    transform: str
    norm: str
    decoder: str
    bias: str


BERT = MaskedNames(
    "cls.predictions.transform.dense",
    "cls.predictions.transform.LayerNorm",
    "cls.predictions.decoder",
    "cls.predictions.bias",
)
ROBERTA = MaskedNames("lm_head.dense", "lm_head.layer_norm", "lm_head.decoder", "lm_head.bias")
DISTILBERT = MaskedNames(
    "vocab_transform", "vocab_layer_norm", "vocab_projector", "vocab_projector.bias"
)
NAMES = {"bert": BERT, "roberta": ROBERTA, "distilbert": DISTILBERT}
"""By the model_type of config.json."""


def load(
    body: keras.Model, config: Mapping[str, Any], weights: TorchWeights, epsilon: float
) -> MaskedHead | None:
    """Returns the head in a Hugging Face folder; `None` where it holds none.

    Args:
        body: the folder's encoder, filled.
        config: its config.json.
        weights: of the folder.
        epsilon: of the encoder's normalisations, which is the head's as well.

    Raises:
        ModelError: a tensor of the head is missing.
    """
    kind = config["model_type"]
    names = NAMES[kind]
    if f"{names.transform}.weight" not in weights:
        return None
    decoder = f"{names.decoder}.weight"
    # A tied decoder may have been saved beside the embedding that it is.
    tied = config.get("tie_word_embeddings", True) or decoder not in weights
    with without_values():
        head = build(body, config, epsilon, tied=tied)
    weights.dense(head.transform, names.transform)
    weights.layer_norm(head.norm, names.norm)
    weights.assign(head.bias, weights.take(names.bias), names.bias)
    if not tied:
        weights.dense(head.projection, names.decoder)
    return head


def build(
    body: keras.Model, config: Mapping[str, Any], epsilon: float, *, tied: bool = True
) -> MaskedHead:
    """Returns the head of a model with this config.json, its weights fresh.

    Args:
        body: the encoder.
        config: of a BERT, RoBERTa or DistilBERT.
        epsilon: of the normalisation.
        tied: whether it shares the embedding.
    """
    # RoBERTa's head has GELU whatever its blocks have.
    by_family = {"bert": config.get("hidden_act"), "distilbert": config.get("activation")}
    name = by_family.get(config["model_type"]) or "gelu"
    return MaskedHead(language_head(body, tied=tied), _dim(body), name, epsilon)


def with_masked_head(backbone: Backbone) -> Backbone:
    """Returns the encoder with a head for hidden tokens: its own, or a fresh one.

    A fresh one hands hidden states on nearly as they are, to the embedding in reverse: the
    transform is the identity, shifted to where GELU is one, and the norm takes the shift out.

    Raises:
        ModelError: it is no encoder of texts, or its token embedding is not to be found.
    """
    if backbone.features != "encoder_states":
        raise ModelError(
            f"'{backbone.source}' is no encoder of texts, and hidden tokens are found again by "
            "what stands on both sides of them; for a decoder use task: causal_lm."
        )
    if backbone.language_head is not None:
        return backbone
    if not _is_reversible(backbone):
        raise ModelError(
            f"'{backbone.source}' has no layer 'token_embedding' that works in reverse on hidden "
            "states, on which a head for hidden tokens stands; use the model's Hugging Face folder."
        )
    with without_values():
        head = MaskedHead(language_head(backbone.keras, tied=True), backbone.dim, "gelu", 1e-12)
    transform: Any = head.transform
    transform.kernel.assign(np.eye(backbone.dim))
    transform.bias.assign(np.full(backbone.dim, _FRESH_SHIFT))
    return replace(backbone, language_head=head)


def with_hub_head(backbone: Backbone, theirs: Any) -> Backbone:
    """Returns a backbone of KerasHub's with the head of the masked language model it came from.

    Without it where its embedding is no layer that the head could share.

    Args:
        backbone: of the model.
        theirs: the model's `MaskedLMHead`.
    """
    if not _is_reversible(backbone):
        return backbone
    name = keras.activations.serialize(theirs.intermediate_activation)
    projection = language_head(backbone.keras, tied=True)
    head = MaskedHead(projection, backbone.dim, str(name), theirs.layer_norm_epsilon)
    dense, norm = theirs._intermediate_dense, theirs._intermediate_layer_norm  # KerasHub 0.32
    values = (*dense.weights, *norm.weights, theirs._bias)
    ours = (*head.transform.weights, *head.norm.weights, head.bias)
    for variable, value in zip(ours, values, strict=True):
        variable.assign(value)
    return replace(backbone, language_head=head)


def _is_reversible(backbone: Backbone) -> bool:
    """Whether the token embedding turns hidden states into logits."""
    layers = {layer.name: layer for layer in backbone.keras.layers}
    embedding = layers.get("token_embedding")
    reversible = isinstance(embedding, keras.layers.ReversibleEmbedding)
    return reversible and embedding.output_dim == backbone.dim


def described(head: keras.layers.Layer | None) -> dict[str, Any] | None:
    """Returns what builds a language head again, as JSON values; `None` of none."""
    if isinstance(head, MaskedHead):
        masked = {"activation": head.activation_name, "epsilon": head.epsilon}
        return {"tied": isinstance(head.projection, TiedHead), "masked": masked}
    return None if head is None else {"tied": isinstance(head, TiedHead)}


def rebuilt(body: keras.Model, description: Mapping[str, Any] | None) -> keras.layers.Layer | None:
    """Returns the language head that `described` gave, on `body`; its weights are fresh."""
    if description is None:
        return None
    head = language_head(body, tied=description["tied"])
    if (masked := description.get("masked")) is None:
        return head
    return MaskedHead(head, _dim(body), masked["activation"], masked["epsilon"])


def _dim(body: keras.Model) -> int:
    embedding: Any = body.get_layer("token_embedding")
    return embedding.output_dim
