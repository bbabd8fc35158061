"""The first blocks of a backbone as a backbone of its own, with the same values.

Where the graph of the network shows the blocks, it ends after the last one that is kept. Where a
layer holds them inside, such as a transformer's encoder, that layer is built again with fewer, and
must then be the old one less what is left out, name for name.

Reads ``_nodes_by_depth`` of a functional model (Keras 3.15) to find what an operation gave there.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import keras

from tunekit.errors import ModelError
from tunekit.models import hub
from tunekit.models.backbone import Backbone, Features
from tunekit.models.depth import block_ends
from tunekit.models.graph import leaves, sublayers
from tunekit.models.initialisation import without_values
from tunekit.names import layer_names, structural_names, variable_roles

_FEATURES: dict[int, Features] = {4: "map", 3: "tokens", 2: "vector"}
_PER_BLOCK = re.compile(r"layer|block|depth|drop")
"""Settings of an encoder or a stage that count its blocks, or list something of each."""

_FREE = ("name", "seed", "rate")
"""Settings that may differ: stochastic depth grows over however many blocks there are."""

_Called = TypeVar("_Called")


def with_first_blocks(backbone: Backbone, count: int) -> Backbone:
    """Returns `backbone` up to its block number `count`, and without its classifier.

    What stands above the last block is left out as well, but for a final layer norm of the same
    width: a transformer has one for all of its depths. With all its blocks it stays as it is.

    Raises:
        ModelError: there are fewer blocks, or the network cannot be cut after that one.

    Example:
        >>> with_first_blocks(load_backbone("efficientnet_lite0", BackboneSpec()), 3).dim
        24
    """
    body = backbone.keras
    ends = block_ends(body)
    if count > len(ends):
        raise ModelError(
            f"backbone.blocks: '{backbone.source}' has {len(ends)} blocks, so its first {count} "
            f"cannot be kept; expected 1 to {len(ends)}, or null for all."
        )
    if count == len(ends):
        return backbone
    try:
        shorter = _shorter(body, ends, count)
    except ModelError as error:
        raise ModelError(
            f"backbone.blocks: '{backbone.source}' cannot be cut after block {count} of "
            f"{len(ends)}: {error}. Keep all blocks, and choose with 'train' which of them move."
        ) from error
    features = _FEATURES[len(shorter.output_shape)]
    return replace(backbone, keras=shorter, features=features, pretrained_head=None)


def _shorter(body: keras.Model, ends: Sequence[keras.Operation], count: int) -> keras.Model:
    end = ends[count - 1]
    if hub.is_object(body) and _is_opaque(_holder(body, end), end):
        # Whole, because the configuration of some of KerasHub's layers is not complete.
        return _with_fewer(body, end, ends, lambda shorter: shorter)
    features = _with_final_norm(body, _cut(body, end, ends), ends[-1])
    shorter = keras.Model(body.inputs[0], features, name=body.name)
    if hub.is_object(body):
        _check_can_be_saved(shorter)
    return shorter


def _check_can_be_saved(model: keras.Model) -> None:
    """KerasHub saves its networks by their own settings; of a part, the layers' must do."""
    try:
        with without_values():
            keras.Model.from_config(model.get_config())
    except (AttributeError, NotImplementedError, TypeError, ValueError) as error:
        cause = str(error).splitlines()[0][:200]
        raise ModelError(
            f"a part of a KerasHub '{model.name}' could not be saved ({cause})"
        ) from error


def _cut(model: Any, end: keras.Operation, ends: Sequence[keras.Operation]) -> keras.KerasTensor:
    """What `end` gives in the graph of `model`; a layer that has it inside is cut, too."""
    holder = _holder(model, end)
    node = _only_node(model, holder)
    if holder is end:
        return _passed_on(model, node, node.outputs)

    def called(layer: Any) -> Any:
        return layer(*node.arguments.args, **node.arguments.kwargs)

    if _is_opaque(holder, end):
        outputs = _with_fewer(holder, end, ends, called)
    else:
        inner = keras.Model(holder.inputs, holder.outputs)  # a Sequential shows no nodes itself
        outputs = called(keras.Model(holder.inputs, _cut(inner, end, ends), name=holder.name))
    return _passed_on(model, node, keras.tree.flatten(outputs))


def _passed_on(model: Any, node: Any, outputs: Sequence[Any]) -> keras.KerasTensor:
    """The one of `outputs` in the place of that which `model` takes from `node`."""
    used = {id(x) for other in _nodes(model) for x in other.input_tensors}
    used |= {id(x) for x in model.outputs}
    return next(new for new, old in zip(outputs, node.outputs, strict=False) if id(old) in used)


def _is_opaque(holder: Any, end: keras.Operation) -> bool:
    """Whether `holder` has `end` inside, and no graph to show it."""
    return holder is not end and not isinstance(holder, keras.Model)


def _holder(model: Any, end: keras.Operation) -> Any:
    """The operation in the graph that is `end`, or has it inside."""
    operations = [node.operation for node in _nodes(model)]
    if end in operations:
        return end
    return next(op for op in operations if isinstance(op, keras.Layer) and _is_inside(end, op))


def _is_inside(end: keras.Operation, layer: keras.Layer) -> bool:
    inside = set(sublayers(layer))
    operations = [node.operation for node in _nodes(layer)]
    return end in inside or end in operations or any(_is_inside(end, child) for child in inside)


def _nodes(model: Any) -> list[Any]:
    by_depth = getattr(model, "_nodes_by_depth", {})
    return [node for nodes in by_depth.values() for node in nodes]


def _only_node(model: Any, operation: keras.Operation) -> Any:
    nodes = [node for node in _nodes(model) if node.operation is operation]
    if len(nodes) > 1:
        raise ModelError(f"'{operation.name}' runs {len(nodes)} times, in more places than that")
    return nodes[0]


def _with_fewer(
    layer: Any, end: Any, ends: Sequence[keras.Operation], called: Callable[[Any], _Called]
) -> _Called:
    """What `called` makes of a layer like `layer`, with its values, whose last block is `end`."""
    parent = _parent(layer, end)
    if not all(_is_inside(other, parent) for other in ends if _is_inside(other, layer)):
        raise ModelError(f"the blocks in '{layer.name}' are spread over stages")
    siblings = sublayers(parent)
    blocks = [child for child in siblings if type(child) is type(end)]
    count = blocks.index(end) + 1
    above = siblings[siblings.index(end) + 1 :]
    left_out = [child for child in above if any(leaves(child)) and not _is_layer_norm(child)]
    optional = {child.name for child in left_out if child not in blocks}

    def changed(key: str, value: Any) -> Any:
        if key in optional:
            return None
        if _PER_BLOCK.search(key) and type(value) is int and value == len(blocks):
            return count
        if _PER_BLOCK.search(key) and isinstance(value, list) and len(value) == len(blocks):
            return value[:count]
        return value

    try:
        config = {key: changed(key, value) for key, value in layer.get_config().items()}
        with without_values():
            shorter = type(layer).from_config(config)
            result = called(shorter)
    except (AttributeError, NotImplementedError, TypeError, ValueError) as error:
        raise ModelError(f"'{layer.name}' cannot be built with {count} blocks ({error})") from error
    _take_values(shorter, layer, left_out)
    return result


def _parent(layer: keras.Layer, end: Any) -> keras.Layer:
    """The layer in `layer` that has `end` for a child."""
    if end in sublayers(layer):
        return layer
    return _parent(next(child for child in sublayers(layer) if _is_inside(end, child)), end)


def _take_values(shorter: keras.Layer, layer: keras.Layer, without: Sequence[keras.Layer]) -> None:
    """Gives `shorter` the values of `layer`, having checked that it is that layer `without` some.

    Raises:
        ModelError: it has other variables, or a layer in it is set up otherwise.
    """
    names = {id(child): name for name, child in layer_names(layer).items()}
    left_out = tuple(f"{names[id(child)]}/" for child in without)
    values = {n: v for n, v in structural_names(layer).items() if not n.startswith(left_out)}
    variables = structural_names(shorter)
    ours = {name: tuple(variable.shape) for name, variable in variables.items()}
    theirs = {name: tuple(variable.shape) for name, variable in values.items()}
    before = layer_names(layer)
    changed = [
        name
        for name, child in layer_names(shorter).items()
        if not sublayers(child) and _settings(child) != _settings(before.get(name, layer))
    ]
    if ours != theirs or changed:
        differs = sorted(ours.items() ^ theirs.items())[:3] or changed[:3]
        raise ModelError(
            f"'{layer.name}' built with fewer blocks is not itself with some left out: {differs}"
        )
    for name, variable in variables.items():
        variable.assign(values[name].value)


def _settings(layer: keras.Layer) -> dict[str, Any]:
    try:
        config = layer.get_config()
    except NotImplementedError:
        return {}
    return {key: value for key, value in config.items() if key not in _FREE}


def _with_final_norm(
    body: keras.Model, features: keras.KerasTensor, last: keras.Operation
) -> keras.KerasTensor:
    """The features after what stands above the last block, where that is layer norm alone."""
    node = _only_node(body, _holder(body, last))
    whole = _passed_on(body, node, node.outputs)
    output = body.outputs[0]
    if output is whole or features.shape[-1] != whole.shape[-1]:
        return features
    above = keras.Function(whole, output)
    layers = [op for op in above.operations if not isinstance(op, keras.layers.InputLayer)]
    if not all(isinstance(op, keras.Layer) and _is_layer_norm(op) for op in layers):
        return features
    return above.call(features)


def _is_layer_norm(layer: keras.Layer) -> bool:
    """Whether it normalises each example by itself: it keeps no statistics."""
    roles = set(variable_roles(layer).values())
    return "Norm" in type(layer).__name__ and roles == {"weight"}
