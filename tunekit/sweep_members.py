"""The recipe of every member of a sweep: alone, it gives the same run."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from tunekit import recipe_text
from tunekit.errors import Issue, RecipeError
from tunekit.recipe import Recipe
from tunekit.sweep_space import RATES, SEED, Space, Values, values_text

_RATE_FIELDS = ("learning_rate", "head_learning_rate", "lo", "hi")
"""Those of phases and of builders."""


def member_recipes(
    base: Recipe, space: Space, members: Sequence[Values], issues: Iterable[Issue] = ()
) -> list[Recipe]:
    """Returns the recipe of each member; alone, it gives the same run.

    A learning rate scales those of all phases, so that the highest is the value. Where seeds vary,
    all members split the data by the seed of `base`. Nothing is written while a member trains.

    Raises:
        RecipeError: with the `issues` found before and every mistake in any member, once.
    """
    found: dict[Issue, list[Values]] = {issue: [] for issue in issues}
    recipes = []
    for values in members:
        mistakes: list[Issue] = []
        recipe = _member(base, space, values, mistakes)
        recipes += [recipe] if recipe else []
        for issue in mistakes:
            found.setdefault(issue, []).append(values)
    if found:
        raise RecipeError([_placed(issue, at, members) for issue, at in found.items()])
    return recipes


def _member(base: Recipe, space: Space, values: Values, issues: list[Issue]) -> Recipe | None:
    tree = base.model_dump(mode="json")
    split_seed = space.constants.get(SEED, base.seed)
    every = {**space.constants, **values}
    for path in sorted(every, key=lambda path: path in RATES):
        if path in RATES:
            _scale_rates(tree, path, every[path], issues)
        else:
            value = every[path]
            if path == "plan" and isinstance(value, Mapping):
                value = [value]
            # A JSON value is a YAML one.
            text = f"{path}={json.dumps(value, ensure_ascii=False)}"
            recipe_text.override(tree, text, issues)
    data = tree.get("data")
    if SEED in space.ranges and isinstance(data, dict) and data.get("split_seed") is None:
        data["split_seed"] = split_seed
    if isinstance(tree.get("runtime"), dict):
        tree["runtime"].update(out=None, resume=False)
    try:
        recipe = Recipe(**tree)
    except RecipeError as error:
        known = {issue.path for issue in issues}
        issues += [issue for issue in error.issues if issue.path not in known]
        return None
    return None if issues else recipe


def _scale_rates(tree: Mapping[str, Any], path: str, value: Any, issues: list[Issue]) -> None:
    """Scales the rates of the plan so that the highest is `value`."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not value > 0:
        message = f"expected a number above 0, got {json.dumps(value, ensure_ascii=False)}."
        issues.append(Issue(path, message))
        return
    plan = tree["plan"] if isinstance(tree["plan"], list) else []
    held = [(item, field) for item in plan if isinstance(item, dict) for field in _RATE_FIELDS]
    rates = [(item, field) for item, field in held if isinstance(item.get(field), (int, float))]
    highest = max((item[field] for item, field in rates), default=0)
    for item, field in rates:
        rate = item[field]
        item[field] = value if rate == highest else rate * (value / highest)


def _placed(issue: Issue, at: Sequence[Values], members: Sequence[Values]) -> Issue:
    """The issue with the values that the members that have it share, unless all have it."""
    if not at or len(at) == len(members):
        return issue
    shared = {
        path: value for path, value in at[0].items() if all(each[path] == value for each in at)
    }
    others = "" if shared or len(at) == 1 else f", and {len(at) - 1} more"
    where = f"In members with {values_text(shared or at[0])}{others}."
    return Issue(issue.path, f"{issue.message} {where}")
