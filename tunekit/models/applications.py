"""Models of keras.applications, by "keras.applications:Name"."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import keras
import numpy as np

from tunekit.errors import ModelError, did_you_mean
from tunekit.models import functional, hub
from tunekit.models.backbone import Backbone
from tunekit.models.initialisation import seeded, without_values
from tunekit.models.preprocessing import ImagePreprocessing
from tunekit.models.spec import BackboneSpec

PREFIX = "keras.applications:"

# The mode of each model's own preprocess_input; the models not named scale their inputs inside.
_MODES = {
    r"VGG\d+|ResNet\d+": "caffe",
    r"DenseNet\d+": "torch",
    r"ResNet\d+V2|Inception.*|Xception|MobileNet|MobileNetV2|NASNet.*": "tf",
}
# Means of the training images in Caffe's ResNet and VGG, in RGB here.
_CAFFE_OFFSET = (-123.68, -116.779, -103.939)
_TORCH_MEAN, _TORCH_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def names() -> list[str]:
    """Returns the names that may follow "keras.applications:"."""
    found = vars(keras.applications).items()
    return sorted(name for name, value in found if name[0].isupper() and callable(value))


def load_application(name: str, spec: BackboneSpec, *, seed: int) -> Backbone:
    """Returns the backbone of a keras.applications model, with its ImageNet classifier.

    Args:
        name: as in ``keras.applications.<name>``.
        spec: how to build it; ``pretrained`` fetches the weights over the network.
        seed: of fresh weights.

    Raises:
        ModelError: no such model, or its weights cannot be fetched.
    """
    if name not in names():
        raise ModelError(
            f"keras.applications has no '{name}'.{did_you_mean(name, names())} "
            f"It has {', '.join(names())}."
        )
    constructor = getattr(keras.applications, name)
    mode = next((m for pattern, m in _MODES.items() if re.fullmatch(pattern, name)), "none")
    with without_values() if spec.pretrained else seeded(seed):
        model = _built(constructor, name, weights="imagenet" if spec.pretrained else None)
    body, head = functional.cut_off_head(model, labels_from="")
    native = (model.inputs[0].shape[1], model.inputs[0].shape[2])
    size = hub.image_size(spec, native)
    if size != native:
        body = _at_size(constructor, body, size)
    if spec.pretrained and mode == "caffe":
        take_rgb(body)
    return hub.as_backbone(
        body,
        preprocessing(mode, size),
        source=PREFIX + name,
        head=head if spec.pretrained else None,
        family=name.lower(),
    )


def preprocessing(mode: str, size: tuple[int, int]) -> ImagePreprocessing:
    """Returns what ``keras.applications.imagenet_utils.preprocess_input`` does in `mode`.

    The flip to BGR of "caffe" is left out: `take_rgb` puts it into the weights.
    """
    plain = ImagePreprocessing(size, resize="squash", interpolation="bilinear")
    if mode == "caffe":
        return replace(plain, offset=_CAFFE_OFFSET)
    if mode == "torch":
        return plain.with_mean_std(_TORCH_MEAN, _TORCH_STD)
    if mode == "tf":
        return plain.with_mean_std((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    return plain


def take_rgb(body: keras.Model) -> None:
    """The first convolution of `body`, trained on BGR, takes RGB: the same sums, reordered."""
    first: Any = next(layer for layer in body.layers if isinstance(layer, keras.layers.Conv2D))
    assert first.kernel.shape[2] == 3, f"{first.name} does not see the image"
    first.kernel.assign(np.asarray(first.kernel)[:, :, ::-1])


def _built(constructor: Callable[..., keras.Model], name: str, weights: str | None) -> keras.Model:
    try:
        return constructor(weights=weights)
    except Exception as error:
        if weights is None:
            raise
        raise ModelError(
            f"the ImageNet weights of {PREFIX}{name} cannot be fetched ({error}). They come over "
            "the network; use pretrained: false, or a bundled backbone, where there is none."
        ) from error


def _at_size(
    constructor: Callable[..., keras.Model], body: keras.Model, size: tuple[int, int]
) -> keras.Model:
    with without_values():
        resized = constructor(include_top=False, weights=None, input_shape=(*size, 3))
    for ours, theirs in zip(resized.variables, body.variables, strict=True):
        ours.assign(theirs)
    return resized
