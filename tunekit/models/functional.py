"""Any functional keras.Model as a backbone: copied, and cut before its classifier.

Reads ``KerasTensor._keras_history`` and ``Operation._inbound_nodes`` (Keras 3.15) to walk back
from the outputs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
from keras import layers

from tunekit.errors import ModelError
from tunekit.models import hub
from tunekit.models.backbone import Backbone, PretrainedHead
from tunekit.models.initialisation import seeded, without_values
from tunekit.models.labels import class_labels
from tunekit.models.preprocessing import ImagePreprocessing
from tunekit.models.spec import BackboneSpec

_PASSED_OVER = (layers.Dropout, layers.Activation, layers.Softmax, layers.Identity)
_POOLINGS = {layers.GlobalAveragePooling2D: "avg", layers.GlobalMaxPooling2D: "max"}
_LOGIT_ACTIVATIONS = ("linear", "softmax", "sigmoid")


@dataclass(frozen=True)
class Cut:
    """Where the features of a classifier end, and the classifier behind them."""

    features: keras.KerasTensor
    pooling: str
    """Of the classifier over the features: "avg", "max", or "none" where they are vectors."""
    classifier: layers.Dense | None


def load_model(model: keras.Model, spec: BackboneSpec, *, seed: int) -> Backbone:
    """Returns a copy of `model` without its classifier; `model` itself stays as it was.

    The copy takes pixels 0..255: the model is believed to scale its own inputs.

    Raises:
        ModelError: `model` is not functional, or does not map one image to one tensor.
    """
    _check(model)
    preprocessing = _preprocessing(model, spec)
    copy = _copy(model, preprocessing.image_size_px, spec, seed)
    body, head = cut_off_head(copy, labels_from=None)
    return hub.as_backbone(
        body,
        preprocessing,
        source=model.name,
        head=head if spec.pretrained else None,
        family="functional",
    )


def cut_off_head(
    model: keras.Model, *, labels_from: str | None
) -> tuple[keras.Model, PretrainedHead | None]:
    """Returns `model` up to its features, on the same layers, and the classifier it had."""
    cut = find_cut(model)
    body = keras.Model(model.inputs[0], cut.features, name=model.name)
    if cut.classifier is None:
        return body, None
    kernel = np.asarray(cut.classifier.kernel, np.float32)
    bias = cut.classifier.bias
    bias = np.zeros(kernel.shape[1], np.float32) if bias is None else np.asarray(bias, np.float32)
    labels = class_labels(labels_from, len(bias))
    return body, PretrainedHead(labels, cut.pooling, kernel, bias)  # type: ignore[arg-type]


def find_cut(model: keras.Model) -> Cut:
    """Returns where `model` ends being a body.

    A closing Dense layer with linear, softmax or sigmoid outputs is the classifier; a global
    pooling before it, or at the end, is the head's. Otherwise the features are the outputs.
    """
    tensor, classifier = _before(model.outputs[0], _PASSED_OVER), None
    producer = _producer(tensor)
    if isinstance(producer, layers.Dense):
        if keras.activations.serialize(producer.activation) in _LOGIT_ACTIVATIONS:
            classifier = producer
            tensor = _before(_inputs(tensor)[0], _PASSED_OVER)
            producer = _producer(tensor)
    if type(producer) in _POOLINGS and len(tensor.shape) == 2:
        return Cut(_inputs(tensor)[0], _POOLINGS[type(producer)], classifier)
    return Cut(tensor if classifier else model.outputs[0], "none", classifier)


def _check(model: keras.Model) -> None:
    if not (getattr(model, "inputs", None) and getattr(model, "outputs", None)):
        raise ModelError(
            f"'{model.name}' ({type(model).__name__}) is no functional model; build it with "
            "keras.Model(inputs, outputs) or keras.Sequential([keras.Input(...), ...])."
        )
    if len(model.inputs) != 1 or len(model.outputs) != 1:
        raise ModelError(
            f"'{model.name}' has {len(model.inputs)} inputs and {len(model.outputs)} outputs; "
            "a backbone maps one image to one tensor."
        )
    shape = model.inputs[0].shape
    if len(shape) != 4 or shape[-1] != 3:
        raise ModelError(
            f"'{model.name}' takes inputs of shape {shape}; expected images (None, H, W, 3)."
        )


def _preprocessing(model: keras.Model, spec: BackboneSpec) -> ImagePreprocessing:
    height, width = model.inputs[0].shape[1:3]
    native = None if height is None or width is None else (height, width)
    size = hub.image_size(spec, native or (224, 224))
    # As keras.utils.image_dataset_from_directory prepares images.
    return ImagePreprocessing(size, resize="squash", interpolation="bilinear")


def _copy(model: keras.Model, size: tuple[int, int], spec: BackboneSpec, seed: int) -> keras.Model:
    """The same architecture on its own variables, for images of `size`."""

    def converted(layer: Any) -> Any:
        config = layer.get_config()
        config["dtype"] = spec.dtype
        return layer.__class__.from_config(config)

    native = tuple(model.inputs[0].shape[1:3])
    options: dict[str, Any] = {}
    if native != size:
        options["input_tensors"] = keras.Input((*size, 3), name=model.inputs[0].name)
    if spec.dtype != "float32":
        options |= {"clone_function": converted, "recursive": True}
    try:
        with without_values() if spec.pretrained else seeded(seed):
            copy = keras.models.clone_model(model, **options)
        if spec.pretrained:
            for ours, theirs in zip(copy.variables, model.variables, strict=True):
                ours.assign(theirs)
    except (ValueError, TypeError) as error:
        raise ModelError(
            f"'{model.name}' cannot be copied for images of {size} in {spec.dtype}: {error}"
        ) from error
    return copy


def _before(tensor: keras.KerasTensor, kinds: tuple[type, ...]) -> keras.KerasTensor:
    """The tensor from which `tensor` is made by layers of `kinds` alone."""
    while isinstance(_producer(tensor), kinds):
        tensor = _inputs(tensor)[0]
    return tensor


def _producer(tensor: Any) -> Any:
    return tensor._keras_history.operation


def _inputs(tensor: Any) -> list[Any]:
    history = tensor._keras_history
    return history.operation._inbound_nodes[history.node_index].input_tensors
