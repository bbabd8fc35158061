"""GPT-2 as Hugging Face keeps it, built of KerasHub's layers with the epsilon of its config."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import keras
import numpy as np
from keras import layers

from tunekit.errors import ModelError
from tunekit.models import hub
from tunekit.models.text_encoder import activation
from tunekit.models.token_graph import token_inputs
from tunekit.models.torch_weights import TorchWeights

IGNORED = r"h\.\d+\.attn\.(bias|masked_bias)|score\..*|lm_head\.weight"
"""Pattern of tensors that are masks, or stand above the hidden states."""


def build(config: Mapping[str, Any], name: str) -> keras.Model:
    """Returns the network from token ids and padding mask to hidden states [B, T, D].

    Raises:
        ModelError: the config asks for what KerasHub's layers do not compute.
    """
    _check_supported(config)
    parts = hub.keras_hub().layers
    dim, epsilon = config["n_embd"], config.get("layer_norm_epsilon", 1e-5)
    dropout = config.get("resid_pdrop", 0.1)
    initializer: Any = keras.initializers.RandomNormal(stddev=0.02)
    inputs = token_inputs()
    words = layers.ReversibleEmbedding(
        config["vocab_size"], dim, embeddings_initializer=initializer, name="token_embedding"
    )(inputs["token_ids"])
    positions = parts.PositionEmbedding(
        config["n_positions"], initializer=initializer, name="position_embedding"
    )(words)
    x = layers.Add(name="embeddings_add")([words, positions])
    x = layers.Dropout(config.get("embd_pdrop", dropout), name="embeddings_dropout")(x)
    for index in range(config["n_layer"]):
        block = parts.TransformerDecoder(
            config.get("n_inner") or 4 * dim,
            config["n_head"],
            dropout=dropout,
            activation=activation(config.get("activation_function", "gelu_new")),
            layer_norm_epsilon=epsilon,
            kernel_initializer=initializer,
            normalize_first=True,
            name=f"transformer_layer_{index}",
        )
        x = block(x, decoder_padding_mask=inputs["padding_mask"])
    x = layers.LayerNormalization(epsilon=epsilon, name="final_norm")(x)
    return keras.Model(inputs, x, name=name)


def fill(model: keras.Model, config: Mapping[str, Any], weights: TorchWeights) -> None:
    """The layers of `model`, from `build`, hold the tensors of `weights`."""
    weights.embedding(model.get_layer("token_embedding"), "wte")
    positions: Any = model.get_layer("position_embedding")
    weights.assign(positions.position_embeddings, weights.take("wpe.weight"), "wpe")
    for index in range(config["n_layer"]):
        block: Any = model.get_layer(f"transformer_layer_{index}")
        prefix = f"h.{index}."
        attention = block._self_attention_layer
        _fill_qkv(attention, weights, f"{prefix}attn.c_attn")
        _fill_linear(attention._output_dense, weights, f"{prefix}attn.c_proj")
        _fill_linear(block._feedforward_intermediate_dense, weights, f"{prefix}mlp.c_fc")
        _fill_linear(block._feedforward_output_dense, weights, f"{prefix}mlp.c_proj")
        weights.layer_norm(block._self_attention_layer_norm, f"{prefix}ln_1")
        weights.layer_norm(block._feedforward_layer_norm, f"{prefix}ln_2")
    weights.layer_norm(model.get_layer("final_norm"), "ln_f")


def _fill_qkv(attention: Any, weights: TorchWeights, name: str) -> None:
    """One kernel [D, 3 D] in the file, three [D, heads, head_dim] here."""
    targets = (attention._query_dense, attention._key_dense, attention._value_dense)
    kernels = np.split(weights.take(f"{name}.weight"), 3, axis=-1)
    biases = np.split(weights.take(f"{name}.bias"), 3)
    for layer, kernel, bias in zip(targets, kernels, biases, strict=True):
        weights.unfold(layer.kernel, kernel, name)
        weights.unfold(layer.bias, bias, name)


def _fill_linear(layer: Any, weights: TorchWeights, name: str) -> None:
    """A kernel that is [in, out] in the file already."""
    weights.unfold(layer.kernel, weights.take(f"{name}.weight"), name)
    weights.assign(layer.bias, weights.take(f"{name}.bias"), name)


def _check_supported(config: Mapping[str, Any]) -> None:
    odd = {
        "scale_attn_weights": not config.get("scale_attn_weights", True),
        "scale_attn_by_inverse_layer_idx": config.get("scale_attn_by_inverse_layer_idx", False),
        "add_cross_attention": config.get("add_cross_attention", False),
    }
    if wrong := [f"{key}={config[key]!r}" for key, is_odd in odd.items() if is_odd]:
        raise ModelError(f"config.json: {', '.join(wrong)} is not supported for a 'gpt2'.")
