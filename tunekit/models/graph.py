"""The chain a backbone is: its graph, cut wherever a single tensor carries everything on.

Between two neighbouring cuts lies one link: a single layer, or branches that meet again (a
residual block, a dense layer's concatenation, an inception cell). Layers that hold their blocks
inside, such as a transformer's encoder, are opened.

Reads the private ``_nodes_by_depth``, ``_layers``, ``_inbound_nodes`` and
``_trainable_variables`` of Keras 3.15.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import keras

from tunekit.methods.intercept import Call, Wrap, intercept

_PRODUCTS = (keras.layers.Dense, keras.layers.EinsumDense)
_BLOCK_SIZE = 3
"""Weighted leaves that make a layer a block; convolution + norm or squeeze-and-excite are two."""


@dataclass(frozen=True)
class Link:
    """What stands between two neighbouring cuts of the chain."""

    layers: tuple[keras.Layer, ...]
    """In the order they run."""
    branched: bool = False
    """Whether branches meet again here, otherwise than in a product (a gate)."""
    joint: keras.Operation | None = None
    """The operation at its end where that is no layer, such as a sum; the link may be it alone."""

    @property
    def end(self) -> keras.Operation:
        """The operation whose output is all that goes on from here."""
        return self.layers[-1] if self.joint is None else self.joint


def chain(layer: keras.Layer) -> list[Link]:
    """Returns the links of `layer` in the order they run."""
    return _chain(layer, frozenset(_stage_classes(layer)))


def _chain(layer: keras.Layer, stages: frozenset[type]) -> list[Link]:
    if isinstance(layer, keras.Sequential):
        return [link for child in layer.layers for link in _chain(child, stages)]
    if _is_functional(layer):
        return [link for stretch in _stretches(layer) for link in _links(stretch, stages)]
    if _holds_blocks(layer, stages):
        return [link for child in _in_running_order(layer) for link in _chain(child, stages)]
    return [Link((layer,))]


def sublayers(layer: keras.Layer) -> list[keras.Layer]:
    """Returns the layers directly inside `layer`."""
    return list(layer._layers)


def _in_running_order(layer: keras.Layer) -> list[keras.Layer]:
    """The layers inside an encoder as they run; as they were made where nothing depends on it.

    KerasHub's ViT makes its dropout after the blocks and runs it before them.
    """
    children = sublayers(layer)
    nodes = layer._inbound_nodes
    if not nodes or all(leaf._layers or leaf.weights for leaf in children):
        return children
    order: dict[int, int] = {}

    def noting(child: keras.Layer) -> Wrap:
        def wrap(call: Call) -> Call:
            def noted(*args: Any, **kwargs: Any) -> Any:
                order.setdefault(id(child), len(order))
                return call(*args, **kwargs)

            return noted

        return wrap

    arguments = nodes[0].arguments
    with intercept({child: noting(child) for child in children}):
        keras.Operation.compute_output_spec(layer, *arguments.args, **arguments.kwargs)
    return sorted(children, key=lambda child: order.get(id(child), len(order)))


def leaves(layer: keras.Layer) -> Iterator[keras.Layer]:
    """Yields the layers in `layer`, itself included, that have weights of their own."""
    # A packed kernel does not train, and makes a layer no lighter.
    packed = isinstance(layer, _PRODUCTS) and layer._non_trainable_variables
    if layer._trainable_variables or packed:
        yield layer
    for child in sublayers(layer):
        yield from leaves(child)


def is_block_sized(layer: keras.Layer) -> bool:
    """Returns whether `layer` holds enough layers to be a block of its own."""
    return sum(1 for leaf in leaves(layer) if leaf is not layer) >= _BLOCK_SIZE


def is_attention(layer: keras.Layer) -> bool:
    """Returns whether `layer` is attention and nothing else, going by the name of its class."""
    return type(layer).__name__.endswith("Attention")


def _holds_blocks(layer: keras.Layer, stages: Collection[type]) -> bool:
    """An encoder or a stage, that is: something in it has blocks for children."""
    if type(layer) in stages:
        return True
    children = sublayers(layer)
    return _are_blocks(children) or any(_holds_blocks(child, stages) for child in children)


def _stage_classes(layer: keras.Layer) -> Iterator[type]:
    """The classes of what has blocks for children: one of them may hold a single block."""
    children = sublayers(layer)
    if not _is_functional(layer) and _are_blocks(children):
        yield type(layer)
    for child in children:
        yield from _stage_classes(child)


def _is_functional(layer: keras.Layer) -> bool:
    return isinstance(layer, keras.Sequential) or hasattr(layer, "_nodes_by_depth")


def _are_blocks(layers: Iterable[keras.Layer]) -> bool:
    """Two layers of one class, each large enough, or one of a transformer, known by its attention.

    The attentions themselves, of which a decoder's layer has two, are none.
    """
    large = {layer for layer in layers if is_block_sized(layer) and not is_attention(layer)}
    classes = Counter(type(layer) for layer in large)
    attend = any(is_attention(child) for layer in large for child in sublayers(layer))
    return attend or any(count > 1 for count in classes.values())


def _links(stretch: list[Any], stages: frozenset[type]) -> list[Link]:
    layers = tuple(op for op in stretch if isinstance(op, keras.Layer))
    joint = None if stretch[-1] in layers else stretch[-1]
    if len(stretch) == 1:
        return _chain(layers[0], stages) if layers else [Link((), joint=joint)]
    inputs = [layer for layer in layers if isinstance(layer, keras.layers.InputLayer)]
    if inputs == stretch[:-1]:
        # Several inputs of one layer, such as a head's: what is inside of it shows all the same.
        return [*(Link((layer,)) for layer in inputs), *_links(stretch[-1:], stages)]
    if _are_blocks(layers) or any(_holds_blocks(layer, stages) for layer in layers):
        # What goes past blocks, such as a padding mask or positions, does not make them one.
        links = [link for layer in layers for link in _chain(layer, stages)]
        return links if joint is None else [*links, Link((), joint=joint)]
    gate = type(stretch[-1]).__name__ == "Multiply"
    return [Link(layers, branched=not gate, joint=joint)]


def _stretches(model: Any) -> list[list[Any]]:
    """The operations of a functional model, split after each one that no edge jumps over.

    Every operation lies on a way from the inputs to the outputs, so in any topological order an
    operation that no edge jumps over is one that all ways pass through.
    """
    depths = sorted(model._nodes_by_depth, reverse=True)
    nodes = [node for depth in depths for node in model._nodes_by_depth[depth]]
    place = {id(node): i for i, node in enumerate(nodes)}
    last_use = list(range(len(nodes)))
    for i, node in enumerate(nodes):
        for parent in node.parent_nodes:
            last_use[place[id(parent)]] = i
    stretches: list[list[Any]] = [[]]
    furthest = 0
    for i, node in enumerate(nodes):
        stretches[-1].append(node.operation)
        # What is made before i and used after it bypasses i.
        if furthest <= i:
            stretches.append([])
        furthest = max(furthest, last_use[i])
    return [stretch for stretch in stretches if stretch]
