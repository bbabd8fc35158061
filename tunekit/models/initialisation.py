"""How variables get their first value while an architecture is built: by nothing, or by a seed.

Or by nothing at all, for good: in `shapes_only` a network of any size is built without an array.

Keras draws every random initial value eagerly, and JAX compiles each draw for its shape: an
EfficientNet-Lite0 takes 12 s to build, of which its weights overwrite all. `without_values`
builds it in 0.4 s. `seeded` draws with NumPy from a seed of its own, so that a model without
pretrained weights is the same in every process and Keras' global seed is left alone.

Replaces the methods ``_initialize_with_initializer``, ``_direct_assign``, ``_convert_to_tensor``
and ``__array__`` of Keras' JAX variable and the functions of ``keras.src.backend.jax.random`` for
the length of a block, and reads ``RandomInitializer``, ``in_stateless_scope``, ``current_path`` and
a variable's ``_value`` and ``_initializer``, as of Keras 3.15. A variable without a ``_value`` is
one that Keras itself knows: when read it asks its initializer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import keras
import numpy as np
from keras.src.backend.common.name_scope import current_path
from keras.src.backend.common.stateless_scope import in_stateless_scope
from keras.src.backend.jax import random as jax_random
from keras.src.backend.jax.core import Variable
from keras.src.initializers.random_initializers import RandomInitializer

Initialise = Callable[[Any, Callable[..., Any]], "jax.Array | None"]
_CONSTANTS = (keras.initializers.Zeros, keras.initializers.Ones)


@dataclass
class Placeholders:
    """The values handed out by `without_values`, to find those that nothing replaced."""

    values: list[jax.Array] = field(default_factory=list)

    def left_in(self, model: keras.Layer) -> list[str]:
        """Returns the paths of the variables of `model` that still hold no real value."""
        handed_out = {id(value) for value in self.values}
        return [v.path for v in model.variables if id(v._value) in handed_out]


@contextmanager
def without_values() -> Iterator[Placeholders]:
    """Variables built in this block hold zeros (ones where asked): the weights come later."""
    placeholders = Placeholders()

    def initialise(variable: Any, initializer: Callable[..., Any]) -> jax.Array | None:
        if not isinstance(initializer, (RandomInitializer, *_CONSTANTS)):
            return None
        # device_put, because jnp.zeros compiles a program for every shape.
        value = jax.device_put(_constant(initializer, variable))
        placeholders.values.append(value)
        return value

    with _initialising(initialise):
        yield placeholders


@contextmanager
def shapes_only() -> Iterator[None]:
    """Variables built in this block have a shape and a dtype, and never a value.

    ``variable.value`` is a `jax.ShapeDtypeStruct`, afterwards too; while a layer is built or Keras
    infers shapes it is zeros, which a trace need not hold. For NumPy it is zeros within the block,
    of no memory; what is assigned to it there is dropped. `without_values` and `seeded` do nothing
    inside.

    Example:
        >>> with shapes_only():
        ...     layer = keras.layers.Dense(100_000)
        ...     layer.build((None, 100_000))
        >>> layer.kernel.value
        ShapeDtypeStruct(shape=(100000, 100000), dtype=float32)
    """
    variable_class: Any = Variable
    assign, convert = Variable._direct_assign, Variable._convert_to_tensor
    as_array = Variable.__array__

    def direct_assign(variable: Any, value: Any) -> None:
        if not has_shape_only(variable):
            assign(variable, value)

    def convert_to_tensor(variable: Any, value: Any, dtype: Any = None) -> Any:
        is_shape = isinstance(value, jax.ShapeDtypeStruct)
        return value if is_shape else convert(variable, value, dtype=dtype)

    def array(variable: Any, dtype: Any = None) -> np.ndarray:
        if not has_shape_only(variable):
            return as_array(variable, dtype)
        zero = np.zeros((), jnp.dtype(dtype or variable._dtype))
        return np.broadcast_to(zero, variable._shape)

    replacements = {
        "_initialize_with_initializer": _hold_shape,
        "_direct_assign": direct_assign,
        "_convert_to_tensor": convert_to_tensor,
        "__array__": array,
    }
    before = {name: vars(Variable).get(name) for name in replacements}
    for name, replacement in replacements.items():
        setattr(variable_class, name, replacement)
    try:
        yield
    finally:
        for name, method in before.items():
            if method is None:  # It is inherited.
                delattr(variable_class, name)
            else:
                setattr(variable_class, name, method)


def has_shape_only(variable: Any) -> bool:
    """Returns whether a variable was built in `shapes_only`."""
    return variable._initializer is _zeros


def _hold_shape(variable: Any, initializer: Callable[..., Any]) -> None:
    # Keras asks the initializer where there is no value.
    variable._value, variable._initializer = None, _zeros


def _zeros(shape: tuple[int, ...], dtype: Any) -> Any:
    """What a variable without a value is when it is read."""
    # Keras infers shapes, and `Forward` runs, in such a scope and in a trace; and a layer may
    # compute with its variables while it is built, as DINOv2 does with those of positions.
    if in_stateless_scope() or current_path():
        return jnp.zeros(shape, dtype)
    return jax.ShapeDtypeStruct(tuple(shape), dtype)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Random initial values in this block depend on `seed` and the order of building alone.

    The states of dropout's seed generators, which Keras draws from Python's global generator,
    do so too. NumPy draws the numbers, by the formulas of each initializer.
    """
    drawn = 0

    def initialise(variable: Any, initializer: Callable[..., Any]) -> jax.Array | None:
        nonlocal drawn
        drawn += 1
        rng = np.random.default_rng([seed, drawn])
        if variable.name == "seed_generator_state":
            state = np.array([rng.integers(2**31), 0], variable._dtype)
            return jax.device_put(state)
        if isinstance(initializer, _CONSTANTS):
            return jax.device_put(_constant(initializer, variable))
        if not isinstance(initializer, RandomInitializer):
            return None
        with _drawing(rng):
            return initializer(variable._shape, dtype=variable._dtype)

    with _initialising(initialise):
        yield


@contextmanager
def _drawing(rng: np.random.Generator) -> Iterator[None]:
    """The distributions that Keras' initializers draw from are `rng`'s, not compiled by JAX."""

    def normal(shape: Any, mean: Any = 0.0, stddev: Any = 1.0, dtype: Any = None, **_: Any) -> Any:
        return jax.device_put((rng.standard_normal(shape) * stddev + mean).astype(dtype))

    def truncated_normal(
        shape: Any, mean: Any = 0.0, stddev: Any = 1.0, dtype: Any = None, **_: Any
    ) -> Any:
        values = rng.standard_normal(shape)
        while (outside := np.abs(values) > 2).any():
            values[outside] = rng.standard_normal(int(outside.sum()))
        return jax.device_put((values * stddev + mean).astype(dtype))

    def uniform(
        shape: Any, minval: Any = 0.0, maxval: Any = 1.0, dtype: Any = None, **_: Any
    ) -> Any:
        return jax.device_put(rng.uniform(minval, maxval, shape).astype(dtype))

    ours = {"normal": normal, "truncated_normal": truncated_normal, "uniform": uniform}
    theirs = {name: getattr(jax_random, name) for name in ours}
    for name, draw in ours.items():
        setattr(jax_random, name, draw)
    try:
        yield
    finally:
        for name, draw in theirs.items():
            setattr(jax_random, name, draw)


def _constant(initializer: Any, variable: Any) -> np.ndarray:
    fill = np.ones if isinstance(initializer, keras.initializers.Ones) else np.zeros
    return fill(variable._shape, variable._dtype)


@contextmanager
def _initialising(initialise: Initialise) -> Iterator[None]:
    """`initialise(variable, initializer)` gives first values; None leaves them to Keras."""
    original = Variable._initialize_with_initializer
    if original is _hold_shape:
        yield
        return

    def replacement(variable: Any, initializer: Callable[..., Any]) -> None:
        value = initialise(variable, initializer)
        if value is None:
            original(variable, initializer)
        else:
            variable._initialize_layout()
            variable._direct_assign(value)

    variable_class: Any = Variable
    variable_class._initialize_with_initializer = replacement
    try:
        yield
    finally:
        variable_class._initialize_with_initializer = original
