"""Hugging Face folders: config.json, model.safetensors, preprocessor_config.json."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import keras

from tunekit.errors import ModelError, did_you_mean
from tunekit.models import hub, resnet, text, vit
from tunekit.models.backbone import Backbone, PretrainedHead
from tunekit.models.initialisation import seeded, without_values
from tunekit.models.labels import distinct
from tunekit.models.preprocessing import PIL_CODES, ImagePreprocessing, crop_fraction
from tunekit.models.spec import BackboneSpec
from tunekit.models.torch_weights import TorchWeights, read_json

Config = Mapping[str, Any]
Size = tuple[int, int]


@dataclass(frozen=True)
class _Family:
    """How one model_type becomes a Keras model."""

    prefix: str
    """Of the body's tensors in the folder of a classifier."""
    build: Callable[[Config, Size], keras.Model]
    fill: Callable[[keras.Model, Config, TorchWeights, Size], None]
    classifier: str
    pooling: Literal["avg", "token", "token+avg"]
    ignored: str = ""


def load_folder(
    folder: Path, spec: BackboneSpec, *, seed: int, depth: int | None = None
) -> Backbone:
    """Returns the backbone in a Hugging Face folder, with its classifier if it has one.

    Args:
        folder: to read; of pretrained weights, or a config.json at least.
        spec: how it is built; its `name` is not read.
        seed: of fresh weights.
        depth: how many blocks to build, without pretrained weights; `None` is as the config says.

    Raises:
        ModelError: the folder is incomplete or of a family that tunekit does not read.
    """
    config = read_json(folder / "config.json")
    kind, key = config["model_type"], depth_key(config)
    if depth is not None and key is not None:
        config = {**config, key: depth}
    if kind in text.FAMILIES:
        return text.load_folder(folder, config, spec, seed=seed)
    if kind not in _FAMILIES:
        known = (*_FAMILIES, *text.FAMILIES)
        raise ModelError(
            f"{folder} holds a '{kind}'; of Hugging Face folders tunekit reads "
            f"{', '.join(known)}.{did_you_mean(kind, known)}"
        )
    return _images(folder, config, _preprocessing(folder, config, spec), spec, seed)


def from_config(source: Path, config: Config, spec: BackboneSpec, *, seed: int) -> Backbone:
    """Returns the backbone that a config.json describes, with fresh weights and nothing else.

    Args:
        source: a name, or the folder that the config is of; nothing is read there.
        config: of a family that tunekit reads.
        spec: not pretrained; its `name` is not read.
        seed: of the fresh weights.

    Raises:
        ModelError: the config is incomplete, or asks for what is not built here.
    """
    assert not spec.pretrained, "a config has no weights"
    if config["model_type"] in text.FAMILIES:
        return text.from_config(source, config, spec, seed=seed)
    return _images(source, config, _usual_preprocessing(config), spec, seed)


def depth_key(config: Config) -> str | None:
    """Returns the key of a config.json that says how many blocks there are, all of one kind.

    `None` where none does.
    """
    family = text.FAMILIES.get(config["model_type"])
    key = "num_hidden_layers" if family is None else family.depth
    return key if key in config else None


def _images(
    folder: Path,
    config: Config,
    preprocessing: ImagePreprocessing,
    spec: BackboneSpec,
    seed: int,
) -> Backbone:
    """The backbone of a family of images; `folder` is read for pretrained weights alone."""
    kind = config["model_type"]
    family = _FAMILIES[kind]
    size = hub.image_size(spec, preprocessing.image_size_px)
    head = None
    if spec.pretrained:
        with without_values() as placeholders:
            model = family.build(config, size)
        weights = TorchWeights(folder, prefix=family.prefix)
        family.fill(model, config, weights, size)
        head = _head(weights, config, family)
        weights.finish(model, placeholders.left_in(model), ignored=family.ignored)
    else:
        with seeded(seed):
            model = family.build(config, size)
    return hub.as_backbone(
        model, preprocessing.with_size(size), source=str(folder), head=head, family=kind
    )


def _preprocessing(folder: Path, config: Config, spec: BackboneSpec) -> ImagePreprocessing:
    """The folder's; of fresh weights, which know no pixels yet, the usual where it has none."""
    if not spec.pretrained and not (folder / "preprocessor_config.json").is_file():
        return _usual_preprocessing(config)
    return read_preprocessing(folder)


def _usual_preprocessing(config: Config) -> ImagePreprocessing:
    side = config.get("image_size", 224)
    half = (0.5, 0.5, 0.5)
    return ImagePreprocessing((side, side), resize="squash").with_mean_std(half, half)


def read_preprocessing(folder: Path) -> ImagePreprocessing:
    """Returns what the folder's image processor does, on its Pillow path.

    Raises:
        ModelError: the processor is missing, or does what tunekit cannot repeat.
    """
    path = folder / "preprocessor_config.json"
    config = read_json(path)
    if not config:
        raise ModelError(
            f"{folder} has no preprocessor_config.json, which says the size, mean and standard "
            "deviation of the images; copy it from the model's page."
        )
    odd = [key for key in ("do_pad", "rescale_offset", "do_reduce_labels") if config.get(key)]
    if odd or not config.get("do_resize", True):
        raise ModelError(f"{path}: images with {odd or 'do_resize: false'} are not supported.")
    kind = str(config.get("image_processor_type") or config.get("feature_extractor_type") or "ViT")
    geometry = _geometry(config, path, convnext=kind.startswith("ConvNext"))
    default_resample = 2 if kind.startswith("ViT") else 3
    rescale = config.get("rescale_factor", 1 / 255) if config.get("do_rescale", True) else 1.0
    half = (0.5, 0.5, 0.5)
    normalises = config.get("do_normalize", True)
    return ImagePreprocessing(
        interpolation=PIL_CODES[config.get("resample", default_resample)],
        crop_rounding="down",
        **geometry,
    ).with_mean_std(
        mean=config.get("image_mean", half) if normalises else (0.0, 0.0, 0.0),
        std=config.get("image_std", half) if normalises else (1.0, 1.0, 1.0),
        rescale=rescale,
    )


def _geometry(config: Config, path: Path, *, convnext: bool) -> dict[str, Any]:
    """Size, kind of resize and crop fraction of an image processor."""
    size = config.get("size", 224)
    crops = bool(config.get("do_center_crop", False))
    if isinstance(size, int):  # as written before transformers 4.23
        size = {"shortest_edge": size} if convnext or crops else {"height": size, "width": size}
    if {"height", "width"} <= set(size) and not crops:
        return {"image_size_px": (size["height"], size["width"]), "resize": "squash"}
    edge = size.get("shortest_edge")
    if convnext and edge:
        if edge >= 384:
            return {"image_size_px": (edge, edge), "resize": "squash"}
        fraction = config.get("crop_pct") or 224 / 256
        return {"image_size_px": (edge, edge), "resize": "crop", "crop_fraction": fraction}
    cut = config.get("crop_size", {})
    cut = {"height": cut, "width": cut} if isinstance(cut, int) else cut
    if edge and crops and cut.get("height") == cut.get("width") and (cut["height"] <= edge):
        side = cut["height"]
        return {
            "image_size_px": (side, side),
            "resize": "crop",
            "crop_fraction": crop_fraction(side, edge),
        }
    raise ModelError(
        f"{path}: expected a size of height and width, or a shortest_edge with a square centre "
        f"crop inside it; got size={size}, crop_size={cut}, do_center_crop={crops}."
    )


def _head(weights: TorchWeights, config: Config, family: _Family) -> PretrainedHead | None:
    found = weights.head(family.classifier)
    if found is None:
        return None
    kernel, bias = found
    named = {int(index): label for index, label in config.get("id2label", {}).items()}
    labels = distinct(named.get(index, str(index)) for index in range(len(bias)))
    return PretrainedHead(labels, family.pooling, kernel, bias)


def _resnet_shape(config: Config) -> resnet.ResNetShape:
    _check_activation(config, "relu")
    return resnet.ResNetShape(
        widths=tuple(config["hidden_sizes"]),
        depths=tuple(config["depths"]),
        bottleneck=config.get("layer_type", "bottleneck") == "bottleneck",
        stem_width=config.get("embedding_size", 64),
        stride_in_first_conv=config.get("downsample_in_bottleneck", False),
        stride_in_first_stage=config.get("downsample_in_first_stage", False),
    )


def _vit_shape(config: Config) -> vit.ViTShape:
    _check_activation(config, "gelu")
    is_vit = config["model_type"] == "vit"
    dim = config["hidden_size"]
    return vit.ViTShape(
        patch=config["patch_size"],
        layers=config["num_hidden_layers"],
        heads=config["num_attention_heads"],
        dim=dim,
        mlp_dim=config["intermediate_size"] if is_vit else int(dim * config.get("mlp_ratio", 4)),
        epsilon=config.get("layer_norm_eps", 1e-12 if is_vit else 1e-6),
        qkv_bias=config.get("qkv_bias", True),
        registers=config.get("num_register_tokens", 0),
        layer_scale=not is_vit,
        gated_mlp=config.get("use_swiglu_ffn", False),
        antialias_positions=config["model_type"] == "dinov2_with_registers",
    )


def _check_activation(config: Config, wanted: str) -> None:
    got = config.get("hidden_act", wanted)
    if got != wanted:
        raise ModelError(
            f"config.json: hidden_act '{got}' is not supported; a '{config['model_type']}' is "
            f"built with '{wanted}'."
        )


def _build_vit(config: Config, size: Size) -> keras.Model:
    return vit.build(_vit_shape(config), size)


def _fill_vit(model: keras.Model, config: Config, weights: TorchWeights, size: Size) -> None:
    names = vit.HUGGINGFACE_VIT if config["model_type"] == "vit" else vit.HUGGINGFACE_DINOV2
    vit.fill(model, _vit_shape(config), weights, names, size)


def _build_resnet(config: Config, size: Size) -> keras.Model:
    return resnet.build(_resnet_shape(config), size)


def _fill_resnet(model: keras.Model, config: Config, weights: TorchWeights, size: Size) -> None:
    resnet.fill(model, _resnet_shape(config), weights, resnet.HUGGINGFACE)


_DINOV2 = _Family(
    prefix="dinov2.",
    build=_build_vit,
    fill=_fill_vit,
    classifier="classifier",
    pooling="token+avg",
    ignored=r"embeddings\.mask_token",
)
_FAMILIES = {
    "resnet": _Family("resnet.", _build_resnet, _fill_resnet, "classifier.1", "avg"),
    "vit": _Family("vit.", _build_vit, _fill_vit, "classifier", "token", r"pooler\..*"),
    "dinov2": _DINOV2,
    "dinov2_with_registers": _Family(
        prefix="dinov2_with_registers.",
        build=_build_vit,
        fill=_fill_vit,
        classifier="classifier",
        pooling="token+avg",
        ignored=_DINOV2.ignored,
    ),
}
