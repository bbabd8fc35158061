"""Rematerialisation: what a block computes is computed anew in the backward pass, not kept.

Only the values between blocks stay in memory until the backward pass, for the time of one more
forward pass (Chen et al. 2016, https://arxiv.org/abs/1604.06174). Where a backbone is a graph
whose blocks are no layers (ResNet), its nodes run in stretches that end where the blocks do.

A checkpointed function is traced apart from what surrounds it: a variable that it assigned would
hold a tracer of its own. Here it has a `StatelessScope` of its own and returns what it assigned.
Reads `Function._nodes_by_depth` and the call of `Functional` (Keras 3.15).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal

import jax
import keras
from keras.src.backend.common.stateless_scope import get_stateless_scope

from tunekit.methods.intercept import Call, Wrap
from tunekit.models.depth import block_ends
from tunekit.models.graph import Link, chain, sublayers
from tunekit.models.recompute import (
    Recompute,
    keeping_inputs,
    keeping_products,
    named_inputs,
    offloading,
)

RematMode = Literal["none", "blocks", "full", "dots", "offload"]
"""Keep everything; the values between blocks; the backbone's inputs alone, until its backward pass
begins, and then the values between blocks; besides those between blocks the products with weights;
those between blocks in the host's memory. "full" costs two more forward passes."""


def rematerialised(body: keras.Model, mode: RematMode) -> dict[keras.Layer, Wrap]:
    """Returns the interceptions under which `body` keeps less for the backward pass.

    To be asked for outside of any interception (the order in which layers run is read off a run),
    and to be installed last, inside the scope of a `Forward`: what lies inside (adapters, modes,
    kernels of a CPU) is then computed anew with the block.

    Args:
        body: the backbone.
        mode: how much is kept; "dots" and "offload" raise a ModelError where they are traced for a
            CPU, on which XLA does not do what they say.

    Example:
        >>> with intercept(rematerialised(model.keras.get_layer("backbone"), "blocks")):
        ...     outputs = model.keras(images, training=True)
    """
    if mode == "none":
        return {}
    ends = {id(end) for end in block_ends(body)}
    blocks = [link for link in chain(body) if id(link.end) in ends]
    inner: Recompute = {"dots": keeping_products, "offload": named_inputs}.get(mode, keeping_inputs)
    block = functools.partial(checkpointed, recompute=inner)
    wraps: dict[keras.Layer, Wrap] = {link.layers[0]: block for link in blocks if _is_layer(link)}
    for graph in _graphs(body):
        inside = [link.end for link in blocks if not _is_layer(link)]
        stretches = _stretches(graph, inside)
        if len(stretches) > 1:
            wraps[graph] = functools.partial(_run_in_stretches, graph, stretches, inner)
    if mode in ("full", "offload") or not wraps:
        outer: Recompute = offloading if mode == "offload" else keeping_inputs
        within = wraps.get(body, lambda call: call)
        wraps[body] = lambda call: checkpointed(within(call), outer)
    return wraps


def checkpointed(call: Call, recompute: Recompute = keeping_inputs) -> Call:
    """Returns `call`, of which the backward pass keeps the inputs alone, or what `recompute` does.

    Args:
        call: of a layer.
        recompute: makes a pure function keep less.
    """

    def checkpointed_call(*args: Any, **kwargs: Any) -> Any:
        return _checkpoint(lambda given: call(*given[0], **given[1]), (args, kwargs), recompute)

    return checkpointed_call


def _checkpoint(run: Callable[[Any], Any], given: Any, recompute: Recompute) -> Any:
    """What `run` returns of `given`; what it assigns to variables is assigned.

    What else `run` reads, such as the values of variables, is kept and differentiated.
    """
    outer = get_stateless_scope()
    variables: dict[int, keras.Variable] = {}
    leaves, tree = jax.tree.flatten(given)
    is_tensor = [isinstance(leaf, jax.Array) for leaf in leaves]

    def pure(tensors: list[jax.Array]) -> tuple[Any, dict[int, jax.Array]]:
        rest = iter(tensors)
        whole = [next(rest) if t else x for x, t in zip(leaves, is_tensor, strict=True)]
        with _Recording(outer) as scope:
            outputs = run(jax.tree.unflatten(tree, whole))
        variables.update(scope.assigned)
        return outputs, {key: scope.state_mapping[key] for key in scope.assigned}

    tensors = [leaf for leaf, tensor in zip(leaves, is_tensor, strict=True) if tensor]
    outputs, updates = recompute(pure)(tensors)
    for key, value in updates.items():
        variables[key].assign(value)
    return outputs


class _Recording(keras.StatelessScope):
    """A scope that begins with the values of another, and knows what was assigned in it."""

    def __init__(self, outer: Any) -> None:
        super().__init__()
        self.state_mapping = dict(outer.state_mapping)
        self.assigned: dict[int, keras.Variable] = {}

    def add_update(self, update: tuple[keras.Variable, Any]) -> None:
        super().add_update(update)
        self.assigned[id(update[0])] = update[0]


def _is_layer(link: Link) -> bool:
    return len(link.layers) == 1 and link.end is link.layers[0]


def _graphs(layer: keras.Layer) -> Iterable[Any]:
    """The graphs of operations in `layer`, itself included."""
    if hasattr(layer, "_nodes_by_depth") and not isinstance(layer, keras.Sequential):
        yield layer
    for child in sublayers(layer):
        yield from _graphs(child)


def _stretches(graph: Any, ends: Sequence[keras.Operation]) -> list[list[Any]]:
    """The nodes of `graph` in running order, split after each operation of `ends`.

    The last stretch, what comes after the last end, is no block.
    """
    depths = sorted(graph._nodes_by_depth, reverse=True)
    nodes = [node for depth in depths for node in graph._nodes_by_depth[depth]]
    stretches: list[list[Any]] = [[]]
    for node in nodes:
        if node.is_input:
            continue
        stretches[-1].append(node)
        if any(node.operation is end for end in ends):
            stretches.append([])
    return stretches


def _run_in_stretches(
    graph: Any, stretches: list[list[Any]], recompute: Recompute, call: Call
) -> Call:
    """Returns a call of `graph` that checkpoints every stretch of its nodes but the last."""

    def staged(*args: Any, **kwargs: Any) -> Any:
        run = functools.partial(_run_graph, graph, stretches, recompute)
        object.__setattr__(graph, "_run_through_graph", run)
        try:
            return call(*args, **kwargs)
        finally:
            object.__delattr__(graph, "_run_through_graph")

    return staged


def _run_graph(
    graph: Any,
    stretches: list[list[Any]],
    recompute: Recompute,
    inputs: Any,
    operation_fn: Callable[[keras.Operation], Call],
) -> Any:
    """What `Function._run_through_graph` returns."""
    known = dict(zip(map(id, graph.inputs), keras.tree.flatten(inputs), strict=True))
    wanted = [{id(x) for x in graph.outputs}]
    for stretch in reversed(stretches[1:]):
        wanted.append(wanted[-1] | {id(x) for node in stretch for x in node.input_tensors})
    for stretch, later in zip(stretches, reversed(wanted), strict=True):
        run = functools.partial(_run_nodes, stretch, later, operation_fn)
        read = {id(x) for node in stretch for x in node.input_tensors}
        given = {key: value for key, value in known.items() if key in read}
        is_last = stretch is stretches[-1]
        known |= run(given) if is_last else _checkpoint(run, given, recompute)
    return keras.tree.map_structure(lambda x: known[id(x)], graph._outputs_struct)


def _run_nodes(
    nodes: list[Any],
    wanted: set[int],
    operation_fn: Callable[[keras.Operation], Call],
    known: dict[int, Any],
) -> dict[int, Any]:
    """The outputs of `nodes` that are `wanted` later."""
    values = dict(known)
    for node in nodes:
        args, kwargs = node.arguments.fill_in(values)
        outputs = operation_fn(node.operation)(*args, **kwargs)
        values |= {id(x): y for x, y in zip(node.outputs, keras.tree.flatten(outputs), strict=True)}
    return {key: values[key] for key in wanted if key in values and key not in known}
