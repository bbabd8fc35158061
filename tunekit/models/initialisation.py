"""How variables get their first value while an architecture is built: by nothing, or by a seed.

Keras draws every random initial value eagerly, and JAX compiles each draw for its shape: an
EfficientNet-Lite0 takes 12 s to build, of which its weights overwrite all. `without_values`
builds it in 0.4 s. `seeded` gives every draw its own seed, so that a model without pretrained
weights is the same in every process without touching Keras' global seed.

Replaces the private method ``_initialize_with_initializer`` of Keras' JAX variable for the length
of a block, and reads ``RandomInitializer`` and ``Variable._value``, as of Keras 3.15.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import jax
import keras
import numpy as np
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
        fill = np.ones if isinstance(initializer, keras.initializers.Ones) else np.zeros
        # device_put, because jnp.zeros compiles a program for every shape.
        value = jax.device_put(fill(variable._shape, variable._dtype))
        placeholders.values.append(value)
        return value

    with _initialising(initialise):
        yield placeholders


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Random initial values in this block depend on `seed` and the order of building alone.

    The states of dropout's seed generators, which Keras draws from Python's global generator,
    do so too.
    """
    drawn = 0

    def next_seed() -> int:
        nonlocal drawn
        drawn += 1
        return int(np.random.SeedSequence([seed, drawn]).generate_state(1)[0] >> 1)

    def initialise(variable: Any, initializer: Callable[..., Any]) -> jax.Array | None:
        if variable.name == "seed_generator_state":
            return jax.device_put(np.array([next_seed(), 0], variable._dtype))
        if not isinstance(initializer, RandomInitializer):
            return None
        # Layers may share an initializer object, so the seed goes on a copy.
        own = initializer.__class__.from_config(initializer.get_config())
        own.seed = next_seed()
        return own(variable._shape, dtype=variable._dtype)

    with _initialising(initialise):
        yield


@contextmanager
def _initialising(initialise: Initialise) -> Iterator[None]:
    """`initialise(variable, initializer)` gives first values; None leaves them to Keras."""
    original = Variable._initialize_with_initializer

    def replacement(variable: Any, initializer: Callable[..., Any]) -> None:
        value = initialise(variable, initializer)
        if value is None:
            original(variable, initializer)
        else:
            variable._initialize_layout()
            variable._direct_assign(value)

    Variable._initialize_with_initializer = replacement
    try:
        yield
    finally:
        Variable._initialize_with_initializer = original
