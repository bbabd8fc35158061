"""The recipe: everything a run is made of, as one frozen tree, one to one with YAML."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Self, Union, get_args

from annotated_types import Ge, MinLen
from pydantic import BaseModel, ConfigDict, Discriminator, Tag, ValidationError

from tunekit import recipe_text
from tunekit.data.spec import AugmentSpec, BatchSpec, CacheSpec, DataSpec
from tunekit.errors import Issue, RecipeError
from tunekit.methods.spec import (
    METHOD_NAMES,
    Method,
    Plain,
    name_mistake,
    shortest,
    spelt_out,
)
from tunekit.models.spec import BackboneSpec, HeadSpec
from tunekit.plans.builders import Builder
from tunekit.plans.optimizer import OptimizerSpec
from tunekit.plans.phase import Phase
from tunekit.recipe_checks import contradictions
from tunekit.recipe_issues import Keys, build_of, dotted, plain, translate
from tunekit.recipe_keywords import as_keywords, to_tree
from tunekit.shipped import recipe_path
from tunekit.tasks import spec as task_specs
from tunekit.tasks.spec import TASK_NAMES, ClassificationSpec, TaskSpec
from tunekit.training.spec import RuntimeSpec

if TYPE_CHECKING:
    PlanItem = Phase | Builder
    AnyMethod = Method
    AnyTask = TaskSpec
else:  # pydantic is told which of them an item is: its mistakes are then those of that one alone
    _TAGGED = tuple(Annotated[item, Tag(build_of(item))] for item in (Phase, *get_args(Builder)))
    PlanItem = Annotated[Union[_TAGGED], Discriminator(build_of)]  # noqa: UP007
    AnyMethod = Annotated[Method, Discriminator("name")]
    AnyTask = Annotated[TaskSpec, Discriminator("name")]


class Recipe(BaseModel):
    """Everything a run is made of.

    Example:
        >>> recipe = Recipe(method="head", plan=(Phase(epochs=3),))
        >>> recipe.batch.size
        32

    Raises:
        RecipeError: with every mistake found in the values.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    seed: Annotated[int, Ge(0)] = 0
    """Where all randomness of a run comes from."""
    backbone: BackboneSpec = BackboneSpec()
    """The pretrained body; a word alone is its name."""
    data: DataSpec = DataSpec()
    """Where the examples are and how they are split."""
    task: AnyTask = ClassificationSpec()
    """What is asked of the model; a word alone is a task's name."""
    head: HeadSpec = HeadSpec()
    """What is put on the backbone."""
    augment: AugmentSpec = AugmentSpec()
    """How training images are varied."""
    method: AnyMethod = Plain()
    """What is put on the network, and what may train; a word alone is a method's name."""
    plan: Annotated[tuple[PlanItem, ...], MinLen(1)]
    """The phases of training, one after the other; or builders, which become phases."""
    optimizer: OptimizerSpec = OptimizerSpec()
    """How gradients become steps."""
    batch: BatchSpec = BatchSpec()
    """How examples become batches."""
    cache: CacheSpec = CacheSpec()
    """Where the outputs of the frozen part are kept; a word alone is its store."""
    runtime: RuntimeSpec = RuntimeSpec()
    """Where a run writes, and how often it looks at itself."""

    if not TYPE_CHECKING:  # a type checker knows the fields better than **values

        def __init__(self, **values: Any) -> None:
            """Checks the values of the fields, all of them at once."""
            _fill(self, values, [])

    @classmethod
    def load(cls, source: str | Path, overrides: Iterable[str] = ()) -> Self:
        """Returns the recipe of a YAML file, or of a shipped recipe by name.

        Args:
            source: a path, or a name that ``tunekit ls`` lists (``vision/linear_probe``).
            overrides: changes in the form ``plan.0.epochs=2``; values are YAML.

        Raises:
            RecipeError: with every mistake found in the file and in the overrides.
        """
        path = recipe_path(source)
        issues: list[Issue] = []
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise RecipeError([Issue("", f"{path} cannot be read: {error}.")]) from error
        tree = recipe_text.parse(text, issues, where=str(path))
        if tree is None and issues:
            raise RecipeError(issues)
        if not isinstance(tree, dict | None):
            message = f"{path}: expected a mapping of fields, got a {type(tree).__name__}."
            raise RecipeError([Issue("", message)])
        tree = tree or {}
        for text in overrides:
            recipe_text.override(tree, text, issues)
        return cls._from_tree(tree, issues)

    @classmethod
    def from_keywords(cls, **keywords: Any) -> Self:
        """Returns the recipe that `tunekit.finetune` runs for the same keywords.

        Raises:
            RecipeError: with every mistake found in them.
        """
        issues: list[Issue] = []
        tree = to_tree(keywords, issues)
        try:
            return cls._from_tree(tree, issues)
        except RecipeError as error:
            raise RecipeError([as_keywords(issue, keywords) for issue in error.issues]) from None

    @classmethod
    def _from_tree(cls, tree: dict[str, Any], issues: list[Issue]) -> Self:
        recipe = cls.__new__(cls)
        _fill(recipe, tree, issues)
        return recipe

    @classmethod
    def json_schema(cls) -> dict[str, Any]:
        """Returns the JSON schema of recipes, by which editors complete and check them."""
        head = {"$schema": "https://json-schema.org/draft/2020-12/schema"}
        schema: dict[str, Any] = head | cls.model_json_schema()
        cache = schema["properties"]["cache"]
        store = schema["$defs"]["CacheSpec"]["properties"]["store"]
        cache["anyOf"] = [{"$ref": cache.pop("$ref")}, {"enum": store["enum"]}]
        backbone = schema["properties"]["backbone"]
        backbone["anyOf"] = [{"$ref": backbone.pop("$ref")}, {"type": "string"}]
        for section, names in (("method", METHOD_NAMES), ("task", TASK_NAMES)):
            named = schema["properties"][section]
            alternatives = {key: named.pop(key) for key in ("oneOf", "discriminator")}
            named["anyOf"] = [alternatives, {"enum": list(names)}]
        return schema

    def to_yaml(self) -> str:
        """Returns the recipe with every field spelled out."""
        tree = self.model_dump(mode="json")
        # What an item is comes before what it holds.
        fields = [
            sorted(item.items(), key=lambda pair: pair[0] != "build") for item in tree["plan"]
        ]
        tree["plan"] = [dict(pairs) for pairs in fields]
        if isinstance(method := shortest(self.method), str):
            tree["method"] = method
        return recipe_text.dump(tree)

    def save(self, path: str | Path) -> None:
        """Writes the recipe as YAML."""
        Path(path).write_text(self.to_yaml(), encoding="utf-8")


def _fill(recipe: Recipe, tree: dict[str, Any], issues: list[Issue]) -> None:
    """Gives `recipe` the values of `tree`.

    Raises:
        RecipeError: with the `issues` found before and all that is wrong with `tree`.
    """
    tree = plain(tree, issues)
    if isinstance(tree.get("cache"), (str, bool)):
        tree["cache"] = {"store": tree["cache"]}
    if isinstance(tree.get("backbone"), str):
        tree["backbone"] = {"name": tree["backbone"]}
    if "method" in tree:
        tree["method"] = spelt_out(tree["method"])
        if message := name_mistake(tree["method"]):
            issues.append(Issue("method", message))
            del tree["method"]
    if "task" in tree:
        tree["task"] = task_specs.spelt_out(tree["task"])
        if message := task_specs.name_mistake(tree["task"]):
            issues.append(Issue("task", message))
            del tree["task"]
    mistakes = _validate(recipe, tree)
    if mistakes:
        # What was right goes on to the checks of combinations, beside defaults for the rest.
        _validate(recipe, _mended(tree, [keys for keys, _ in mistakes]))
    broken = [keys for keys, _ in mistakes]
    found = [Issue(dotted(keys), message) for keys, message in mistakes]
    for contradiction in contradictions(recipe):
        if not any(_same_spec(keys, read) for keys in broken for read in contradiction.reads):
            found.append(contradiction.issue)
    known = {issue.path for issue in issues}
    issues += [issue for issue in found if issue.path not in known]
    if issues:
        order = list(Recipe.model_fields)
        section = [re.split(r"[.\[]", issue.path)[0] for issue in issues]
        rank = [order.index(name) if name in order else -1 for name in section]
        raise RecipeError([issues[i] for i in sorted(range(len(issues)), key=rank.__getitem__)])


def _validate(recipe: Recipe, tree: dict[str, Any]) -> list[tuple[Keys, str]]:
    """Gives `recipe` the values of `tree`; where they are mistaken, returns how instead."""
    try:
        # JSON's strict rules: a list is a tuple, but "3" is no number and 1 is not true.
        recipe.__pydantic_validator__.validate_json(
            json.dumps(tree), strict=True, self_instance=recipe
        )
    except ValidationError as error:
        return translate(error.errors(include_url=False), tree, recipe.json_schema())
    return []


def _mended(tree: dict[str, Any], mistakes: Sequence[Keys]) -> dict[str, Any]:
    """Returns `tree` without the mistaken fields, and with a plan."""
    mended = copy.deepcopy(tree)
    for keys in mistakes:
        if keys[0] == "plan" and keys[1:]:
            # What else is wrong with a mistaken item cannot be told from the mistake.
            mended["plan"][keys[1]] = {"epochs": 1}
            continue
        *way, last = keys
        while isinstance(last, int):
            *way, last = way
        here: Any = mended
        for key in way:
            here = here[key] if isinstance(key, int) else here.get(key, {})
        here.pop(last, None)
    return {"plan": [{"epochs": 1}]} | mended


def _same_spec(one: Keys, other: Keys) -> bool:
    """Returns whether both lie in one section, or in one phase of the plan."""
    length = min(len(one), len(other), 2 if one[0] == "plan" else 1)
    return one[:length] == other[:length]
