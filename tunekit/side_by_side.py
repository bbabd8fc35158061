"""Many recipes trained: at once where they share a frozen prefix and a program, else in turn."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, cast

import jax
import keras
import numpy as np

from tunekit.data.features import FeatureStore
from tunekit.errors import TrainingError
from tunekit.methods.spec import LoRA
from tunekit.models.adapted import fresh_adapter
from tunekit.models.model import Model
from tunekit.recipe import Recipe
from tunekit.result import Result
from tunekit.session import Session, session
from tunekit.training.members import Members
from tunekit.training.progress import Reporter, SilentReporter
from tunekit.training.step import Values
from tunekit.training.trainer import Trained, Trainer


@dataclass(frozen=True, eq=False)
class MemberRun:
    """What became of one recipe."""

    recipe: Recipe
    history: list[dict[str, Any]]
    phases: list[dict[str, Any]]
    failure: str | None
    """Why it has no result, such as a loss that is not finite."""
    together: bool
    """Whether it trained at once with others, in one program."""
    values: Mapping[str, np.ndarray]
    """What the model ended with, where that may differ from what was loaded."""


def run_members(
    recipes: Sequence[Recipe],
    *,
    model: Model | keras.Model | None = None,
    data: Any = None,
    reporter: Reporter | None = None,
    store: FeatureStore | None = None,
) -> list[MemberRun]:
    """Returns what became of each recipe, in their order; a model given is left as it was.

    Recipes that differ in seed and rates alone, and whose every phase starts from a cached frozen
    prefix, train under one `vmap`; the others run one after another. Nothing is saved.

    Args:
        recipes: what to run; they may differ in anything.
        model: used in place of the one that the recipes name.
        data: used in place of the path that the recipes name.
        reporter: told of the course; `None` shows nothing.
        store: of features, kept between calls; `None` keeps none.

    Raises: as `tunekit.run` does before it trains.
    """
    shown = reporter or SilentReporter()
    goes_on = isinstance(model, Model) and bool(model.labels or model.adapters.entries)
    found: dict[int, MemberRun] = {}
    groups: dict[Hashable, list[int]] = {}
    for index, recipe in enumerate(recipes):
        preparation = _preparation(recipe, model, goes_on=goes_on)
        groups.setdefault(preparation, []).append(index)
    for indices in groups.values():
        first = _on_one_device(recipes[indices[0]])
        with _untouched(model), session(first, model, data, store) as ready:
            ready.feeder.note = shown.note
            sessions = {index: ready.of(recipes[index]) for index in indices}
            trainers = {
                index: each.trainer(start={} if goes_on else _fresh_values(each))
                for index, each in sessions.items()
            }
            found |= _run_prepared(sessions, trainers, shown)
    return [found[index] for index in range(len(recipes))]


def _on_one_device(recipe: Recipe) -> Recipe:
    """The recipe of a run on the first device, which the members share side by side."""
    return recipe.model_copy(update={"runtime": replace(recipe.runtime, mesh="one")})


def result_of(
    member: MemberRun, *, model: Model | keras.Model | None = None, data: Any = None
) -> Result:
    """Returns the whole result of one member, judged as `tunekit.run` judges it.

    Args:
        member: one that did not fail.
        model: the one given to `run_members`, which then holds the member's values.
        data: the data given to `run_members`.

    Raises:
        TrainingError: the member failed.
    """
    if member.failure is not None:
        raise TrainingError(f"the member has no result: {member.failure}.")
    with session(member.recipe, model, data) as ready:
        before = ready.feeder.forward.values()
        ready.feeder.forward.assign({n: jax.numpy.asarray(v) for n, v in member.values.items()})
    trained = Trained(member.history, member.phases, 0, 0.0, member.history[-1]["step"])
    seconds = sum(row["seconds"] for row in member.history)
    return ready.result(trained, before, seconds=seconds)


def _fresh_values(each: Session) -> Values:
    """What the recipe's own seed draws: the head, and what trains of the adapter."""
    values, model, seed = each.fresh_head(), each.model, each.recipe.seed
    for prefix, present in model.adapters.by_prefix.items():
        fresh = fresh_adapter(model, present.spec, seed=seed)
        own = fresh.values().items()
        values |= {f"{prefix}/{name}": v for name, v in own if fresh.roles[name] == "weight"}
    return values


def _preparation(recipe: Recipe, model: Model | keras.Model | None, *, goes_on: bool) -> Hashable:
    """What is equal for recipes that one loaded model and one open source serve."""
    seeded_data = recipe.data.split_seed is None
    # A network that is not pretrained is another one for each seed.
    seeded_model = model is None and not recipe.backbone.pretrained
    # So is a head of which rows are kept and others fresh, and a LoRA that begins with directions
    # of the network or of the data.
    method = recipe.method
    searched = isinstance(method, LoRA) and method.init in ("pissa", "olora", "eva", "loftq")
    shared = not (seeded_data or seeded_model or goes_on or searched)
    seed = None if shared else recipe.seed
    rest = recipe.model_dump_json(exclude={"seed", "plan", "optimizer", "batch", "runtime"})
    return (rest, seed)


def _run_prepared(
    sessions: Mapping[int, Session], trainers: Mapping[int, Trainer], shown: Reporter
) -> dict[int, MemberRun]:
    groups: dict[Hashable, list[int]] = {}
    for index, trainer in trainers.items():
        # What cannot train with others is a group of its own.
        key = _program(trainer) if _is_shareable(trainer) else index
        groups.setdefault(key, []).append(index)
    found = {}
    for indices in groups.values():
        if len(indices) == 1:
            (index,) = indices
            found[index] = _alone(sessions[index], trainers[index], shown)
            continue
        members = Members([trainers[index] for index in indices], shown).fit()
        for index, member in zip(indices, members, strict=True):
            found[index] = MemberRun(
                sessions[index].recipe,
                member.trained.history,
                member.trained.phases,
                member.failure,
                together=True,
                values=_arrays(member.values),
            )
    return found


def _alone(each: Session, trainer: Trainer, shown: Reporter) -> MemberRun:
    trainer.reporter = shown
    forward = each.feeder.forward
    before = forward.values()
    trained, failure = Trained([], [], 0, 0.0, 0), None
    try:
        trained = trainer.fit()
    except TrainingError as error:
        failure = str(error)
    after = forward.values()
    names = {*trainer.start, *(name for name, value in after.items() if value is not before[name])}
    values = _arrays({name: after[name] for name in names})
    # The model goes on to the next member as it came.
    forward.assign({name: before[name] for name in names})
    return MemberRun(
        each.recipe, trained.history, trained.phases, failure, together=False, values=values
    )


def _is_shareable(trainer: Trainer) -> bool:
    """Whether it may train with others: from features, to an end known beforehand."""
    starts = all(feed.start is not None for feed in trainer.feeds)
    return starts and not any(
        phase.patience is not None or phase.spec.batch_norm == "reestimated"
        for phase in trainer.phases
    )


def _program(trainer: Trainer) -> Hashable:
    """Equal for trainers that differ in values alone."""
    steps = tuple(phase.steps for phase in trainer.phases)
    return (tuple(trainer.programs.keys), steps, trainer.runtime)


def _arrays(values: Mapping[str, jax.Array]) -> dict[str, np.ndarray]:
    return {name: np.asarray(value) for name, value in values.items()}


@contextmanager
def _untouched(model: Model | keras.Model | None) -> Iterator[None]:
    """Gives a `Model` its head and values back at the end of the block."""
    if not isinstance(model, Model):
        yield
        return
    given = cast(Model, model)
    before = dict(vars(given))
    values = {name: variable.value for name, variable in given.variables().items()}
    try:
        yield
    finally:
        vars(given).update(before)
        for name, variable in given.variables().items():
            variable.assign(values[name])
