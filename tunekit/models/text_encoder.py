"""BERT, RoBERTa and DistilBERT as Hugging Face keeps them, built of KerasHub's layers.

KerasHub's own BertBackbone computes GELU by its tanh approximation and takes one epsilon for
every checkpoint, and its RobertaBackbone has no segments; here the folder's config decides.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import keras
from keras import layers

from tunekit.errors import ModelError, did_you_mean
from tunekit.models import hub
from tunekit.models.token_graph import token_inputs
from tunekit.models.torch_weights import TorchWeights


@keras.saving.register_keras_serializable(package="tunekit")
def gelu_tanh(x: Any) -> Any:
    """Returns GELU by its tanh approximation, which torch calls gelu_new, gelu_fast and others."""
    return keras.activations.gelu(x, approximate=True)


_ACTIVATIONS: dict[str, Any] = {
    "gelu": keras.activations.gelu,
    "gelu_new": gelu_tanh,
    "gelu_fast": gelu_tanh,
    "gelu_pytorch_tanh": gelu_tanh,
    "relu": keras.activations.relu,
    "silu": keras.activations.silu,
    "swish": keras.activations.silu,
}


@dataclass(frozen=True)
class EncoderShape:
    """What sets one encoder of tokens apart from another."""

    vocabulary: int
    dim: int
    layers: int
    heads: int
    mlp_dim: int
    activation: str
    epsilon: float
    """Of every layer normalisation."""
    dropout: float
    """Of hidden states and of attention alike."""
    positions: int
    segments: int = 0
    """Kinds of segment that have an embedding; every token is of the first."""
    first_position: int = 0
    """Row of the table of positions that the first token has; RoBERTa leaves the first two out."""


@dataclass(frozen=True)
class EncoderNames:
    """Where a family keeps its tensors; those of a block follow `block`, `{}` being its index."""

    block: str
    qkv: tuple[str, str, str]
    output: str
    mlp: tuple[str, str]
    norms: tuple[str, str]
    """After the attention and after the MLP."""


BERT = EncoderNames(
    block="encoder.layer.{}.",
    qkv=("attention.self.query", "attention.self.key", "attention.self.value"),
    output="attention.output.dense",
    mlp=("intermediate.dense", "output.dense"),
    norms=("attention.output.LayerNorm", "output.LayerNorm"),
)
DISTILBERT = EncoderNames(
    block="transformer.layer.{}.",
    qkv=("attention.q_lin", "attention.k_lin", "attention.v_lin"),
    output="attention.out_lin",
    mlp=("ffn.lin1", "ffn.lin2"),
    norms=("sa_layer_norm", "output_layer_norm"),
)
HEADS = (
    r"pooler\..*|cls\..*|classifier\..*|pre_classifier\..*|qa_outputs\..*|lm_head\..*"
    r"|vocab_(transform|layer_norm|projector)\..*|embeddings\.(position|token_type)_ids"
)
"""Pattern of tensors that stand above the hidden states, or are no weights."""


def activation(name: str) -> Any:
    """Returns the activation that Hugging Face calls `name`.

    Raises:
        ModelError: none is called so.
    """
    if name not in _ACTIVATIONS:
        raise ModelError(
            f"config.json: activation '{name}' is not supported; expected one of "
            f"{', '.join(_ACTIVATIONS)}.{did_you_mean(name, _ACTIVATIONS)}"
        )
    return _ACTIVATIONS[name]


def bert_shape(config: Mapping[str, Any]) -> EncoderShape:
    """Returns the shape that the config.json of a BERT or RoBERTa says.

    Raises:
        ModelError: it asks for what is not built here.
    """
    odd = {
        "position_embedding_type": config.get("position_embedding_type", "absolute") != "absolute",
        "is_decoder": config.get("is_decoder", False),
        "add_cross_attention": config.get("add_cross_attention", False),
    }
    if found := [key for key, is_odd in odd.items() if is_odd]:
        wrong = ", ".join(f"{key}={config[key]!r}" for key in found)
        raise ModelError(f"config.json: {wrong} is not supported for a '{config['model_type']}'.")
    roberta = config["model_type"] == "roberta"
    # Positions are counted from the row after the padding token's.
    first = config.get("pad_token_id", 1) + 1 if roberta else 0
    return EncoderShape(
        vocabulary=config["vocab_size"],
        dim=config["hidden_size"],
        layers=config["num_hidden_layers"],
        heads=config["num_attention_heads"],
        mlp_dim=config["intermediate_size"],
        activation=config.get("hidden_act", "gelu"),
        epsilon=config.get("layer_norm_eps", 1e-12),
        dropout=config.get("hidden_dropout_prob", 0.1),
        positions=config["max_position_embeddings"] - first,
        segments=config.get("type_vocab_size", 2),
        first_position=first,
    )


def distilbert_shape(config: Mapping[str, Any]) -> EncoderShape:
    """Returns the shape that the config.json of a DistilBERT says."""
    return EncoderShape(
        vocabulary=config["vocab_size"],
        dim=config["dim"],
        layers=config["n_layers"],
        heads=config["n_heads"],
        mlp_dim=config["hidden_dim"],
        activation=config.get("activation", "gelu"),
        epsilon=1e-12,
        dropout=config.get("dropout", 0.1),
        positions=config["max_position_embeddings"],
    )


def build(shape: EncoderShape, name: str) -> keras.Model:
    """Returns the network from token ids and padding mask to hidden states [B, T, D].

    Raises:
        ModelError: its activation is not known here.
    """
    parts = hub.keras_hub().layers
    initializer: Any = keras.initializers.TruncatedNormal(stddev=0.02)
    inputs = token_inputs()
    ids = inputs["token_ids"]
    words = layers.ReversibleEmbedding(
        shape.vocabulary, shape.dim, embeddings_initializer=initializer, name="token_embedding"
    )(ids)
    summed = [words]
    if shape.segments:
        segments = layers.Embedding(
            shape.segments,
            shape.dim,
            embeddings_initializer=initializer,
            name="segment_embedding",
        )
        summed.append(segments(keras.ops.zeros_like(ids)))
    positions = parts.PositionEmbedding(
        shape.positions, initializer=initializer, name="position_embedding"
    )
    summed.append(positions(words))
    x = layers.Add(name="embeddings_add")(summed)
    x = layers.LayerNormalization(epsilon=shape.epsilon, name="embeddings_layer_norm")(x)
    x = layers.Dropout(shape.dropout, name="embeddings_dropout")(x)
    for index in range(shape.layers):
        block = parts.TransformerEncoder(
            shape.mlp_dim,
            shape.heads,
            dropout=shape.dropout,
            activation=activation(shape.activation),
            layer_norm_epsilon=shape.epsilon,
            kernel_initializer=initializer,
            name=f"transformer_layer_{index}",
        )
        x = block(x, padding_mask=inputs["padding_mask"])
    return keras.Model(inputs, x, name=name)


def fill(
    model: keras.Model, shape: EncoderShape, weights: TorchWeights, names: EncoderNames
) -> None:
    """The layers of `model`, from `build`, hold the tensors of `weights`."""
    weights.embedding(model.get_layer("token_embedding"), "embeddings.word_embeddings")
    if shape.segments:
        weights.embedding(model.get_layer("segment_embedding"), "embeddings.token_type_embeddings")
    table = weights.take("embeddings.position_embeddings.weight")[shape.first_position :]
    positions: Any = model.get_layer("position_embedding")
    weights.assign(positions.position_embeddings, table, "embeddings.position_embeddings")
    weights.layer_norm(model.get_layer("embeddings_layer_norm"), "embeddings.LayerNorm")
    for index in range(shape.layers):
        block: Any = model.get_layer(f"transformer_layer_{index}")
        prefix = names.block.format(index)
        attention = block._self_attention_layer
        projections = (attention.query_dense, attention.key_dense, attention.value_dense)
        for layer, name in zip(projections, names.qkv, strict=True):
            weights.dense(layer, prefix + name)
        weights.dense(attention.output_dense, prefix + names.output)
        weights.dense(block._feedforward_intermediate_dense, prefix + names.mlp[0])
        weights.dense(block._feedforward_output_dense, prefix + names.mlp[1])
        weights.layer_norm(block._self_attention_layer_norm, prefix + names.norms[0])
        weights.layer_norm(block._feedforward_layer_norm, prefix + names.norms[1])
