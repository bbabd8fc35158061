"""The catalogue: well-known architectures by name, to plan with or to train from scratch."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from tunekit.errors import ModelError, did_you_mean
from tunekit.models import hub, huggingface
from tunekit.models.architectures import ARCHITECTURES, Architecture
from tunekit.models.backbone import Backbone
from tunekit.models.initialisation import seeded
from tunekit.models.preprocessing import ImagePreprocessing
from tunekit.models.spec import BackboneSpec

_KERAS_HUB_DEPTH = "num_layers"


def names() -> tuple[str, ...]:
    """Returns the names of all architectures."""
    return tuple(ARCHITECTURES)


def name_of(handle: str) -> str | None:
    """Returns the name of the architecture whose weights `handle` names; `None` if it is unknown.

    Example:
        >>> name_of("hf://HuggingFaceTB/SmolLM2-135M-Instruct")
        'smollm2_135m'
    """
    return next((name for name, one in ARCHITECTURES.items() if handle in one.handles), None)


def listed(name: str = "") -> str:
    """Returns a sentence that lists the architectures, and which of them is nearly `name`."""
    return f"The catalogue has {', '.join(names())}.{did_you_mean(name, names())}"


def load(name: str, spec: BackboneSpec, *, seed: int, depth: int | None = None) -> Backbone:
    """Returns the backbone of the catalogue, with fresh weights and without a tokenizer.

    Args:
        name: of the catalogue.
        spec: not pretrained; its `name` is not read.
        seed: of the weights.
        depth: how many blocks it is built with; `None` is its own number.

    Raises:
        ModelError: pretrained weights are asked for; or `depth` of what has stages.

    Example:
        >>> backbone = load("smollm2_135m", BackboneSpec(pretrained=False), seed=0, depth=2)
        >>> backbone.dim
        576
    """
    if spec.pretrained:
        raise ModelError(_without_weights(name))
    found = ARCHITECTURES[name]
    config = dict(found.config)
    if depth is not None:
        config[_checked_depth_key(name)] = depth
    if found.keras_hub is not None:
        return _images(name, found.keras_hub, config, spec, seed)
    backbone = huggingface.from_config(Path(name), config, spec, seed=seed)
    return replace(backbone, **found.settings)


def depth_of(name: str) -> int | None:
    """Returns how many blocks, all of one kind, an architecture has; `None` where it has stages."""
    key = _depth_key(ARCHITECTURES[name])
    return None if key is None else ARCHITECTURES[name].config[key]


def _checked_depth_key(name: str) -> str:
    key = _depth_key(ARCHITECTURES[name])
    if key is None:
        raise ModelError(f"'{name}' has stages of different blocks, and no depth to choose.")
    return key


def _depth_key(found: Architecture) -> str | None:
    if found.keras_hub is None:
        return huggingface.depth_key(found.config)
    return _KERAS_HUB_DEPTH if _KERAS_HUB_DEPTH in found.config else None


def _images(name: str, class_name: str, config: dict, spec: BackboneSpec, seed: int) -> Backbone:
    preprocessing = ImagePreprocessing((224, 224), resize="squash").with_mean_std(
        (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)
    )
    size = hub.image_size(spec, preprocessing.image_size_px)
    if "image_shape" in config:
        config["image_shape"] = (*size, 3)
    with seeded(seed):
        body = getattr(hub.keras_hub().models, class_name)(**config)
    return hub.as_backbone(body, preprocessing.with_size(size), source=name, head=None)


def _without_weights(name: str) -> str:
    handles = ARCHITECTURES[name].handles
    known = f", such as '{handles[0]}'" if handles else ""
    return (
        f"'{name}' is an architecture of the catalogue, which has no weights. Name what holds them"
        f"{known}, a downloaded Hugging Face folder or a KerasHub preset; or set pretrained: false "
        "to begin with random ones. Planning and compiling need none."
    )
