"""One door to every kind of pretrained backbone."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import keras

from tunekit.errors import ModelError
from tunekit.models import bundled, hub
from tunekit.models.backbone import Backbone
from tunekit.models.spec import BackboneSpec


def load_backbone(
    source: str | Path | keras.Model, spec: BackboneSpec, *, seed: int = 0
) -> Backbone:
    """Returns the backbone that `source` names, with its preprocessing and classifier.

    Args:
        source: a bundled name, a KerasHub preset (name, handle or folder), a Hugging Face or timm
            folder, "hf://owner/name", "keras.applications:Name", a ``.keras`` file, or a
            functional keras.Model, which is copied.
        spec: image size, precision, pretrained or not; its `name` is not read.
        seed: of the weights when ``spec.pretrained`` is False.

    Raises:
        ModelError: nothing has that name, or what it names cannot be read as an image backbone.
    """
    with _precision(spec.dtype):
        return _load(source, spec, seed)


def _load(source: str | Path | keras.Model, spec: BackboneSpec, seed: int) -> Backbone:
    name = str(source)
    if name in bundled.names():
        return hub.load_preset(str(bundled.folder(name)), spec, seed=seed)
    return hub.load_preset(name, spec, seed=seed)


@contextmanager
def _precision(dtype: str) -> Iterator[None]:
    """Layers built in this block have the policy `dtype`.

    Some KerasHub backbones (EfficientNet) do not hand their own dtype on to their layers.
    """
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(dtype)
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)
