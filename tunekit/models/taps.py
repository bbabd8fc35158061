"""Taps: the places in a model where one array carries everything on, to read or to replace it.

A tap is the operation that ends a link of the model's chain. Its output is captured, and another
put in its place, by interception: also inside a layer that holds its blocks, such as the encoder
of a vision transformer, of which no graph is known.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, cast

import jax
import jax.numpy as jnp
import keras
from keras.src.utils.naming import to_snake_case

from tunekit.methods.intercept import Call, Wrap, intercept
from tunekit.models.depth import depth_groups
from tunekit.models.forward import Forward
from tunekit.models.graph import Link, chain
from tunekit.names import layer_names

Observe = Callable[[Any], None]


@dataclass(frozen=True, eq=False)
class Tap:
    """A place where the model can be read, or cut."""

    name: str
    """Structural name of the layer; of an operation that is none, below the layer before it."""
    operation: keras.Operation
    """The layer or operation whose output is what goes on."""
    group: str
    """The depth group that it ends or lies in; "" where the model has no backbone."""
    model: keras.Model = field(repr=False)
    """The model that it is in."""


def taps(model: keras.Model) -> tuple[Tap, ...]:
    """Returns the taps of `model`; in the order of the chain, which is nearly that of running.

    Example:
        >>> model = load_model("efficientnet_lite0", labels=["cat", "dog"])
        >>> [tap.name for tap in taps(model.keras)][-2:]
        ['heads/label/pooling', 'heads/label/logits']
    """
    names = {id(layer): name for name, layer in layer_names(model).items()}
    group_of = _groups(model)
    found: dict[str, Tap] = {}
    before, group = "", group_of("")
    for link in chain(model):
        if isinstance(link.end, keras.layers.InputLayer):
            continue
        if link.layers:
            before = names[id(link.layers[-1])]
            group = group_of(before) or group
        name = before if link.joint is None else _below(before, link, found)
        # A layer that ends two links runs twice, and `captured` leaves it out.
        found.setdefault(name, Tap(name, link.end, group, model))
    return tuple(found.values())


def captured(
    forward: Forward,
    taps: Iterable[Tap],
    values: Mapping[str, jax.Array],
    inputs: Any,
    *,
    training: bool = False,
    trainable: Collection[str] = (),
) -> dict[str, jax.Array]:
    """Returns what goes through each tap in one pass: float [B, ...] by name, as they run.

    The dict's order is that of running; a dict that leaves ``jax.jit`` is sorted by name. Taps that
    run never or several times, or whose output is something else than one array of floats with the
    batch first, are left out.

    Args:
        forward: the model's forward pass.
        taps: of that model.
        values: one array for every variable.
        inputs: what the model takes.
        training: as for `forward`.
        trainable: as for `forward`.
    """
    seen: dict[str, list[Any]] = {}
    with _watched(forward.model, taps, seen):
        forward(values, inputs, training=training, trainable=trainable)
    batch_size = jax.tree.leaves(inputs)[0].shape[0]
    return {
        name: outputs[0]
        for name, outputs in seen.items()
        if len(outputs) == 1 and _is_batch(outputs[0], batch_size)
    }


@contextmanager
def replaced(tap: Tap, features: jax.Array) -> Iterator[None]:
    """Within the block the tap gives `features`, whatever comes in.

    It runs all the same, for what it does beside, and its output is dropped: in a compiled program
    nothing is left of it.
    """

    def constant(call: Call) -> Call:
        def constant_call(*args: Any, **kwargs: Any) -> jax.Array:
            call(*args, **kwargs)
            return features

        return constant_call

    with intercept({tap.model: _within({tap.operation: constant})}):
        yield


@contextmanager
def _watched(model: keras.Model, taps: Iterable[Tap], seen: dict[str, list[Any]]) -> Iterator[None]:
    """Within the block `seen` gains the outputs of each tap that runs."""

    def watch(tap: Tap) -> Wrap:
        def watched(call: Call) -> Call:
            def watched_call(*args: Any, **kwargs: Any) -> Any:
                outputs = call(*args, **kwargs)
                seen.setdefault(tap.name, []).append(outputs)
                return outputs

            return watched_call

        return watched

    with intercept({model: _within({tap.operation: watch(tap) for tap in taps})}):
        yield


def _within(wraps: Mapping[Any, Wrap]) -> Wrap:
    """Wraps a model's call such that `wraps` hold while it runs.

    Installed that late, they come round whatever a forward pass has put in a layer's place.
    """

    def wrapped(call: Call) -> Call:
        def wrapped_call(*args: Any, **kwargs: Any) -> Any:
            with intercept(wraps):
                return call(*args, **kwargs)

        return wrapped_call

    return wrapped


def _is_batch(output: Any, batch_size: int) -> bool:
    return (
        isinstance(output, jax.Array)
        and jnp.issubdtype(output.dtype, jnp.floating)
        and output.ndim > 0
        and output.shape[0] == batch_size
    )


def _below(before: str, link: Link, taken: Collection[str]) -> str:
    """A name for the end of a link that is no layer, such as "backbone/conv2/add"."""
    name = f"{before}/{to_snake_case(type(link.end).__name__)}".removeprefix("/")
    repeats = sum(other == name or other.startswith(f"{name}_") for other in taken)
    return f"{name}_{repeats}" if repeats else name


def _groups(model: keras.Model) -> Callable[[str], str]:
    """Returns the function from a layer's name to that of its depth group, or ""."""
    if not any(layer.name == "backbone" for layer in model.layers):
        return lambda name: ""
    groups = depth_groups(cast(Any, SimpleNamespace(keras=model)))
    group_of = {layer: group.name for group in groups for layer in group.layers}

    def find(name: str) -> str:
        whole = _ancestors(name)
        return next((group_of[layer] for layer in whole if layer in group_of), "")

    return lambda name: find(name) if name else groups[0].name


def _ancestors(name: str) -> Sequence[str]:
    """The name, and those of the layers it is inside of, the nearest first."""
    parts = name.split("/")
    return ["/".join(parts[:length]) for length in range(len(parts), 0, -1)]
