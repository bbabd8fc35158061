"""The phases of a recipe on its model and data: in names of variables and in optimizer steps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from tunekit.methods.spec import default_train, rate_factor, trained_parts
from tunekit.models.model import Model
from tunekit.models.trainable import resolve_trainable
from tunekit.plans.builders import expand_plan
from tunekit.plans.phase import Phase
from tunekit.plans.resolve import ResolvedPhase, resolve_plan
from tunekit.recipe import Recipe


def phases_of(
    recipe: Recipe, model: Model, steps_per_epoch: Callable[[Phase], int]
) -> tuple[ResolvedPhase, ...]:
    """Returns the phases, builders expanded, with the rates that the method itself gives.

    Args:
        recipe: says plan and method.
        model: with its head and adapter.
        steps_per_epoch: optimizer steps of one pass over the training data in a phase.

    Raises:
        SelectionError: selectors of a phase choose nothing; the message says which.
    """
    method = recipe.method
    untold = trained_parts(method, has_head=bool(model.labels))
    phases = resolve_plan(
        expand_plan(recipe.plan, model.groups()),
        lambda selectors: resolve_trainable(selectors, model, method),
        default_train=default_train(method),
        steps_per_epoch=steps_per_epoch,
    )
    return tuple(
        replace(
            phase,
            label=phase.label if phase.spec.train is not None else untold,
            multipliers={n: f * rate_factor(method, n) for n, f in phase.multipliers.items()},
        )
        for phase in phases
    )
