"""timm folders: config.json with an architecture and its pretrained_cfg, model.safetensors."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import keras

from tunekit.errors import ModelError
from tunekit.models import efficientnet, hub, resnet, vit
from tunekit.models.backbone import Backbone, PretrainedHead
from tunekit.models.initialisation import Placeholders, seeded, without_values
from tunekit.models.labels import class_labels, distinct
from tunekit.models.preprocessing import ImagePreprocessing
from tunekit.models.spec import BackboneSpec
from tunekit.models.torch_weights import TorchWeights, read_json

Config = Mapping[str, Any]
Size = tuple[int, int]
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_RESIZE: dict[str, Any] = {"center": "crop", "squash": "squash", "border": "pad"}

# Only names whose forward pass is known in full: many timm variants (antialiased pools, rotary
# positions, other activations) have the very same tensors and compute something else.
_RESNET = re.compile(r"resnet\d+")
_EFFICIENTNET = re.compile(r"(tf_)?efficientnet_(b[0-5]|lite0)")
_VIT = re.compile(r"vit_[a-z]+_patch\d+(_reg\d+)?_(\d+|dinov2)")
# Heads are 64 wide but in the largest models.
_HEADS = {"huge": 16, "giant": 16, "gigantic": 16}


def load_folder(folder: Path, spec: BackboneSpec, *, seed: int) -> Backbone:
    """Returns the backbone in a timm folder, with its classifier if it has one.

    Raises:
        ModelError: the folder is incomplete or of an architecture that tunekit does not read.
    """
    config = read_json(folder / "config.json")
    architecture = str(config["architecture"])
    preprocessing = read_preprocessing(config)
    size = hub.image_size(spec, preprocessing.image_size_px)
    weights = TorchWeights(folder)
    build, fill, pooling, family = _reader(architecture, weights)
    first: AbstractContextManager[Placeholders | None]
    first = without_values() if spec.pretrained else seeded(seed)
    with first as placeholders:
        model = build(size)
    head = None
    if placeholders is not None:
        fill(model, size)
        head = _head(weights, config, folder, pooling)
        weights.finish(model, placeholders.left_in(model), ignored=r"mask_token")
    return hub.as_backbone(
        model,
        preprocessing.with_size(size),
        source=str(folder),
        head=head,
        family=family,
        license=_pretrained(config).get("license"),
    )


def read_preprocessing(config: Config) -> ImagePreprocessing:
    """Returns timm's evaluation transform for a config.json.

    Raises:
        ModelError: its crop mode is unknown.
    """
    cfg = _pretrained(config)
    mode = cfg.get("crop_mode") or "center"
    if mode not in _RESIZE:
        raise ModelError(f"config.json: crop_mode '{mode}'; expected one of {', '.join(_RESIZE)}.")
    _, height, width = cfg.get("input_size") or (3, 224, 224)
    geometry = ImagePreprocessing(
        (height, width),
        resize=_RESIZE[mode],
        crop_fraction=cfg.get("crop_pct") or 0.875,
        interpolation=cfg.get("interpolation") or "bicubic",
    )
    return geometry.with_mean_std(cfg.get("mean") or IMAGENET_MEAN, cfg.get("std") or IMAGENET_STD)


def _pretrained(config: Config) -> Config:
    # Files written before timm 0.9 hold these fields at the top.
    return config.get("pretrained_cfg") or config


def _reader(
    architecture: str, weights: TorchWeights
) -> tuple[Callable[[Size], keras.Model], Callable[[Any, Size], None], Any, str]:
    """(build, fill, pooling, family) of an architecture."""
    if _RESNET.fullmatch(architecture):
        residual = _resnet_shape(weights)
        return (
            lambda size: resnet.build(residual, size),
            lambda model, _: resnet.fill(model, residual, weights, resnet.TIMM),
            "avg",
            "resnet",
        )
    if match := _EFFICIENTNET.fullmatch(architecture):
        efficient = efficientnet.EfficientNetShape(match[2], same_padding=bool(match[1]))
        return (
            lambda size: efficientnet.build(efficient, size),
            lambda model, _: efficientnet.fill(model, efficient, weights),
            "avg",
            "efficientnet",
        )
    if _VIT.fullmatch(architecture):
        transformer = _vit_shape(architecture, weights)
        return (
            lambda size: vit.build(transformer, size),
            lambda model, size: vit.fill(model, transformer, weights, vit.TIMM, size),
            "token",
            "dinov2" if transformer.is_dinov2 else "vit",
        )
    raise ModelError(
        f"timm architecture '{architecture}' is not supported; resnet18 to resnet152, "
        "vit_<size>_patch<n>_<pixels>, vit_<size>_patch14[_reg4]_dinov2, [tf_]efficientnet_b0 to "
        "b5 and [tf_]efficientnet_lite0 are."
    )


def _resnet_shape(weights: TorchWeights) -> resnet.ResNetShape:
    bottleneck = "layer1.0.conv3.weight" in weights
    last = "conv3" if bottleneck else "conv2"
    depths, widths = [], []
    for stage in range(1, 5):
        depth = 0
        while f"layer{stage}.{depth}.conv1.weight" in weights:
            depth += 1
        depths.append(depth)
        widths.append(len(weights.take(f"layer{stage}.0.{last}.weight")))
    stem = len(weights.take("conv1.weight"))
    return resnet.ResNetShape(tuple(widths), tuple(depths), bottleneck, stem)


def _vit_shape(architecture: str, weights: TorchWeights) -> vit.ViTShape:
    dim, _, patch, _ = weights.take("patch_embed.proj.weight").shape
    depth = 0
    while f"blocks.{depth}.norm1.weight" in weights:
        depth += 1
    size, width = architecture.split("_")[1], int(dim)
    has_registers = "reg_token" in weights
    return vit.ViTShape(
        patch=patch,
        layers=depth,
        heads=_HEADS.get(size, width // 64),
        dim=width,
        mlp_dim=len(weights.take("blocks.0.mlp.fc1.weight")),
        epsilon=1e-6,
        qkv_bias="blocks.0.attn.qkv.bias" in weights,
        class_token="cls_token" in weights,
        registers=weights.take("reg_token").shape[1] if has_registers else 0,
        layer_scale="blocks.0.ls1.gamma" in weights,
        antialias_positions=True,
    )


def _head(
    weights: TorchWeights, config: Config, folder: Path, pooling: Any
) -> PretrainedHead | None:
    cfg = _pretrained(config)
    name = cfg.get("classifier") or ("head" if pooling == "token" else "fc")
    found = weights.head(name)
    if found is None:
        return None
    asked = config.get("global_pool") or pooling
    if asked != pooling:
        raise ModelError(
            f"{folder}: global_pool '{asked}' is not supported with a classifier; "
            f"'{pooling}' is. Remove '{name}.*' from the weights to load the backbone alone."
        )
    kernel, bias = found
    names = config.get("label_names") or cfg.get("label_names")
    labels = distinct(names) if names else class_labels(folder, len(bias))
    return PretrainedHead(labels, pooling, kernel, bias)
