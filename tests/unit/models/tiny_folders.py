"""Model folders small enough to be written for every test."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

PROCESSOR: dict[str, Any] = {
    "image_processor_type": "ViTImageProcessor",
    "size": {"height": 32, "width": 32},
    "resample": 2,
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
}
RESNET: dict[str, Any] = {
    "model_type": "resnet",
    "embedding_size": 8,
    "hidden_sizes": [16],
    "depths": [1],
    "id2label": {"0": "cat", "1": "dog", "2": "dog"},
}
TIMM_RESNET: dict[str, Any] = {
    "architecture": "resnet26",
    "num_classes": 3,
    "pretrained_cfg": {"input_size": [3, 32, 32], "classifier": "fc"},
}
VIT: dict[str, Any] = {
    "model_type": "vit",
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "patch_size": 8,
    "image_size": 32,
    "layer_norm_eps": 1e-12,
}


def write(
    folder: Path,
    config: dict[str, Any],
    tensors: dict[str, np.ndarray],
    processor: dict[str, Any] | None = PROCESSOR,
) -> Path:
    """Returns `folder`, which now holds a model in Hugging Face's or timm's format."""
    (folder / "config.json").write_text(json.dumps(config))
    if processor is not None:
        (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    save_file(tensors, folder / "model.safetensors")
    return folder


def resnet_tensors() -> dict[str, np.ndarray]:
    """Returns the tensors of `RESNET` as Hugging Face names them."""
    block = "resnet.encoder.stages.0.layers.0."
    convolutions = {
        "resnet.embedder.embedder": (8, 3, 7),
        f"{block}layer.0": (4, 8, 1),
        f"{block}layer.1": (4, 4, 3),
        f"{block}layer.2": (16, 4, 1),
        f"{block}shortcut": (16, 8, 1),
    }
    rng = np.random.default_rng(0)
    tensors = {}
    for name, (out, channels, size) in convolutions.items():
        kernel = rng.standard_normal((out, channels, size, size)) / size
        tensors[f"{name}.convolution.weight"] = kernel
        for part in ("weight", "bias", "running_mean", "running_var"):
            tensors[f"{name}.normalization.{part}"] = rng.uniform(0.5, 1.5, out)
        tensors[f"{name}.normalization.num_batches_tracked"] = np.zeros(1)
    tensors["classifier.1.weight"] = rng.standard_normal((3, 16))
    tensors["classifier.1.bias"] = rng.standard_normal(3)
    return {name: value.astype(np.float32) for name, value in tensors.items()}


def vit_tensors() -> dict[str, np.ndarray]:
    """Returns the tensors of `VIT` as Hugging Face names them, without a classifier."""
    shapes: dict[str, tuple[int, ...]] = {
        "embeddings.cls_token": (1, 1, 16),
        "embeddings.position_embeddings": (1, 17, 16),
        "embeddings.patch_embeddings.projection.weight": (16, 3, 8, 8),
        "embeddings.patch_embeddings.projection.bias": (16,),
        "pooler.dense.weight": (16, 16),
        "pooler.dense.bias": (16,),
    }
    dense = {"intermediate.dense": (32, 16), "output.dense": (16, 32)}
    for part in ("attention.query", "attention.key", "attention.value", "output.dense"):
        dense[f"attention.{part}"] = (16, 16)
    for name, shape in dense.items():
        shapes[f"encoder.layer.0.{name}.weight"] = shape
        shapes[f"encoder.layer.0.{name}.bias"] = shape[:1]
    norms = ("encoder.layer.0.layernorm_before", "encoder.layer.0.layernorm_after", "layernorm")
    for name in norms:
        shapes |= {f"{name}.weight": (16,), f"{name}.bias": (16,)}
    rng = np.random.default_rng(0)
    return {n: rng.standard_normal(s).astype(np.float32) for n, s in shapes.items()}
