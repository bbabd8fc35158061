"""Phases as the trainer runs them: names of variables, steps, and one learning rate a step."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np

from tunekit.durations import Duration
from tunekit.errors import SelectionError
from tunekit.plans.phase import Phase
from tunekit.plans.rates import course

Select = Callable[[Sequence[str]], frozenset[str]]
"""From selectors to the structural names of the variables that they choose."""


@dataclass(frozen=True, eq=False)
class ResolvedPhase:
    """One phase, with nothing left to convert."""

    label: str
    """What trains, as the user said it."""
    spec: Phase
    """The phase as the plan has it: its optimizer, data options and policies."""
    trainable: frozenset[str]
    """Structural names of the variables that train."""
    learning_rates: np.ndarray
    """float32 [steps]: the rate of each optimizer step."""
    multipliers: Mapping[str, float]
    """The factor of that rate for each variable that trains, by structural name."""
    patience: int | None
    """Evaluations without a better result that end the phase; `None` is any number."""

    @property
    def steps(self) -> int:
        """Optimizer steps of the whole phase."""
        return len(self.learning_rates)


def resolve_plan(
    plan: Sequence[Phase],
    select: Select,
    *,
    default_train: Sequence[str],
    steps_per_epoch: Callable[[Phase], int],
) -> tuple[ResolvedPhase, ...]:
    """Returns the phases of `plan` in optimizer steps.

    Args:
        plan: the phases, builders expanded; the first does not continue another.
        select: from selectors to the names of the variables they choose.
        default_train: selectors of a phase that has none.
        steps_per_epoch: optimizer steps of one pass over the training data in a phase.

    Raises:
        SelectionError: selectors of a phase choose nothing; the message says which.
    """
    known = cache(select)
    steps = [_steps(phase, steps_per_epoch(phase)) for phase in plan]
    rates = _learning_rates(plan, steps, steps_per_epoch)
    resolved = []
    for index, (phase, phase_rates) in enumerate(zip(plan, rates, strict=True)):
        selectors = default_train if phase.train is None else phase.train
        selectors = (selectors,) if isinstance(selectors, str) else tuple(selectors)
        trainable = _selected(known, selectors, f"plan[{index}].train")
        resolved.append(
            ResolvedPhase(
                label=", ".join(selectors),
                spec=phase,
                trainable=trainable,
                learning_rates=phase_rates,
                multipliers=_multipliers(phase, trainable, known, f"plan[{index}].multipliers"),
                patience=phase.early_stopping,
            )
        )
    return tuple(resolved)


def _steps(phase: Phase, steps_per_epoch: int) -> int:
    return phase.steps or Duration(phase.epochs or 0, "epochs").to_steps(steps_per_epoch)


def _selected(select: Select, selectors: tuple[str, ...], place: str) -> frozenset[str]:
    try:
        return select(selectors)
    except SelectionError as error:
        raise SelectionError(f"{place}: {error}") from error


def _multipliers(
    phase: Phase, trainable: frozenset[str], select: Select, place: str
) -> dict[str, float]:
    """The factor of each trainable variable; the first selector that selects it counts."""
    factors: dict[str, float] = {}
    for selector, factor in phase.multipliers.items():
        for name in _selected(select, (selector,), place):
            factors.setdefault(name, factor)
    return {name: factors.get(name, 1.0) for name in sorted(trainable)}


def _learning_rates(
    plan: Sequence[Phase], steps: Sequence[int], steps_per_epoch: Callable[[Phase], int]
) -> list[np.ndarray]:
    """The rates of every phase; phases that continue share the course of the one before them."""
    assert plan[0].schedule != "continue", "the recipe refuses a plan that begins by continuing"
    opens = [i for i, phase in enumerate(plan) if phase.schedule != "continue"]
    rates = []
    for start, stop in zip(opens, [*opens[1:], len(plan)], strict=True):
        opener, total = plan[start], sum(steps[start:stop])
        warmup = Duration.parse(opener.warmup).to_steps(steps_per_epoch(opener), steps[start])
        shares = np.asarray(course(opener.schedule, total, min(warmup, steps[start] - 1)))
        ends = np.cumsum(steps[start:stop])[:-1]
        for phase, part in zip(plan[start:stop], np.split(shares, ends), strict=True):
            rates.append((phase.learning_rate * part).astype(np.float32))
    return rates
