"""A sweep: many members of one recipe trained, compared by a metric, the best of them kept."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import keras
import numpy as np

from tunekit.data.features import FeatureStore
from tunekit.data.source import Splits, open_data
from tunekit.errors import DataError, Issue, RecipeError, did_you_mean
from tunekit.evaluation.metrics import classification_metrics
from tunekit.folder import check_replaceable
from tunekit.models.model import Model
from tunekit.recipe import Recipe
from tunekit.side_by_side import MemberRun, result_of, run_members
from tunekit.sweep_members import member_recipes
from tunekit.sweep_record import MARKS, Sweep, monitored
from tunekit.sweep_search import Search
from tunekit.sweep_space import Space, check_count
from tunekit.tasks.image_classification import ImageClassification
from tunekit.tasks.spec import labels_of_images
from tunekit.training.progress import reporter

AT_ONCE = 8
"""Trials of a search that are proposed, and trained, before the next are."""


def sweep(
    recipe: Recipe | str | Path,
    space: Mapping[str, Any] | Iterable[str],
    *,
    metric: str | None = None,
    trials: int | None = None,
    out: str | Path | None = None,
    model: Model | keras.Model | None = None,
    data: Any = None,
) -> Sweep:
    """Returns every combination of the values in `space` trained, compared, and the best.

    Members that differ in seed and rates alone and start from a cached frozen prefix train side by
    side; the others one after another. Each equals its own recipe run alone, up to the rounding of
    products that are computed together. Seeds share one split of the data.

    Args:
        recipe: what the members have in common, or its path or shipped name.
        space: values by path: a list, tuple, `range` or array is several, anything else one.
            "log(1e-5, 1e-1)", "uniform(0, 0.5)" and "int(1, 8)" are ranges to search. Or texts as
            on the command line. learning_rate scales the rates of all phases, the highest to the
            value.
        metric: of validation, by which members are compared; `None` is that of runtime.monitor.
        trials: of a search: how often values are drawn; each is tried with every seed.
        out: folder to save in; `None` is the recipe's runtime.out.
        model: used in place of the one that the recipe names; it is left as it was.
        data: used in place of the path that the recipe names.

    Raises:
        RecipeError: every mistake in the space and in any member, at once; too many members.
        DataError: the data has mistakes, or nothing to validate on.
        TunekitError: a range is to be searched, and Optuna is not installed.

    Example:
        >>> found = sweep("vision/linear_probe", {"learning_rate": [1e-3, 1e-2], "seed": range(4)})
        >>> print(found.table())
        >>> found.best.save("best/")
    """
    since = time.perf_counter()
    base = recipe if isinstance(recipe, Recipe) else Recipe.load(recipe)
    issues: list[Issue] = []
    wanted = Space.read(space, issues)
    _check_said(base, wanted, trials, issues)
    members = list(wanted.samples() if wanted.searched else wanted.members())
    recipes = member_recipes(base, wanted, members, issues)
    folder = out or base.runtime.out
    if folder is not None:
        check_replaceable(Path(folder).expanduser(), MARKS)
    metric = (metric or monitored(recipes[0].runtime)).removeprefix("val_")
    splits = _checked_data(recipes[0], data, metric)
    if splits is not None and all(each.data == recipes[0].data for each in recipes):
        data = splits
    found = Sweep(metric, wanted.axes, _open=partial(result_of, model=model, data=data))
    shown = reporter(recipes[0].runtime.progress)
    # One store for all: the batches of a search start from the same features.
    store = FeatureStore(recipes[0].cache)
    train = partial(run_members, model=model, data=data, reporter=shown, store=store)
    if trials is None:
        found.add(members, train(recipes))
    else:
        _search(found, base, wanted, trials, train)
    found.seconds = time.perf_counter() - since
    if folder is not None:
        found.save(folder)
    return found


def _search(
    found: Sweep,
    base: Recipe,
    space: Space,
    trials: int,
    train: Callable[[list[Recipe]], list[MemberRun]],
) -> None:
    """Adds the members that Optuna proposes, learning from those before."""
    search = Search(space, seed=base.seed, lower_is_better=found.lower_is_better)
    for start in range(0, trials, AT_ONCE):
        asked = search.ask(min(AT_ONCE, trials - start))
        known = found.means()
        fresh = {key: values for values in asked if (key := found.key(values)) not in known}
        members = [{**values, **seed} for values in fresh.values() for seed in space.seeds()]
        if members:
            found.add(members, train(member_recipes(base, space, members)))
        known = found.means()
        search.tell([known[found.key(values)] for values in asked])


def _check_said(base: Recipe, space: Space, trials: int | None, issues: list[Issue]) -> None:
    """What is wrong with the sweep as a whole joins `issues`."""
    for path in ("runtime.out", "runtime.resume"):
        if path in space.constants or path in space.ranges:
            message = "is not a member's; name the folder of the sweep by out (--out)."
            issues.append(Issue(path, message))
    if base.runtime.resume:
        message = "a sweep begins anew; leave it out."
        issues.append(Issue("runtime.resume", message))
    if space.searched and trials is None:
        message = "a range is to be searched; say how often: trials=20 (--trials 20)."
        issues.append(Issue("trials", message))
    elif trials is not None and not space.searched:
        message = (
            "all values are listed, and each is tried; leave it out, or search a range such as "
            "learning_rate=log(1e-5, 1e-1)."
        )
        issues.append(Issue("trials", message))
    elif trials is not None and trials < 1:
        issues.append(Issue("trials", f"expected at least 1, got {trials}."))
    check_count((trials or 1) * len(space.seeds()))


def _checked_data(recipe: Recipe, data: Any, metric: str) -> Splits | None:
    """Returns the data of the first member, opened; `None` where nothing names any.

    Raises:
        DataError: it has mistakes, or nothing to validate on.
        RecipeError: the metric is none that will be measured.
    """
    if data is None and recipe.data.path is None:
        return None
    spec = labels_of_images(recipe.task, "a sweep")
    splits = open_data(data, recipe.data, seed=recipe.seed)
    source = splits.validation
    if source is None:
        raise DataError(
            "data: a sweep compares its members by validation data, and there is none. Give "
            "data.validation, or a data.validation_fraction above 0."
        )
    task = ImageClassification.bind(spec, splits.train)
    classes = len(task.label_names)
    labels = np.asarray(source.label_array)
    if task.multi_label and labels.ndim == 1:
        labels = np.eye(classes)[labels]
    # Of logits that say nothing, for the names of what can be measured here.
    told = classification_metrics(
        np.zeros((len(labels), classes)),
        labels,
        task.label_names,
        multi_label=task.multi_label,
        top_k=task.top_k,
    )
    names = [name for name, value in told.items() if isinstance(value, float)]
    if metric not in names:
        hint = did_you_mean(metric, names)
        message = f"no such metric: {metric!r}.{hint} There are {', '.join(names)}."
        raise RecipeError([Issue("metric", message)])
    return splits
