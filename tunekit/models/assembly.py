"""From a backbone and heads to the one graph of a model."""

from __future__ import annotations

from typing import Any, cast

import keras
import numpy as np

from tunekit.models.backbone import Backbone
from tunekit.models.preprocessing import ImagePreprocessing
from tunekit.models.token_graph import assemble_tokens
from tunekit.names import structural_names, variable_roles


def assemble(body: keras.Model, backbone: Backbone, heads: dict[str, keras.Model]) -> keras.Model:
    """Returns the model "model": what the backbone takes to logits, or features without a head.

    Args:
        body: the backbone's network, called "backbone".
        backbone: says what it takes, and whether it has a language head of its own, which stands
            in where there is no other.
        heads: by name.
    """
    if backbone.takes == "tokens":
        return assemble_tokens(body, heads, None if heads else backbone.language_head)
    assert backbone.preprocessing is not None
    return _assemble_images(body, backbone.preprocessing, heads)


def _assemble_images(
    body: keras.Model, preprocessing: ImagePreprocessing, heads: dict[str, keras.Model]
) -> keras.Model:
    """One graph: pixels, "preprocess", "backbone", and "heads" with one model for each head."""
    pixels = keras.Input((*preprocessing.image_size_px, 3), dtype="float32", name="pixels")
    # Keras annotates one number; one for each channel broadcasts.
    scale, offset = cast(Any, preprocessing.scale), cast(Any, preprocessing.offset)
    normalise = keras.layers.Rescaling(scale, offset, dtype="float32", name="preprocess")
    features = body(normalise(pixels))
    if not heads:
        return keras.Model(pixels, features, name="model")
    inputs = keras.Input(features.shape[1:], dtype="float32", name="features")
    logits = {name: head(inputs) for name, head in heads.items()}
    outputs = next(iter(logits.values())) if len(logits) == 1 else logits
    tops = keras.Model(inputs, outputs, name="heads")
    return keras.Model(pixels, tops(features), name="model")


def named_backbone(backbone: Backbone) -> keras.Model:
    """Returns the same layers as one sublayer called "backbone"; the original keeps its name."""
    body = backbone.keras
    inputs = body.input if backbone.takes == "tokens" else body.inputs[0]
    return keras.Model(inputs, body.outputs[0], name="backbone")


def keep_rows(
    old_model: keras.Model, old: tuple[str, ...], head: keras.Model, new: tuple[str, ...]
) -> None:
    """Copies the old head's values into `head`: all below the logits, and columns by label.

    Does nothing where the heads differ below the logits, for then a column means nothing.
    """
    before = weights_of(old_model.get_layer("heads").get_layer(head.name))
    after = weights_of(head)
    below = after.keys() - {"logits/kernel", "logits/bias"}
    shared = [label for label in new if label in old]
    alike = below == before.keys() - {"logits/kernel", "logits/bias"} and all(
        before[name].shape == after[name].shape for name in below
    )
    width, new_width = (head["logits/kernel"].shape[0] for head in (before, after))
    if not shared or not alike or width != new_width:
        return
    for name in below:
        after[name].assign(before[name].value)
    sources, targets = [old.index(x) for x in shared], [new.index(x) for x in shared]
    for name in (before.keys() & after.keys()) - below:
        value = np.array(after[name].value)
        value[..., targets] = np.asarray(before[name].value)[..., sources]
        after[name].assign(value)


def weights_of(head: keras.Model) -> dict[str, keras.Variable]:
    """Returns what can be trained of a head, by the name within it."""
    roles = variable_roles(head)
    return {name: v for name, v in structural_names(head).items() if roles[name] == "weight"}
