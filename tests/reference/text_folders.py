"""Tiny folders of token models, the same wherever they are written: their weights follow a seed.

Every setting differs from its family's default, so that one which is dropped on the way shows.
"""

from __future__ import annotations

import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

SHAPES = Path(__file__).parent / "text_shapes.json"
EXPECTED = Path(__file__).parent / "text_expected.npz"
TOKEN_IDS = np.array([[5, 17, 98, 3, 61, 42, 7], [11, 4, 77, 29, 88, 1, 1]])
"""[2, 7]; the last two of the second are padding."""
PADDING_MASK = np.array([[1] * 7, [1] * 5 + [0] * 2])
MINILM_IDS = np.array(
    [[101, 7592, 2088, 999, 102, 0, 0, 0], [101, 2019, 16324, 3597, 27260, 2003, 4408, 102]]
)
"""[2, 8], for all-MiniLM-L6-v2; 0 is padding."""

_ENCODER = {
    "vocab_size": 99,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 24,
    "layer_norm_eps": 3e-3,
    "pad_token_id": 1,
}
_DECODER = {
    "vocab_size": 99,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
    "rms_norm_eps": 3e-3,
    "rope_theta": 50.0,
    "bos_token_id": 2,
    "eos_token_id": 3,
    "pad_token_id": 1,
}
_LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
CONFIGS: dict[str, dict[str, Any]] = {
    "bert": {**_ENCODER, "model_type": "bert", "architectures": ["BertModel"]},
    "bert-masked-lm": {
        **_ENCODER,
        "model_type": "bert",
        "architectures": ["BertForMaskedLM"],
        "hidden_act": "gelu_new",
    },
    "roberta-masked-lm": {
        **_ENCODER,
        "model_type": "roberta",
        "architectures": ["RobertaForMaskedLM"],
        "hidden_act": "relu",
        "type_vocab_size": 1,
    },
    "distilbert-masked-lm": {
        "model_type": "distilbert",
        "architectures": ["DistilBertForMaskedLM"],
        "vocab_size": 99,
        "dim": 32,
        "n_layers": 1,
        "n_heads": 4,
        "hidden_dim": 48,
        "max_position_embeddings": 24,
        "pad_token_id": 1,
    },
    "roberta": {
        **_ENCODER,
        "model_type": "roberta",
        "architectures": ["RobertaForSequenceClassification"],
        "type_vocab_size": 1,
    },
    "distilbert": {
        "model_type": "distilbert",
        "architectures": ["DistilBertForSequenceClassification"],
        "vocab_size": 99,
        "dim": 32,
        "n_layers": 2,
        "n_heads": 4,
        "hidden_dim": 48,
        "max_position_embeddings": 24,
        "pad_token_id": 1,
    },
    "llama": {
        **_DECODER,
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "tie_word_embeddings": True,
    },
    "llama-untied": {
        **_DECODER,
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "tie_word_embeddings": False,
        "rope_scaling": _LLAMA3,
    },
    "llama-head-dim": {
        **_DECODER,
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "tie_word_embeddings": False,
        "head_dim": 12,
        "rope_scaling": {"rope_type": "linear", "factor": 2.0},
    },
    "mistral": {
        **_DECODER,
        "model_type": "mistral",
        "architectures": ["MistralForCausalLM"],
        "tie_word_embeddings": False,
        "sliding_window": 3,
    },
    "qwen2": {
        **_DECODER,
        "model_type": "qwen2",
        "architectures": ["Qwen2ForCausalLM"],
        "tie_word_embeddings": True,
    },
    "gemma": {
        **{key: value for key, value in _DECODER.items() if key != "rope_theta"},
        "model_type": "gemma",
        "architectures": ["GemmaForCausalLM"],
        "head_dim": 12,
    },
    "gpt2": {
        "model_type": "gpt2",
        "architectures": ["GPT2LMHeadModel"],
        "vocab_size": 99,
        "n_embd": 32,
        "n_layer": 2,
        "n_head": 4,
        "n_inner": 48,
        "n_positions": 24,
        "layer_norm_epsilon": 3e-3,
        "bos_token_id": 2,
        "eos_token_id": 3,
    },
}
_LABELS = {"id2label": {"0": "dull", "1": "plain", "2": "bright"}}
CLASSIFIERS: dict[str, dict[str, Any]] = {
    f"{name}-classifier": {**CONFIGS[name], **_LABELS, "architectures": [architecture], **more}
    for name, architecture, more in (
        ("bert", "BertForSequenceClassification", {}),
        ("roberta", "RobertaForSequenceClassification", {}),
        ("distilbert", "DistilBertForSequenceClassification", {}),
        ("llama", "LlamaForSequenceClassification", {}),
        ("mistral", "MistralForSequenceClassification", {}),
        ("qwen2", "Qwen2ForSequenceClassification", {}),
        ("gemma", "GemmaForSequenceClassification", {}),
        # They know a text's last token by the padding token's id.
        ("gpt2", "GPT2ForSequenceClassification", {"pad_token_id": 1}),
    )
}


def tensors(name: str) -> dict[str, np.ndarray]:
    """Returns the float32 tensors of the folder `name`, as transformers names them."""
    shapes = json.loads(SHAPES.read_text())[name]
    return {key: _tensor(key, shape) for key, shape in shapes.items()}


def write(name: str, folder: Path) -> Path:
    """Returns `folder`, which now holds the model `name`."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps({**CONFIGS, **CLASSIFIERS}[name]))
    save_file(tensors(name), folder / "model.safetensors")
    return folder


def _tensor(name: str, shape: list[int]) -> np.ndarray:
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    value = rng.standard_normal(shape) * (0.25 if len(shape) > 1 else 0.1)
    is_scale = len(shape) == 1 and name.endswith("weight")
    return (value + is_scale).astype(np.float32)
