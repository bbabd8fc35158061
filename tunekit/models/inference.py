"""A model's graph: what is in it by name, and one compiled pass for each shape put on it."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import keras

from tunekit.methods.adapter import Adapter
from tunekit.methods.part import Layers
from tunekit.models.forward import Forward, Values
from tunekit.models.taps import Tap, captured
from tunekit.names import layer_names, structural_names

_SLOT = "adapters/{}"
"""Under which a program knows the values of an adapter, whatever its name is."""


class Inference:
    """A graph's pass in inference mode, and its parts; of no use once the graph changes.

    The adapters' values are arguments: a program serves every adapter of its shape, and to put
    another one in its place compiles nothing.

    Attributes:
        variables: of the graph by structural name, without adapters.
        layers: of the graph by structural name; "" is the graph itself.
        writers: programs that write text (``tunekit.models.generation``), by what is put on it.
    """

    def __init__(self, graph: keras.Model) -> None:
        """Compiles nothing yet."""
        self._graph = graph
        self.variables: Mapping[str, keras.Variable] = structural_names(graph)
        self.layers: Layers = {"": graph, **layer_names(graph)}
        self.writers: dict[Hashable, Any] = {}
        self._programs: dict[Hashable, Callable[..., Any]] = {}

    def __call__(self, values: Values, inputs: Any, adapters: Sequence[Adapter] = ()) -> Any:
        """Returns the outputs.

        Args:
            values: of the graph's variables, and of each adapter's under "adapters/<place>/".
            inputs: what the graph takes.
            adapters: of these shapes.
        """
        key = tuple(adapter.parts for adapter in adapters)
        if key not in self._programs:
            forward = self.forward(adapters)
            self._programs[key] = jax.jit(
                lambda values, inputs: forward(values, _floats(inputs), training=False)[0]
            )
        return self._programs[key](values, inputs)

    def at(
        self, tap: Tap, values: Values, inputs: Any, adapters: Sequence[Adapter] = ()
    ) -> jax.Array:
        """Returns what goes through a tap of the graph; what comes after it is not computed.

        Args:
            tap: of the graph.
            values: as for a call.
            inputs: what the graph takes.
            adapters: of these shapes.
        """
        key = ("at", tap.name, *(adapter.parts for adapter in adapters))
        if key not in self._programs:
            forward = self.forward(adapters)
            self._programs[key] = jax.jit(
                lambda values, inputs: captured(forward, [tap], values, _floats(inputs))[tap.name]
            )
        return self._programs[key](values, inputs)

    def each_its_own(
        self,
        values: Values,
        inputs: Any,
        adapter: Adapter,
        stacked: Values,
        heads: Values,
        rows: Any,
    ) -> Any:
        """Returns the outputs of a batch in which every example has an adapter of its own.

        Args:
            values: of the graph's variables.
            inputs: what the graph takes, [B, ...].
            adapter: of the shape of them all.
            stacked: values of the K adapters, [K, ...] by local name.
            heads: values of their heads' variables [K, ...] by structural name; may be empty.
            rows: int32 [B], which of the K each example has.
        """
        key = ("each", adapter.parts, tuple(sorted(heads)))
        if key not in self._programs:
            forward = replace(self.forward([adapter]), per_example=True)

            def program(values, inputs, stacked, heads, rows):
                own = {f"{_SLOT.format(0)}/{n}": v[rows] for n, v in stacked.items()}

                def with_head(head):
                    return forward({**values, **own, **head}, _floats(inputs), training=False)[0]

                if not heads:
                    return with_head({})
                # Only what follows from the heads gets an axis [K]: the network runs once.
                outputs: Any = jax.vmap(with_head)(heads)
                return outputs[rows, jnp.arange(len(rows))]

            self._programs[key] = jax.jit(program)
        return self._programs[key](values, inputs, stacked, heads, rows)

    def values(self) -> Values:
        """Returns the present values of `variables`, without copying them."""
        return {name: variable.value for name, variable in self.variables.items()}

    def compiled(self) -> int:
        """Returns the number of programs compiled so far."""
        return sum(program._cache_size() for program in self._programs.values())  # type: ignore[attr-defined]

    def forward(self, adapters: Sequence[Adapter]) -> Forward:
        """Returns the pass with adapters of these shapes; `slots` names their values."""
        return Forward.of(
            self._graph, adapters={_SLOT.format(i): _shape_of(a) for i, a in enumerate(adapters)}
        )


def slots(adapters: Sequence[tuple[Adapter, float]]) -> Values:
    """Returns the values of active adapters as `Inference` takes them, at these weights."""
    return {
        f"{_SLOT.format(place)}/{name}": value
        for place, (adapter, weight) in enumerate(adapters)
        for name, value in adapter.values(weight).items()
    }


def renamed(values: Mapping[str, jax.Array], names: Sequence[str]) -> Values:
    """Returns the values with those of the adapters of these names in their slots."""
    prefixes = {f"adapters/{name}/": f"{_SLOT.format(i)}/" for i, name in enumerate(names)}

    def slot(name: str) -> str:
        for prefix, place in prefixes.items():
            if name.startswith(prefix):
                return place + name.removeprefix(prefix)
        return name

    return {slot(name): value for name, value in values.items()}


def _shape_of(adapter: Adapter) -> Adapter:
    """The adapter without its arrays, which a program would otherwise keep alive."""
    shapes: Any = {
        name: jax.ShapeDtypeStruct(tuple(v.shape), v.dtype) for name, v in adapter.variables.items()
    }
    return replace(adapter, variables=shapes)


def _floats(inputs: Any) -> Any:
    """Pixels as the graph takes them; token ids stay integers."""
    return inputs.astype("float32") if isinstance(inputs, jax.Array) else inputs
