"""What a recipe asks of its data: the splits, and the task bound to them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from tunekit.data.examples import Splits
from tunekit.data.source import open_data
from tunekit.data.text_kinds import TextKind
from tunekit.data.text_recognition import recognised
from tunekit.data.text_source import open_text
from tunekit.errors import Issue, RecipeError
from tunekit.recipe import Recipe
from tunekit.tasks.image_classification import ImageClassification
from tunekit.tasks.registry import TEXT_TASKS, Task
from tunekit.tasks.spec import ClassificationSpec, EmbeddingSpec, TaskSpec, named_task

_TASK_OF: dict[TextKind | None, str] = {
    None: "image_classification",
    "labelled": "text_classification",
    "number": "text_regression",
    "tagged": "token_classification",
    "answers": "span_qa",
    "pairs": "embedding",
    "dialogue": "sft",
    "plain": "causal_lm",
}
KIND_OF: dict[str, TextKind] = {
    "text_classification": "labelled",
    "text_regression": "number",
    "token_classification": "tagged",
    "span_qa": "answers",
    "masked_lm": "plain",
    "causal_lm": "plain",
    "sft": "dialogue",
}
"""What the examples of a task are, by its name; an embedding's are pairs or labelled."""


def open_task(recipe: Recipe, data: Any = None) -> tuple[Splits, Task]:
    """Returns the data of `recipe`, opened and checked, and the task bound to them.

    Args:
        recipe: whose task "auto" is what the data say.
        data: used in place of the path that the recipe names.

    Raises:
        DataError: everything that is wrong with the data, at once.
        RecipeError: the task's options are not of the task that the data are for.
    """
    given = recipe.data.path if data is None else data
    spec = asked(recipe, given)
    if spec.name == "image_classification":
        splits = open_data(data, recipe.data, seed=recipe.seed)
        assert isinstance(spec, ClassificationSpec)
        return splits, ImageClassification.bind(spec, splits.train, recipe.augment)
    splits = open_text(given, recipe.data, kind_of(spec, given, recipe), seed=recipe.seed)
    return splits, TEXT_TASKS[spec.name].bind(spec, splits)


def asked(recipe: Recipe, data: Any) -> TaskSpec:
    """Returns the recipe's task, "auto" replaced by what the data are for.

    Raises:
        RecipeError: its options are not of that task.
    """
    spec = recipe.task
    if spec.name != "auto":
        return spec
    assert isinstance(spec, ClassificationSpec)
    name = _TASK_OF[_recognised(recipe, data)]
    if name.endswith("_classification") and name != "token_classification":
        return replace(spec, name=name)  # pyright: ignore[reportArgumentType]
    if spec != ClassificationSpec():
        raise RecipeError(
            [
                Issue(
                    "task",
                    f"its options are those of labels, and the data are for {name!r}. Say name: "
                    f"{name} and its own options, or name: text_classification.",
                )
            ]
        )
    return named_task(name)


def kind_of(spec: TaskSpec, data: Any, recipe: Recipe) -> TextKind:
    """Returns what the examples of a task of texts are."""
    if not isinstance(spec, EmbeddingSpec):
        return KIND_OF[spec.name]
    if spec.contrast == "auto":
        return "labelled" if _recognised(recipe, data) == "labelled" else "pairs"
    return "labelled" if spec.contrast == "labels" else "pairs"


def _recognised(recipe: Recipe, data: Any) -> TextKind | None:
    if isinstance(data, Splits):
        return getattr(data.train, "kind", None)
    return recognised(data, recipe.data)


def in_memory(data: Any, validation: Any) -> Any:
    """Returns what of the data is objects and not paths, joined; `None` where all is paths."""
    if validation is None or isinstance(validation, (str, Path, int, float)):
        return None if isinstance(data, (str, Path)) else data
    if isinstance(data, Mapping):
        return {**data, "validation": validation}
    return {"train": data, "validation": validation}
