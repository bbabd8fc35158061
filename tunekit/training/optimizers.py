"""From an optimizer's spec to one optax transformation a variable.

Every variable has an optimizer state of its own, with its own count of steps: a variable thawed
late starts with the bias correction of a first step, and a variable that goes on training keeps
its moments whatever joins or leaves. The learning rate is no part of it; the step multiplies.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import jax
import optax
from optax.contrib import scale_by_muon

from tunekit.plans.optimizer import OptimizerSpec

Values = dict[str, jax.Array]
OptimizerStates = dict[str, Any]

_UNDECAYED = ("class_token", "position_embedding", "pos_embed", "register_tokens")


def transformation(
    spec: OptimizerSpec, name: str, value: jax.Array
) -> optax.GradientTransformation:
    """Returns the transformation of one variable, for a learning rate of 1; without decay.

    Args:
        spec: the optimizer.
        name: structural name of the variable.
        value: its value, for its shape.
    """
    return _rule(spec, orthogonal=spec.name == "muon" and _is_hidden_matrix(name, value))


def _rule(spec: OptimizerSpec, *, orthogonal: bool) -> optax.GradientTransformation:
    adam = optax.scale_by_adam(*spec.betas, eps=spec.epsilon)
    return {
        "adam": lambda: adam,
        "adamw": lambda: adam,
        "sgd": lambda: optax.trace(spec.momentum, nesterov=True),
        "lion": lambda: optax.scale_by_lion(*spec.betas),
        # Muon orthogonalises matrices of hidden layers; all else is Adam's, as its author says.
        "muon": lambda: scale_by_muon() if orthogonal else adam,
    }[spec.name]()


def weight_decay(spec: OptimizerSpec, name: str, value: jax.Array) -> float:
    """Returns the decoupled weight decay of one variable.

    Decoupled (Loshchilov & Hutter 2019, https://arxiv.org/abs/1711.05101) for every optimizer but
    "adam", which has none. Vectors (biases, norms' scales) and tokens and positions have none
    either.
    """
    decays = value.ndim > 1 and not any(word in name for word in _UNDECAYED)
    return spec.weight_decay if decays and spec.name != "adam" else 0.0


def _is_hidden_matrix(name: str, value: jax.Array) -> bool:
    return value.ndim == 2 and not name.startswith("heads/") and "embedding" not in name


def initial_states(
    spec: OptimizerSpec, trainable: Mapping[str, jax.Array], kept: Mapping[str, Any] | None = None
) -> OptimizerStates:
    """Returns one optimizer state for each variable of `trainable`.

    Args:
        spec: the optimizer.
        trainable: float32 values by structural name.
        kept: states of an earlier phase; a variable in both goes on with its own.
    """
    kept = kept or {}
    return {
        name: kept[name] if name in kept else transformation(spec, name, value).init(value)
        for name, value in trainable.items()
    }


def apply_gradients(
    spec: OptimizerSpec,
    gradients: Mapping[str, jax.Array],
    states: Mapping[str, Any],
    trainable: Mapping[str, jax.Array],
    learning_rates: Mapping[str, jax.Array],
) -> tuple[Values, OptimizerStates]:
    """Returns the values and states after one step.

    Args:
        spec: the optimizer.
        gradients: of the mean loss, by structural name.
        states: from `initial_states`.
        trainable: the present values.
        learning_rates: one scalar a variable.
    """
    new_values: Values = {}
    new_states: OptimizerStates = {}
    for name, value in trainable.items():
        new_values[name], new_states[name] = _updated(
            gradients[name],
            states[name],
            value,
            learning_rates[name],
            spec=spec,
            orthogonal=spec.name == "muon" and _is_hidden_matrix(name, value),
            decay=weight_decay(spec, name, value),
        )
    return new_values, new_states


@functools.partial(jax.jit, static_argnames=("spec", "orthogonal", "decay"))
def _updated(
    gradient: jax.Array,
    state: Any,
    value: jax.Array,
    learning_rate: jax.Array,
    *,
    spec: OptimizerSpec,
    orthogonal: bool,
    decay: float,
) -> tuple[jax.Array, Any]:
    """A value and its state after one step.

    A program of its own, which XLA puts in line: it is traced once for all variables of one shape,
    and there are hundreds.
    """
    step: Any
    step, state = _rule(spec, orthogonal=orthogonal).update(gradient, state, value)
    if decay:
        step = step + decay * value
    return value - learning_rate * step, state
