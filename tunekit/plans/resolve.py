"""Phases as the trainer runs them: names of variables, steps, and one learning rate a step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import optax

from tunekit.durations import Duration
from tunekit.errors import SelectionError
from tunekit.plans.phase import Phase


@dataclass(frozen=True, eq=False)
class ResolvedPhase:
    """One phase, with nothing left to convert."""

    label: str
    """What trains, as the user said it."""
    trainable: frozenset[str]
    """Structural names of the variables that train."""
    learning_rates: np.ndarray
    """float32 [steps]: the rate of each optimizer step."""
    patience: int | None
    """Evaluations without a better result that end the phase; `None` is any number."""

    @property
    def steps(self) -> int:
        """Optimizer steps of the whole phase."""
        return len(self.learning_rates)


def resolve_plan(
    plan: Sequence[Phase],
    select: Callable[[Sequence[str]], frozenset[str]],
    *,
    default_train: Sequence[str],
    steps_per_epoch: int,
) -> tuple[ResolvedPhase, ...]:
    """Returns the phases of `plan` in optimizer steps.

    Args:
        plan: the phases.
        select: from selectors to the names of the variables they choose.
        default_train: selectors of a phase that has none.
        steps_per_epoch: optimizer steps of one pass over the training data.

    Raises:
        SelectionError: a phase's selectors choose nothing; the message says which phase.
    """
    return tuple(
        _resolve_phase(phase, f"plan[{index}].train", select, default_train, steps_per_epoch)
        for index, phase in enumerate(plan)
    )


def _resolve_phase(
    phase: Phase,
    place: str,
    select: Callable[[Sequence[str]], frozenset[str]],
    default_train: Sequence[str],
    steps_per_epoch: int,
) -> ResolvedPhase:
    selectors = default_train if phase.train is None else phase.train
    selectors = (selectors,) if isinstance(selectors, str) else tuple(selectors)
    try:
        trainable = select(selectors)
    except SelectionError as error:
        raise SelectionError(f"{place}: {error}") from error
    steps = phase.steps or Duration(phase.epochs or 0, "epochs").to_steps(steps_per_epoch)
    warmup_steps = Duration.parse(phase.warmup).to_steps(steps_per_epoch, steps)
    return ResolvedPhase(
        label=", ".join(selectors),
        trainable=trainable,
        learning_rates=_learning_rates(phase, steps, min(warmup_steps, steps - 1)),
        patience=phase.early_stopping,
    )


def _learning_rates(phase: Phase, steps: int, warmup_steps: int) -> np.ndarray:
    """The rate of every step: linear warmup from above zero to the peak, then the schedule."""
    peak, rest = phase.learning_rate, steps - warmup_steps
    schedule = {
        "constant": lambda: optax.constant_schedule(peak),
        "cosine": lambda: optax.cosine_decay_schedule(peak, rest),
        "linear": lambda: optax.linear_schedule(peak, 0.0, rest),
        # Its own rise and fall (Smith 2018, https://arxiv.org/abs/1803.09820), in place of both.
        "one_cycle": lambda: optax.cosine_onecycle_schedule(steps, peak),
    }[phase.schedule]()
    if phase.schedule != "one_cycle" and warmup_steps:
        # From peak / (warmup + 1): a first step at rate zero would be a step wasted.
        rise = optax.linear_schedule(peak / (warmup_steps + 1), peak, warmup_steps)
        schedule = optax.join_schedules([rise, schedule], [warmup_steps])
    rates = jax.vmap(lambda step: jnp.asarray(schedule(step), jnp.float32))(jnp.arange(steps))
    return np.asarray(rates)
