"""An adapter: parts on a network, and the values they have. Nothing of the network changes."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import jax
import keras
import numpy as np

from tunekit.errors import ModelError
from tunekit.methods.intercept import Call, Wrap
from tunekit.methods.part import Layers, Leaf, Part, Placed, Values
from tunekit.methods.spec import AdapterSpec
from tunekit.names import Role

_SCALINGS = ("scaling", "bias_scaling")
"""Leaves that multiply a part's effect."""


@dataclass(frozen=True, eq=False)
class Adapter:
    """Parts and their arrays; two of equal `parts` run one compiled program."""

    spec: AdapterSpec
    parts: tuple[Part, ...]
    variables: Mapping[str, keras.Variable]
    """By part and leaf: "backbone/block/query/lora_a"."""

    @classmethod
    def of(cls, spec: AdapterSpec, placed: Iterable[Placed]) -> Adapter:
        """Returns the adapter of these parts, with variables that hold their first values."""
        placed = tuple(placed)
        values = {
            f"{each.part.name}/{leaf.name}": each.values.get(leaf.name)
            for each in placed
            for leaf in each.part.leaves
        }
        parts = tuple(each.part for each in placed)
        variables = {
            name: _variable(name, leaf, values[name]) for name, leaf in leaves_of(parts).items()
        }
        return cls(spec, parts, variables)

    @classmethod
    def blank(cls, spec: AdapterSpec, parts: Iterable[Part]) -> Adapter:
        """Returns the adapter of these parts with zeros, for values to be read into."""

        def zeros(leaf: Leaf) -> np.ndarray:
            # One number for all of them: they are written to before they are read, if ever.
            return np.broadcast_to(np.zeros((), leaf.dtype), leaf.shape)

        return cls.of(
            spec, (Placed(part, {x.name: zeros(x) for x in part.leaves}) for part in parts)
        )

    @property
    def roles(self) -> dict[str, Role]:
        """Of each variable."""
        return {name: leaf.role for name, leaf in leaves_of(self.parts).items()}

    @property
    def parameters(self) -> int:
        """Numbers that can be trained."""
        leaves = leaves_of(self.parts).values()
        return sum(int(np.prod(leaf.shape)) for leaf in leaves if leaf.role == "weight")

    def values(self, weight: float = 1.0) -> dict[str, jax.Array]:
        """Returns the present values, the scales multiplied by `weight`."""
        values = {name: variable.value for name, variable in self.variables.items()}
        if weight == 1.0:
            return values
        scaled = {
            f"{part.name}/{leaf.name}"
            for part in self.parts
            for leaf in part.leaves
            if leaf.name in _SCALINGS
        }
        return {n: v * np.float32(weight) if n in scaled else v for n, v in values.items()}

    def check_weight(self, weight: float) -> None:
        """Passes where the adapter's whole effect can be multiplied by `weight`.

        Raises:
            ModelError: it acts whole or not at all.
        """
        for part in self.parts:
            scales = any(leaf.name in _SCALINGS for leaf in part.leaves)
            magnitudes = any(leaf.name == "magnitude" for leaf in part.leaves)
            if weight != 1.0 and (magnitudes or not scales):
                name = "dora" if magnitudes else self.spec.name
                raise ModelError(
                    f"an adapter of method '{name}' acts whole or not at all: it has no scale to "
                    f"multiply by {weight}. Give it weight 1."
                )

    def wraps(
        self, layers: Layers, values: Values, *, training: bool, per_example: bool = False
    ) -> dict[keras.Layer, Wrap]:
        """Returns the interceptions of all parts, a later part's round an earlier one's.

        Args:
            layers: of the network, by structural name; "" the network itself.
            values: one array for each of `variables`, by the same names.
            training: whether dropout acts.
            per_example: whether each array has a leading axis [B].
        """
        found: dict[keras.Layer, Wrap] = {}
        for part in self.parts:
            own = part_values(part, values)
            wraps = part.wraps(layers, own, training=training, per_example=per_example)
            for layer, wrap in wraps.items():
                inner = found.get(layer)
                found[layer] = wrap if inner is None else functools.partial(_nested, inner, wrap)
        return found

    def merged(self, layers: Layers, weights: Values, values: Values) -> dict[str, jax.Array]:
        """Returns new values of the network's variables that do what the adapter does.

        Args:
            layers: of the network.
            weights: every variable of the network by structural name.
            values: one array for each of `variables`.

        Raises:
            ModelError: no values of the network's own variables do that.
        """
        changed: dict[str, jax.Array] = {}
        for part in self.parts:
            own = part_values(part, values)
            changed |= part.merged(layers, {**weights, **changed}, own)
        return changed


def leaves_of(parts: Sequence[Part]) -> dict[str, Leaf]:
    """Returns the leaves of all parts by the names of their variables."""
    leaves: dict[str, Leaf] = {}
    for part in parts:
        for leaf in part.leaves:
            name = f"{part.name}/{leaf.name}"
            assert name not in leaves, f"two parts have a leaf called {name!r}"
            leaves[name] = leaf
    return leaves


def part_values(part: Part, values: Values) -> dict[str, jax.Array]:
    """Returns one part's arrays by leaf name, out of those of the whole adapter."""
    return {leaf.name: values[f"{part.name}/{leaf.name}"] for leaf in part.leaves}


def _variable(name: str, leaf: Leaf, value: np.ndarray | None) -> keras.Variable:
    if value is None:
        assert leaf.role == "seed", f"{name} has no first value"
        value = np.zeros(leaf.shape, leaf.dtype)
    value = np.asarray(value, leaf.dtype)
    assert value.shape == leaf.shape, f"{name}: expected {leaf.shape}, got {value.shape}"
    return keras.Variable(
        lambda shape, dtype: value,
        shape=leaf.shape,
        dtype=leaf.dtype,
        trainable=leaf.role == "weight",
        name=leaf.name.rpartition("/")[2],
        autocast=False,
    )


def _nested(inner: Wrap, outer: Wrap, call: Call) -> Call:
    return outer(inner(call))
