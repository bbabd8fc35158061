"""The frozen prefix: the deepest place where the network can be cut, and its two halves.

Before the cut nothing trains, is random or depends on the other examples of a batch, so that
outputs there can be kept; the pass from the cut on gives the losses and gradients of the whole.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Jaxpr, Var

from tunekit.models.forward import Forward, Outputs, Values
from tunekit.models.taps import Tap, captured, replaced, taps

# Stand for what is no variable among the names of what a program reads.
_INPUTS, _FEATURES = "<inputs>", "<features>"


@dataclass(frozen=True, eq=False)
class Cut:
    """A model in two halves: up to the output of one layer, and from there on.

    Example:
        >>> cut = find_cut(forward, jax.ShapeDtypeStruct((8, 224, 224, 3), "float32"), trainable)
        >>> features = cut.features(values, pixels)  # once
        >>> outputs, updates = cut(values, features, training=True, trainable=trainable)
    """

    forward: Forward
    """The whole model."""
    name: str
    """Structural name of the layer whose output is kept."""
    shape: tuple[int, ...]
    """Of the output for one example."""
    dtype: str
    """In which the layer gives it."""
    reads: frozenset[str]
    """Structural names of the variables that the first half reads."""
    inputs: Any
    """Shapes and dtypes of one batch of what the model takes: an array, or several in a dict."""
    tap: Tap = field(repr=False)

    def features(self, values: Mapping[str, jax.Array], inputs: Any) -> jax.Array:
        """Returns the layer's output [B, *shape] in inference mode; pure, to be compiled."""
        return captured(self.forward, (self.tap,), values, inputs)[self.name]

    def __call__(
        self,
        values: Mapping[str, jax.Array],
        features: jax.Array,
        *,
        training: bool,
        trainable: Collection[str] = (),
    ) -> tuple[Outputs, Values]:
        """Returns what `forward` does, of what `features` [B, *shape] gave of its inputs.

        To be compiled: the first half is traced on zeros, and XLA drops it since nothing uses it.
        """
        nothing = jax.tree.map(
            lambda x: jnp.zeros((features.shape[0], *x.shape[1:]), x.dtype), self.inputs
        )
        with replaced(self.tap, features.astype(self.dtype)):
            return self.forward(values, nothing, training=training, trainable=trainable)

    def fingerprint(self, values: Mapping[str, jax.Array]) -> str:
        """Returns a sha256 of the first half: of its program and of the values that it reads.

        It is the same whatever the batch size and whatever comes after the cut.
        """
        one = jax.tree.map(lambda x: jax.ShapeDtypeStruct((1, *x.shape[1:]), x.dtype), self.inputs)
        # What the program does not read, and the constants that it does, are in the text as such.
        program = jax.jit(self.features).lower(dict(values), one).as_text()
        content = hashlib.sha256(program.encode())
        for name in sorted(self.reads):
            value = np.ascontiguousarray(values[name])
            content.update(f"{name} {value.dtype} {value.shape}\n".encode())
            content.update(value.reshape(-1).view(np.uint8).data)
        return content.hexdigest()


def find_cut(forward: Forward, inputs: Any, trainable: Collection[str]) -> Cut | None:
    """Returns the best place to cut, or `None` where no weight comes before anything that trains.

    Best is what leaves the fewest weights to the second half; of several such places, that with
    the smallest output, so that a head on pooled features is cut after the pooling.

    Args:
        forward: the forward pass, with the modes of the phase.
        inputs: shape and dtype of one batch of inputs, or of several in a dict.
        trainable: structural names of the variables that train.
    """
    trainable = frozenset(trainable)
    by_name = {tap.name: tap for tap in taps(forward.model)}
    moving = _traced(forward, by_name.values(), inputs, trainable)
    resting = _traced(forward, by_name.values(), inputs, None)
    unfit = trainable.union(forward.names("seed"))
    cuts = []
    for name, output in moving.items():
        reads = output.reads - {_INPUTS}
        # Otherwise a layer before the cut acts as in training: on the statistics of a batch.
        at_rest = name in resting and output.recipe == resting[name].recipe
        if reads and reads.isdisjoint(unfit) and at_rest:
            shape, dtype = tuple(output.aval.shape[1:]), str(output.aval.dtype)
            cuts.append(Cut(forward, name, shape, dtype, reads, inputs, by_name[name]))
    cuts.reverse()  # The deepest first; sorting keeps this order among equals.
    cuts.sort(key=lambda cut: (-len(cut.reads), math.prod(cut.shape)))
    return next((cut for cut in cuts if _carries_everything(cut, trainable)), None)


@dataclass(frozen=True, eq=False)
class _Value:
    """What a traced value is made of."""

    reads: frozenset[str]
    """Names of the variables that it depends on, and `_INPUTS`."""
    recipe: int
    """Hash of the computation; equal for values computed alike, in whichever trace."""
    aval: Any
    """Its shape and dtype."""


def _values(jaxpr: Jaxpr, inputs: Sequence[str]) -> list[_Value]:
    """Returns what each output of `jaxpr`, whose inputs have these names, is made of."""
    known: dict[Any, _Value] = {
        var: _Value(frozenset([name]), hash(name), var.aval)
        for var, name in zip(jaxpr.invars, inputs, strict=True)
    }

    def made_of(atom: Any) -> _Value:
        # A literal stands in the text of the equation that it is in, or is a constant.
        constant = _Value(frozenset(), hash(str(atom.aval)), atom.aval)
        return known.get(atom, constant) if isinstance(atom, Var) else constant

    for equation in jaxpr.eqns:
        read = [made_of(atom) for atom in equation.invars]
        reads = frozenset[str]().union(*(value.reads for value in read))
        recipe = (str(equation), *(value.recipe for value in read))
        for place, var in enumerate(equation.outvars):
            known[var] = _Value(reads, hash((place, recipe)), var.aval)
    return [made_of(atom) for atom in jaxpr.outvars]


def _traced(
    forward: Forward,
    taps: Collection[Tap],
    inputs: Any,
    trainable: frozenset[str] | None,
) -> dict[str, _Value]:
    """What goes through the taps, in the order they run; in inference mode for `None`."""
    order: list[str] = []

    def run(values: Values, inputs: Any) -> list[jax.Array]:
        training = trainable is not None
        seen = captured(forward, taps, values, inputs, training=training, trainable=trainable or ())
        order.extend(seen)
        return list(seen.values())

    values = _abstract(forward)
    jaxpr = jax.make_jaxpr(run)(values, inputs).jaxpr
    names = [*sorted(values), *_names_of(inputs)]
    return dict(zip(order, _values(jaxpr, names), strict=True))


def _carries_everything(cut: Cut, trainable: frozenset[str]) -> bool:
    """Whether the second half needs the features alone, and changes nothing the first reads."""
    changed: list[str] = []

    def run(values: Values, inputs: Any, features: jax.Array) -> list[jax.Array]:
        with replaced(cut.tap, features):
            outputs, updates = cut.forward(values, inputs, training=True, trainable=trainable)
        changed.extend(name for name in updates if cut.forward.roles[name] == "statistic")
        return [*jax.tree.leaves(outputs), *(updates[name] for name in changed)]

    values = _abstract(cut.forward)
    batch_size = jax.tree.leaves(cut.inputs)[0].shape[0]
    features = jax.ShapeDtypeStruct((batch_size, *cut.shape), cut.dtype)
    jaxpr = jax.make_jaxpr(run)(values, cut.inputs, features).jaxpr
    needed = _values(jaxpr, [*sorted(values), *_names_of(cut.inputs), _FEATURES])
    alone = not any(_INPUTS in value.reads for value in needed)
    return alone and cut.reads.isdisjoint(changed)


def _names_of(inputs: Any) -> list[str]:
    """One name for each array that a model takes: none of them may be needed after the cut."""
    return [_INPUTS] * len(jax.tree.leaves(inputs))


def _abstract(forward: Forward) -> dict[str, jax.ShapeDtypeStruct]:
    return {
        name: jax.ShapeDtypeStruct(variable.shape, variable.dtype)
        for name, variable in forward.variables.items()
    }
