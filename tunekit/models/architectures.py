"""What the well-known architectures of the catalogue are built of; no weights.

Texts are described as a config.json of Hugging Face has it, images by the settings of KerasHub's
backbones. The configs are those of the repositories that `handles` name, and every parameter
count is as published: of safetensors on the model cards, of KerasHub's presets (with the running
statistics of BatchNorm), and of timm for the ViT-S. Importable without Keras or JAX.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal


@dataclass(frozen=True)
class Architecture:
    """One network, without weights."""

    config: Mapping[str, Any]
    """What `huggingface.from_config` takes; or settings of the class `keras_hub`."""
    parameters: int
    """As published: of the backbone, with its language head or its pooler where it has one."""
    handles: tuple[str, ...] = ()
    """Where its weights are: "hf://owner/name", or presets of KerasHub."""
    keras_hub: str | None = None
    """Class of KerasHub's that is built; `None` is that of the config's model_type."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """What the folder of the weights says beside its config: fields of a `Backbone`."""


def _decoder(
    kind: Literal["llama", "mistral", "qwen2", "gemma"],
    *,
    vocabulary: int,
    dim: int,
    layers: int,
    heads: int,
    key_value_heads: int,
    mlp_dim: int,
    length: int,
    tied: bool,
    **more: Any,
) -> dict[str, Any]:
    names = {"llama": "Llama", "mistral": "Mistral", "qwen2": "Qwen2", "gemma": "Gemma"}
    return {
        "model_type": kind,
        "architectures": [f"{names[kind]}ForCausalLM"],
        "vocab_size": vocabulary,
        "hidden_size": dim,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": key_value_heads,
        "intermediate_size": mlp_dim,
        "max_position_embeddings": length,
        "tie_word_embeddings": tied,
        **more,
    }


def _llama3(dim: int, layers: int, heads: int, mlp_dim: int) -> dict[str, Any]:
    return _decoder(
        "llama",
        vocabulary=128256,
        dim=dim,
        layers=layers,
        heads=heads,
        key_value_heads=8,
        mlp_dim=mlp_dim,
        length=8192,
        tied=False,
        rms_norm_eps=1e-5,
        rope_theta=500000.0,
    )


def _llama3_2(dim: int, layers: int, heads: int) -> dict[str, Any]:
    return {
        **_llama3(dim, layers, heads, 8192),
        "max_position_embeddings": 131072,
        "tie_word_embeddings": True,
        "rope_scaling": {
            "rope_type": "llama3",
            "factor": 32.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        },
    }


def _smollm2(
    dim: int, layers: int, heads: int, key_value_heads: int, mlp_dim: int, rope_theta: float
) -> dict[str, Any]:
    return _decoder(
        "llama",
        vocabulary=49152,
        dim=dim,
        layers=layers,
        heads=heads,
        key_value_heads=key_value_heads,
        mlp_dim=mlp_dim,
        length=8192,
        tied=True,
        rms_norm_eps=1e-5,
        rope_theta=rope_theta,
    )


def _qwen2_5(
    dim: int,
    layers: int,
    heads: int,
    key_value_heads: int,
    mlp_dim: int,
    *,
    length: int = 131072,
    tied: bool = False,
) -> dict[str, Any]:
    # Those of up to 3 billion parameters have the tokens alone; the others are padded further.
    return _decoder(
        "qwen2",
        vocabulary=151936 if tied else 152064,
        dim=dim,
        layers=layers,
        heads=heads,
        key_value_heads=key_value_heads,
        mlp_dim=mlp_dim,
        length=length,
        tied=tied,
        rms_norm_eps=1e-6,
        rope_theta=1000000.0,
    )


def _gemma(dim: int, layers: int, heads: int, key_value_heads: int, mlp_dim: int) -> dict[str, Any]:
    return _decoder(
        "gemma",
        vocabulary=256000,
        dim=dim,
        layers=layers,
        heads=heads,
        key_value_heads=key_value_heads,
        mlp_dim=mlp_dim,
        length=8192,
        tied=True,
        head_dim=256,
        rms_norm_eps=1e-6,
    )


def _bert(dim: int, layers: int, heads: int) -> dict[str, Any]:
    return {
        "model_type": "bert",
        "vocab_size": 30522,
        "hidden_size": dim,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "intermediate_size": 4 * dim,
        "max_position_embeddings": 512,
        "type_vocab_size": 2,
        "layer_norm_eps": 1e-12,
        "pad_token_id": 0,
    }


def _vit(dim: int, layers: int, heads: int) -> dict[str, Any]:
    return {
        "image_shape": (224, 224, 3),
        "patch_size": 16,
        "num_layers": layers,
        "num_heads": heads,
        "hidden_dim": dim,
        "mlp_dim": 4 * dim,
        "layer_norm_epsilon": 1e-6,
    }


def _resnet(blocks: tuple[int, int, int, int], *, bottleneck: bool) -> dict[str, Any]:
    return {
        "input_conv_filters": [64],
        "input_conv_kernel_sizes": [7],
        "stackwise_num_filters": [64, 128, 256, 512],
        "stackwise_num_blocks": list(blocks),
        "stackwise_num_strides": [1, 2, 2, 2],
        "block_type": "bottleneck_block" if bottleneck else "basic_block",
    }


def _named(owner: str, *tails: str) -> tuple[str, ...]:
    return tuple(f"hf://{owner}/{tail}" for tail in tails)


def _both(owner: str, tail: str, end: str = "-Instruct") -> tuple[str, ...]:
    """Handles of a base model and of the same tuned to instructions."""
    return _named(owner, tail, tail + end)


ARCHITECTURES: dict[str, Architecture] = {
    "llama3_8b": Architecture(
        _llama3(4096, 32, 32, 14336),
        8_030_261_248,
        (*_both("meta-llama", "Meta-Llama-3-8B"), "llama3_8b_en", "llama3_instruct_8b_en"),
    ),
    "llama3_70b": Architecture(
        _llama3(8192, 80, 64, 28672), 70_553_706_496, _both("meta-llama", "Meta-Llama-3-70B")
    ),
    "llama3_2_1b": Architecture(
        _llama3_2(2048, 16, 32), 1_235_814_400, _both("meta-llama", "Llama-3.2-1B")
    ),
    "llama3_2_3b": Architecture(
        _llama3_2(3072, 28, 24), 3_212_749_824, _both("meta-llama", "Llama-3.2-3B")
    ),
    "mistral_7b": Architecture(
        _decoder(
            "mistral",
            vocabulary=32000,
            dim=4096,
            layers=32,
            heads=32,
            key_value_heads=8,
            mlp_dim=14336,
            length=32768,
            tied=False,
            rms_norm_eps=1e-5,
            rope_theta=10000.0,
            sliding_window=4096,
        ),
        7_241_732_096,
        (
            *_named("mistralai", "Mistral-7B-v0.1", "Mistral-7B-Instruct-v0.1"),
            *("mistral_7b_en", "mistral_instruct_7b_en"),
        ),
    ),
    "gemma_2b": Architecture(
        _gemma(2048, 18, 8, 1, 16384),
        2_506_172_416,
        (*_both("google", "gemma-2b", "-it"), "gemma_2b_en", "gemma_instruct_2b_en"),
    ),
    "gemma_7b": Architecture(
        _gemma(3072, 28, 16, 16, 24576),
        8_537_680_896,
        (*_both("google", "gemma-7b", "-it"), "gemma_7b_en", "gemma_instruct_7b_en"),
    ),
    "qwen2_5_0_5b": Architecture(
        _qwen2_5(896, 24, 14, 2, 4864, length=32768, tied=True),
        494_032_768,
        (*_both("Qwen", "Qwen2.5-0.5B"), "qwen2.5_0.5b_en", "qwen2.5_instruct_0.5b_en"),
    ),
    "qwen2_5_1_5b": Architecture(
        _qwen2_5(1536, 28, 12, 2, 8960, tied=True), 1_543_714_304, _both("Qwen", "Qwen2.5-1.5B")
    ),
    "qwen2_5_3b": Architecture(
        _qwen2_5(2048, 36, 16, 2, 11008, length=32768, tied=True),
        3_085_938_688,
        (*_both("Qwen", "Qwen2.5-3B"), "qwen2.5_3b_en"),
    ),
    "qwen2_5_7b": Architecture(
        _qwen2_5(3584, 28, 28, 4, 18944), 7_615_616_512, _both("Qwen", "Qwen2.5-7B")
    ),
    "qwen2_5_14b": Architecture(
        _qwen2_5(5120, 48, 40, 8, 13824), 14_770_033_664, _both("Qwen", "Qwen2.5-14B")
    ),
    "qwen2_5_32b": Architecture(
        _qwen2_5(5120, 64, 40, 8, 27648), 32_763_876_352, _both("Qwen", "Qwen2.5-32B")
    ),
    "smollm2_135m": Architecture(
        _smollm2(576, 30, 9, 3, 1536, 100000.0),
        134_515_008,
        _both("HuggingFaceTB", "SmolLM2-135M"),
    ),
    "smollm2_360m": Architecture(
        _smollm2(960, 32, 15, 5, 2560, 100000.0),
        361_821_120,
        _both("HuggingFaceTB", "SmolLM2-360M"),
    ),
    "smollm2_1_7b": Architecture(
        _smollm2(2048, 24, 32, 32, 8192, 130000.0),
        1_711_376_384,
        _both("HuggingFaceTB", "SmolLM2-1.7B"),
    ),
    "bert_base": Architecture(
        _bert(768, 12, 12),
        109_482_240,
        (*_named("google-bert", "bert-base-uncased"), "bert_base_en_uncased"),
    ),
    "bert_large": Architecture(
        _bert(1024, 24, 16),
        335_141_888,
        (*_named("google-bert", "bert-large-uncased"), "bert_large_en_uncased"),
    ),
    "distilbert_base": Architecture(
        {
            "model_type": "distilbert",
            "vocab_size": 30522,
            "dim": 768,
            "n_layers": 6,
            "n_heads": 12,
            "hidden_dim": 3072,
            "max_position_embeddings": 512,
            "pad_token_id": 0,
        },
        66_362_880,
        (*_named("distilbert", "distilbert-base-uncased"), "distil_bert_base_en_uncased"),
    ),
    "minilm_l6": Architecture(
        _bert(384, 6, 12),
        22_713_216,
        (*_named("sentence-transformers", "all-MiniLM-L6-v2"), "all_minilm_l6_v2_en"),
        settings={"sentence_pooling": "avg", "max_length_tokens": 256},
    ),
    "vit_small_16": Architecture(_vit(384, 12, 6), 21_665_664, keras_hub="ViTBackbone"),
    "vit_base_16": Architecture(
        _vit(768, 12, 12), 85_798_656, ("vit_base_patch16_224_imagenet",), "ViTBackbone"
    ),
    "vit_large_16": Architecture(
        _vit(1024, 24, 16), 303_301_632, ("vit_large_patch16_224_imagenet",), "ViTBackbone"
    ),
    "resnet_18": Architecture(
        _resnet((2, 2, 2, 2), bottleneck=False),
        11_186_112,
        ("resnet_18_imagenet",),
        "ResNetBackbone",
    ),
    "resnet_34": Architecture(
        _resnet((3, 4, 6, 3), bottleneck=False), 21_301_696, keras_hub="ResNetBackbone"
    ),
    "resnet_50": Architecture(
        _resnet((3, 4, 6, 3), bottleneck=True),
        23_561_152,
        ("resnet_50_imagenet",),
        "ResNetBackbone",
    ),
    "resnet_101": Architecture(
        _resnet((3, 4, 23, 3), bottleneck=True),
        42_605_504,
        ("resnet_101_imagenet",),
        "ResNetBackbone",
    ),
    "resnet_152": Architecture(
        _resnet((3, 8, 36, 3), bottleneck=True),
        58_295_232,
        ("resnet_152_imagenet",),
        "ResNetBackbone",
    ),
}
"""By name, as a recipe's ``backbone`` says it."""
