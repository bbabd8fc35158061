"""The examples of a recipe and its task, whether or not there are any data at hand."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

from tunekit.asked import KIND_OF, open_task
from tunekit.data.examples import Splits
from tunekit.data.spec import BatchSpec
from tunekit.data.text_kinds import TextKind
from tunekit.models.backbone import Backbone
from tunekit.planning.stand_ins import like, stand_in_images, stand_in_texts
from tunekit.recipe import Recipe
from tunekit.tasks.image_classification import ImageClassification
from tunekit.tasks.prompt_template import FIELDS, PromptTemplate
from tunekit.tasks.registry import TEXT_TASKS, Task
from tunekit.tasks.spec import (
    ClassificationSpec,
    EmbeddingSpec,
    LanguageModellingSpec,
    TaskSpec,
    named_task,
)
from tunekit.text_answers import longest_of

ASSUMED_EXAMPLES = 10_000
"""Of the training data, where nothing says how many there are."""
_LABELS = 2
_MOST_STAND_INS = 4096


@dataclass(frozen=True, eq=False)
class Examples:
    """What is trained on, as far as it is known."""

    splits: Splits
    """The data; or stand-ins, of texts a few that stand for all."""
    task: Task
    """Bound to them."""
    count: int
    """Training examples."""


def examples_of(
    recipe: Recipe,
    backbone: Backbone,
    examples: int | None,
    labels: int | Sequence[str] | None,
    notes: list[str],
) -> Examples:
    """Returns the data that a recipe names, or stand-ins for them, and the task bound to them.

    Args:
        recipe: whose data are opened where they are named and `examples` is not given.
        backbone: with a tokenizer, its own or one that stands in.
        examples: of the training data.
        labels: names, or how many.
        notes: gains what is assumed.

    Raises:
        DataError: the data cannot be opened.
        RecipeError: the task's options are not of the task that the data are for.
    """
    if examples is None and recipe.data.path is not None:
        splits, task = open_task(recipe)
        count = len(splits.train)
        if isinstance(task, ImageClassification) or not backbone.without_tokenizer:
            return Examples(splits, task, count)
        return Examples(_like(splits, recipe, backbone, notes), task, count)
    if examples is None:
        notes.append(f"{ASSUMED_EXAMPLES:,} training examples are assumed; nothing says how many.")
    count = ASSUMED_EXAMPLES if examples is None else examples
    spec = _task_spec(recipe, backbone, notes)
    names = _label_names(recipe, labels)
    several = isinstance(spec, ClassificationSpec) and spec.multi_label is True
    if isinstance(spec, ClassificationSpec) and not names:
        names = _numbered(_LABELS)
        notes.append(f"{_LABELS} labels are assumed; nothing names any.")
    if isinstance(spec, ClassificationSpec) and spec.name == "image_classification":
        # A backbone of texts is refused once the task is bound.
        size = backbone.preprocessing.image_size_px if backbone.preprocessing else (1, 1)
        images: Any = stand_in_images(size, count, names, multi_label=several)
        task = ImageClassification.bind(spec, images, recipe.augment)
        return Examples(Splits(images), task, count)
    words = _words(recipe, backbone, notes)
    texts = stand_in_texts(
        _kind(spec),
        words,
        _few(recipe, len(names)),
        names,
        multi_label=several,
        columns=_template_columns(spec),
        score=1.0 if isinstance(spec, EmbeddingSpec) and spec.contrast == "cosine" else None,
    )
    splits = Splits(cast(Any, texts))
    return Examples(splits, TEXT_TASKS[spec.name].bind(spec, splits), count)


def _like(splits: Splits, recipe: Recipe, backbone: Backbone, notes: list[str]) -> Splits:
    """Stand-ins for texts that the tokenizer at hand cannot read, with the same columns."""
    few = _few(recipe, len(splits.train.label_names))
    return Splits(cast(Any, like(splits.train, _words(recipe, backbone, notes), few)))


def _task_spec(recipe: Recipe, backbone: Backbone, notes: list[str]) -> TaskSpec:
    """The recipe's task; "auto", which the data would decide, by what the backbone is."""
    if recipe.task.name != "auto":
        return recipe.task
    if backbone.takes == "images":
        name = "image_classification"
    elif backbone.features == "decoder_states" and backbone.language_head is not None:
        name = "sft"
    else:
        name = "text_classification"
    notes.append(f"task {name} is assumed: task is auto, and there are no data to tell.")
    if isinstance(recipe.task, ClassificationSpec) and name.endswith("classification"):
        return replace(recipe.task, name=cast(Any, name))
    return named_task(name)


def _kind(spec: TaskSpec) -> TextKind:
    """What the examples are; of pairs drawn by label, labelled texts."""
    if isinstance(spec, EmbeddingSpec):
        return "labelled" if spec.contrast == "labels" else "pairs"
    return KIND_OF[spec.name]


def _label_names(recipe: Recipe, labels: int | Sequence[str] | None) -> tuple[str, ...]:
    if isinstance(labels, int):
        return _numbered(labels)
    return tuple(labels or recipe.data.labels or ())


def _numbered(count: int) -> tuple[str, ...]:
    return tuple(f"label {number}" for number in range(1, count + 1))


def _words(recipe: Recipe, backbone: Backbone, notes: list[str]) -> int:
    """As many as the longest text of any phase has tokens."""
    asked = [recipe.batch, *(batch for batch in _own_batches(recipe))]
    longest = [longest_of(b, backbone.max_length_tokens, backbone.source) for b in asked]
    notes.append(f"every text is taken to be {max(longest):,} tokens long, the longest allowed.")
    return max(longest)


def _few(recipe: Recipe, labels: int) -> int:
    """Examples that make whole batches in every phase, and among which each label is."""
    sizes = [batch.size for batch in (recipe.batch, *_own_batches(recipe))]
    common = math.lcm(*sizes)
    common = common if common <= _MOST_STAND_INS else max(sizes)
    return common * math.ceil(max(2, labels) / common)


def _own_batches(recipe: Recipe) -> list[BatchSpec]:
    found = [getattr(item, "batch", None) for item in recipe.plan]
    return [batch for batch in found if batch is not None]


def _template_columns(spec: TaskSpec) -> tuple[str, ...]:
    """Columns of the data that a template has gaps for, beside those of every dialogue."""
    if not isinstance(spec, LanguageModellingSpec) or spec.template is None:
        return ()
    fields = PromptTemplate.parse(spec.template).fields
    return tuple(name for name in fields if name not in FIELDS)
