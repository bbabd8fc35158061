"""Llama, Mistral, Qwen2 and Gemma as Hugging Face keeps them, built of KerasHub's layers.

KerasHub's own backbones lose some of what a config.json says: Llama's forgets tied embeddings when
it is saved, Mistral's cannot tie them, Gemma's has one epsilon for all checkpoints, and Llama's
ignores linear rope scaling. `Decoder` puts the same layers together and says all of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

import keras

from tunekit.errors import ModelError
from tunekit.models import hub
from tunekit.models.token_graph import token_inputs
from tunekit.models.torch_weights import TorchWeights

Block = Literal["llama", "mistral", "qwen2", "gemma"]
IGNORED = r".*rotary_emb\.inv_freq|score\..*|lm_head\.weight"
"""Pattern of tensors that stand above the hidden states, or are no weights.

A file of tied weights may hold them twice; those of an untied head are taken by name.
"""


@dataclass(frozen=True)
class DecoderShape:
    """What sets one decoder of tokens apart from another."""

    block: Block
    """Whose layer of KerasHub's."""
    vocabulary: int
    dim: int
    layers: int
    heads: int
    key_value_heads: int
    head_dim: int
    mlp_dim: int
    """Of the gated MLP: the width of the gate."""
    epsilon: float
    """Of every normalisation."""
    rope_theta: float
    rope_factor: float = 1.0
    """Positions are divided by it."""
    rope_llama3: Mapping[str, float] | None = None
    """Llama 3.1's scaling: factor, low_freq_factor, high_freq_factor, and the length trained on."""
    window: int | None = None
    """Tokens that attention looks back on; None looks back on all."""
    dropout: float = 0.0


@keras.saving.register_keras_serializable(package="tunekit")
class Decoder(keras.Model):
    """Token ids and padding mask to hidden states [B, T, D] after the final norm.

    Attributes:
        token_embedding: [V, D], which a tied head shares.
        transformer_layers: the blocks, which also run with a cache of keys and values.
        layer_norm: the final norm.
    """

    def __init__(self, *, dtype: Any = None, name: str | None = None, **shape: Any) -> None:
        """Builds the network of a DecoderShape, given as its fields."""
        self.shape = DecoderShape(**shape)
        plan = self.shape
        inputs = token_inputs()
        initializer: Any = keras.initializers.TruncatedNormal(stddev=0.02)
        self.token_embedding = keras.layers.ReversibleEmbedding(
            plan.vocabulary,
            plan.dim,
            embeddings_initializer=initializer,
            dtype=dtype,
            name="token_embedding",
        )
        x = self.token_embedding(inputs["token_ids"])
        if plan.block == "gemma":
            x = x * plan.dim**0.5
        mask = "padding_mask" if plan.block == "gemma" else "decoder_padding_mask"
        self.transformer_layers = [
            _block(plan, dtype=dtype, name=f"transformer_layer_{index}")
            for index in range(plan.layers)
        ]
        for layer in self.transformer_layers:
            x = layer(x, **{mask: inputs["padding_mask"]})
        _, norm = hub.decoder_layers(plan.block)
        self.layer_norm = norm(plan.epsilon, dtype=dtype, name="final_norm")
        super().__init__(inputs, self.layer_norm(x), dtype=dtype, name=name or "decoder")

    def get_config(self) -> dict[str, Any]:
        """Returns what `__init__` takes."""
        dtype = keras.dtype_policies.serialize(self.dtype_policy)
        return {**asdict(self.shape), "dtype": dtype, "name": self.name}

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> Decoder:
        """Returns a fresh network of that shape."""
        dtype = config["dtype"]
        policy = keras.dtype_policies.deserialize(dtype) if isinstance(dtype, dict) else dtype
        return cls(**{**config, "dtype": policy})


def decoder_shape(config: Mapping[str, Any]) -> DecoderShape:
    """Returns the shape that the config.json of a Llama, Mistral, Qwen2 or Gemma says.

    Raises:
        ModelError: it asks for what KerasHub's layers do not compute.
    """
    kind = config["model_type"]
    _check_supported(config)
    heads = config["num_attention_heads"]
    head_dim = config.get("head_dim") or config["hidden_size"] // heads
    rope = _rope(config)
    llama3 = rope.get("llama3")
    plain = head_dim * heads == config["hidden_size"]
    block: Block = kind
    if kind == "llama" and not llama3 and not (plain and rope["factor"] == 1):
        block = "mistral"  # the same layer, which also knows these
    elif not (plain or kind in ("mistral", "gemma")):
        raise ModelError(
            f"config.json: head_dim {head_dim} of {heads} heads is not hidden_size "
            f"{config['hidden_size']}, which KerasHub's '{kind}' cannot be built with."
        )
    return DecoderShape(
        block=block,
        vocabulary=config["vocab_size"],
        dim=config["hidden_size"],
        layers=config["num_hidden_layers"],
        heads=heads,
        key_value_heads=config.get("num_key_value_heads") or heads,
        head_dim=head_dim,
        mlp_dim=config["intermediate_size"],
        epsilon=config.get("rms_norm_eps", 1e-6),
        rope_theta=rope["theta"],
        rope_factor=rope["factor"],
        rope_llama3=llama3,
        window=config.get("sliding_window", 4096) if kind == "mistral" else None,
        dropout=config.get("attention_dropout", 0.0),
    )


def build(shape: DecoderShape, name: str) -> keras.Model:
    """Returns the network from token ids and padding mask to hidden states [B, T, D]."""
    return Decoder(**asdict(shape), name=name)


def fill(model: Any, shape: DecoderShape, weights: TorchWeights) -> None:
    """The layers of `model`, from `build`, hold the tensors of `weights`."""
    weights.embedding(model.token_embedding, "embed_tokens")
    fill_block = _fill_gemma if shape.block == "gemma" else _fill_llama
    for index, block in enumerate(model.transformer_layers):
        fill_block(block, weights, f"layers.{index}.")
    weights.scale(model.layer_norm, "norm")


def _fill_llama(block: Any, weights: TorchWeights, prefix: str) -> None:
    attention = block._self_attention_layer
    weights.dense(attention._query_dense, f"{prefix}self_attn.q_proj")
    weights.dense(attention._key_dense, f"{prefix}self_attn.k_proj")
    weights.dense(attention._value_dense, f"{prefix}self_attn.v_proj")
    weights.dense(attention._output_dense, f"{prefix}self_attn.o_proj")
    weights.dense(block._feedforward_gate_dense, f"{prefix}mlp.gate_proj")
    weights.dense(block._feedforward_intermediate_dense, f"{prefix}mlp.up_proj")
    weights.dense(block._feedforward_output_dense, f"{prefix}mlp.down_proj")
    weights.scale(block._self_attention_layernorm, f"{prefix}input_layernorm")
    weights.scale(block._feedforward_layernorm, f"{prefix}post_attention_layernorm")


def _fill_gemma(block: Any, weights: TorchWeights, prefix: str) -> None:
    attention, dim = block.attention, block.hidden_dim
    for layer, letter in (
        (attention.query_dense, "q"),
        (attention.key_dense, "k"),
        (attention.value_dense, "v"),
    ):
        # KerasHub's kernel is [heads, D, head_dim].
        name = f"{prefix}self_attn.{letter}_proj"
        kernel = weights.take(f"{name}.weight").reshape(layer.kernel.shape[0], -1, dim)
        weights.assign(layer.kernel, kernel.transpose(0, 2, 1), name)
    weights.dense(attention.output_dense, f"{prefix}self_attn.o_proj")
    weights.dense(block.gating_ffw, f"{prefix}mlp.gate_proj")
    weights.dense(block.gating_ffw_2, f"{prefix}mlp.up_proj")
    weights.dense(block.ffw_linear, f"{prefix}mlp.down_proj")
    weights.scale(block.pre_attention_norm, f"{prefix}input_layernorm")
    weights.scale(block.pre_ffw_norm, f"{prefix}post_attention_layernorm")


def _block(shape: DecoderShape, *, dtype: Any, name: str) -> keras.layers.Layer:
    """One of KerasHub's decoder layers."""
    layer, _ = hub.decoder_layers(shape.block)
    settings: dict[str, Any] = {
        "intermediate_dim": shape.mlp_dim,
        "num_query_heads": shape.heads,
        "num_key_value_heads": shape.key_value_heads,
        "layer_norm_epsilon": shape.epsilon,
        "dropout": shape.dropout,
        "dtype": dtype,
        "name": name,
    }
    if shape.block == "gemma":
        # KerasHub halves the width that it is given.
        sizes = {"hidden_dim": shape.dim, "intermediate_dim": 2 * shape.mlp_dim}
        return layer(**{**settings, **sizes}, head_dim=shape.head_dim)
    settings["kernel_initializer"] = keras.initializers.RandomNormal(stddev=0.02)
    settings["rope_max_wavelength"] = shape.rope_theta
    if shape.block == "llama":
        if scaling := shape.rope_llama3:
            settings["rope_frequency_adjustment_factor"] = scaling["factor"]
            settings["rope_low_freq_factor"] = scaling["low_freq_factor"]
            settings["rope_high_freq_factor"] = scaling["high_freq_factor"]
            length = scaling["original_max_position_embeddings"]
            settings["rope_pretraining_sequence_length"] = length
        return layer(**settings)
    settings["rope_scaling_factor"] = shape.rope_factor
    if shape.block == "mistral":
        settings |= {"sliding_window": shape.window, "head_dim": shape.head_dim}
    return layer(**settings)


_LLAMA3 = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")


def _rope(config: Mapping[str, Any]) -> dict[str, Any]:
    """Theta, linear factor and Llama 3.1's scaling, of the keys of transformers 5 or older."""
    new = config.get("rope_parameters") or {}
    scaling = config.get("rope_scaling") or new
    kind = scaling.get("rope_type") or scaling.get("type") or "default"
    theta = new.get("rope_theta", config.get("rope_theta", 10000.0))
    found: dict[str, Any] = {"theta": theta, "factor": 1.0}
    if kind == "linear" and config["model_type"] != "gemma":
        found["factor"] = scaling["factor"]
    elif kind == "llama3" and config["model_type"] == "llama":
        found["llama3"] = {key: scaling[key] for key in _LLAMA3}
    elif kind != "default" or (config["model_type"] == "gemma" and theta != 10000):
        raise ModelError(
            f"config.json: rope of type '{kind}' with theta {theta} is not supported for a "
            f"'{config['model_type']}'; expected 'default' or 'linear', 'llama3' for a Llama, and "
            "'default' with theta 10000 for a Gemma."
        )
    return found


def _check_supported(config: Mapping[str, Any]) -> None:
    gemma = config["model_type"] == "gemma"
    # Gemma's first folders say "gelu" and mean the approximation.
    activations = ("gelu", "gelu_pytorch_tanh") if gemma else ("silu",)
    activation = config.get("hidden_activation") or config.get("hidden_act", activations[-1])
    wrong = [
        f"{key}={config[key]!r}"
        for key in ("attention_bias", "mlp_bias", "use_bidirectional_attention")
        if config.get(key)
    ]
    wrong += [f"hidden_act='{activation}'"] if activation not in activations else []
    slides = config.get("use_sliding_window") and config["model_type"] == "qwen2"
    if slides and config.get("max_window_layers", 0) < config["num_hidden_layers"]:
        wrong.append("use_sliding_window=True")  # KerasHub's layer ignores it
    if wrong:
        raise ModelError(
            f"config.json: {', '.join(wrong)} is not supported; KerasHub's "
            f"'{config['model_type']}' computes without."
        )
