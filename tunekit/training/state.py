"""What a run is made of while it lasts: the partitioned values, and how far it has come."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import jax
import jax.numpy as jnp

from tunekit.models.forward import Forward
from tunekit.plans.optimizer import OptimizerSpec
from tunekit.plans.resolve import ResolvedPhase
from tunekit.training.loss_scale import Scale, first_scale, needs_scaling
from tunekit.training.optimizers import initial_states
from tunekit.training.step import Carried, Values

NO_SCORE = -sys.float_info.max
"""Score before any evaluation; finite, so that it is JSON."""


@dataclass
class Progress:
    """How far a run has come; JSON, and with the arrays of `State` enough to go on exactly."""

    phase: int = 0
    """The phase that runs."""
    phase_step: int = 0
    """Optimizer steps done in it."""
    step: int = 0
    """Optimizer steps done in all."""
    first_epoch: int = 0
    """Passes over the data before this phase; a phase always begins a new pass."""
    loss_sum: float = 0.0
    """Losses of the present pass, weighted by its examples."""
    loss_weight: float = 0.0
    """Examples of the present pass so far."""
    score: float = NO_SCORE
    """The monitored metric at the last evaluation, turned so that higher is better."""
    best_score: float = NO_SCORE
    """The best score of the run."""
    phase_best_score: float = NO_SCORE
    """The best score of this phase."""
    waited: int = 0
    """Evaluations of this phase since its best."""
    skipped: int = 0
    """Steps of this phase that changed nothing, for their gradients were not finite in float16."""
    moved: list[str] = field(default_factory=list)
    """Names of the variables that may differ from the model's at the start, sorted."""
    history: list[dict[str, Any]] = field(default_factory=list)
    """One row a pass."""
    phases: list[dict[str, Any]] = field(default_factory=list)
    """What became of each phase that has ended."""
    memory: dict[str, int | None] = field(default_factory=dict)
    """What this phase holds in bytes; empty before its first step."""

    def to_json(self) -> dict[str, Any]:
        """Returns the fields as JSON values."""
        return asdict(self)


@dataclass
class State:
    """Everything that changes while a run lasts."""

    carried: Carried
    """What the step consumes and gives back."""
    frozen: Values
    """All other values; never donated, so the model's own arrays stay alive."""
    best: Values | None
    """Moved values of the best evaluation, in the model's dtypes."""
    progress: Progress
    phase_best: Values | None = None
    """Moved values of this phase's best evaluation, where it hands them on."""

    def values(self, *, averaged: bool = False) -> Values:
        """Returns every value by structural name, moving averages in place if `averaged`."""
        averages = self.carried.ema if averaged else {}
        return {**self.frozen, **self.carried.mutable, **self.carried.trainable, **averages}

    def moved(self, *, averaged: bool = False) -> Values:
        """Returns the values that may differ from the model's at the start."""
        values = self.values(averaged=averaged)
        return {name: values[name] for name in self.progress.moved}

    def keep_as_best(self, forward: Forward) -> None:
        """Copies the moved values as those of the best evaluation, in the model's dtypes."""
        self.best = {
            name: jnp.array(value, forward.variables[name].dtype, copy=True)
            for name, value in self.moved(averaged=True).items()
        }

    def keep_as_phase_best(self) -> None:
        """Copies the moved values as those that the next phase starts from."""
        self.phase_best = {
            name: jnp.array(value, copy=True) for name, value in self.moved(averaged=True).items()
        }

    def is_whole(self) -> bool:
        """Whether no value was consumed by a step that did not come back."""
        return not any(leaf.is_deleted() for leaf in jax.tree.leaves(tuple(self.carried)))


def enter_phase(
    forward: Forward,
    phase: ResolvedPhase,
    values: Mapping[str, jax.Array],
    optimizer: OptimizerSpec,
    *,
    previous: State | None = None,
    previous_optimizer: OptimizerSpec | None = None,
    progress: Progress,
) -> State:
    """Returns the state at the start of `phase`: `values` split anew by what trains in it.

    Moments and averages of what goes on training are kept: moments where the optimizer's rule is
    still the same, averages where the phase before did not hand on its best.

    Args:
        forward: the model's forward pass.
        phase: what trains.
        values: every value by structural name; not consumed.
        optimizer: of the phase.
        previous: the end of the phase before.
        previous_optimizer: of the phase before.
        progress: how far the run is; the variables that this phase moves are added to it.
    """
    moments, averages, scale = {}, {}, {}
    if previous is not None and previous_optimizer is not None:
        if previous_optimizer.name == optimizer.name:
            moments = previous.carried.optimizer
        if previous.phase_best is None:
            averages = previous.carried.ema
        scale = previous.carried.loss_scale
    carried, frozen = partition(
        forward, phase, values, optimizer, moments=moments, averages=averages, loss_scale=scale
    )
    progress.moved = sorted({*progress.moved, *carried.trainable, *carried.mutable})
    return State(carried, frozen, previous.best if previous else None, progress)


def partition(
    forward: Forward,
    phase: ResolvedPhase,
    values: Mapping[str, jax.Array],
    optimizer: OptimizerSpec,
    *,
    moments: Mapping[str, Any] | None = None,
    averages: Mapping[str, jax.Array] | None = None,
    loss_scale: Scale | None = None,
) -> tuple[Carried, Values]:
    """Returns copies of what a step carries, and the frozen rest, not copied.

    Pure, so that `jax.eval_shape` of it gives the shapes that a step is compiled for.

    Args:
        forward: the model's forward pass.
        phase: what trains.
        values: every value by structural name.
        optimizer: the optimizer.
        moments: optimizer states to go on with, by name.
        averages: moving averages to go on with, by name.
        loss_scale: to go on with.
    """
    averages = averages or {}
    statistics = moving_statistics(forward, phase)
    training = {
        name: jnp.array(values[name], jnp.float32, copy=True)
        for name in forward.variables
        if name in phase.trainable
    }
    mutable = {name: jnp.array(values[name], copy=True) for name in statistics}
    frozen = {
        # The very array where it has the right dtype: members of a sweep share it.
        name: value if value.dtype == variable.dtype else value.astype(variable.dtype)
        for name, variable in forward.variables.items()
        if name not in training and name not in mutable
        for value in (values[name],)
    }
    ema = {
        name: jnp.array(averages.get(name, value), copy=True)
        for name, value in (training.items() if optimizer.ema is not None else ())
    }
    states = initial_states(optimizer, training, moments)
    scale = {name: jnp.array(value, copy=True) for name, value in (loss_scale or {}).items()}
    if not scale and needs_scaling(forward):
        scale = first_scale()
    return Carried(training, mutable, states, ema, scale), frozen


def moving_statistics(forward: Forward, phase: ResolvedPhase) -> list[str]:
    """Returns the names of the statistics that the steps of `phase` may change."""
    policy = "follow" if phase.spec.batch_norm == "reestimated" else phase.spec.batch_norm
    return replace(forward, batch_norm=policy).moving_statistics(phase.trainable)
