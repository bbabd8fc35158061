"""A recipe in shapes only: model, phases and feeds as a run has them, without weights or data.

Nothing is fetched that has weights in it, no array of a weight is made, and what is not at hand
(data, a tokenizer) is stood in for. The rest is the code that runs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path

from tunekit.data.feature_store import FeatureStore
from tunekit.errors import Issue, RecipeError
from tunekit.feeds import Feeder
from tunekit.models.forward import Forward
from tunekit.models.initialisation import shapes_only
from tunekit.models.merging import make_room_for_packed
from tunekit.models.model import Model
from tunekit.models.trainable import put
from tunekit.phases import phases_of
from tunekit.planning.abstract_backbone import abstract_backbone
from tunekit.planning.abstract_data import Examples, examples_of
from tunekit.planning.block_likeness import alike
from tunekit.plans.phase import Phase
from tunekit.plans.resolve import ResolvedPhase
from tunekit.ready_model import model_on
from tunekit.recipe import Recipe
from tunekit.recipe_keywords import IN_MEMORY
from tunekit.tasks.embedding import EmbeddingTask
from tunekit.tasks.image_classification import ImageClassification
from tunekit.tasks.registry import Task
from tunekit.text_feeds import TextFeeder
from tunekit.training.feed import Feed
from tunekit.training.layout import Layout
from tunekit.training.programs import Programs

Labels = int | Sequence[str]
"""Names of labels, or how many there are."""


@dataclass(frozen=True, eq=False)
class Planned:
    """A run in shapes only: what it would compute, without what it would compute with."""

    recipe: Recipe
    """As it was given."""
    model: Model
    """With head and adapters; its variables have shapes and no values."""
    task: Task
    phases: tuple[ResolvedPhase, ...]
    feeds: tuple[Feed, ...]
    """Of each phase; their columns are those of a batch, and there is nothing to open."""
    forward: Forward
    """The pass of the whole model."""
    examples: int
    """Of the training data."""
    notes: tuple[str, ...]
    """What was assumed or stood in for, a sentence each."""
    _whole: Callable[[], Planned] | None = field(repr=False)
    """Plans all blocks; `None` where they are all here."""

    @property
    def steps_per_epoch(self) -> tuple[int, ...]:
        """Optimizer steps of one pass over the training data, in each phase."""
        return tuple(feed.steps_per_epoch for feed in self.feeds)

    @property
    def blocks(self) -> int:
        """Blocks that are built here."""
        return sum(group.kind == "block" for group in self.model.groups())

    @cached_property
    def whole_blocks(self) -> int:
        """Blocks of the network that the recipe names."""
        return self.blocks if self._whole is None else self._whole().blocks

    @cached_property
    def uniform_blocks(self) -> bool:
        """Whether every phase does the same to all blocks of the whole, and they are of one shape.

        Only then can what fewer blocks need be carried on to all of them.
        """
        if self._whole is not None:
            return self._whole().uniform_blocks
        return alike(self.model, self.phases)

    def programs(self, layout: Layout | None = None) -> Programs:
        """Returns the steps of the phases, to be lowered.

        Args:
            layout: how the run lies on several devices; `None` is one.
        """
        return Programs(self.forward, self.phases, self.feeds, self.recipe.optimizer, layout)


def planned(
    recipe: Recipe | str | Path,
    *,
    examples: int | None = None,
    labels: Labels | None = None,
    blocks: int | None = None,
) -> Planned:
    """Returns a recipe in shapes only: its model, phases and feeds.

    Args:
        recipe: or the path, or shipped name, of one.
        examples: of the training data; `None` opens the data that the recipe names, for their
            number, labels and columns, or assumes a number where it names none.
        labels: of the task, or how many; `None` is what the data or the recipe say, or assumed.
        blocks: how many blocks to build, from the first; `None` builds all.

    Raises:
        RecipeError: the recipe is of a model in memory, or a number is below 1.
        SelectionError: a selector selects nothing in this model.
        DataError: the data that the recipe names cannot be opened.
        ModelError: nothing says how the model is built, or it does not fit the task.

    Example:
        >>> plan = planned(Recipe.load("llm/sft_lora", ["backbone=llama3_8b"]))
        >>> plan.programs().lowered(0).cost_analysis()["flops"] > 1e12
        True
    """
    recipe = recipe if isinstance(recipe, Recipe) else Recipe.load(recipe)
    _check(recipe, examples, labels, blocks)
    notes: list[str] = []
    with shapes_only():
        backbone = abstract_backbone(recipe, blocks, notes)
        found = examples_of(recipe, backbone, examples, labels, notes)
        model = model_on(backbone, recipe, found.task)
        put(recipe.method, model, seed=recipe.seed)
        if recipe.backbone.quantize is not None:
            make_room_for_packed(model, recipe.backbone.quantize)
        task, feeder, steps = _feeder(recipe, model, found)
        phases = phases_of(recipe, model, steps)
        feeds = [replace(feeder.feed(p), steps_per_epoch=steps(p.spec)) for p in phases]
    whole = partial(planned, recipe, examples=examples, labels=labels)
    return Planned(
        recipe,
        model,
        task,
        phases,
        tuple(feeds),
        feeder.forward,
        found.count,
        tuple(notes),
        whole if blocks is not None else None,
    )


def _feeder(
    recipe: Recipe, model: Model, found: Examples
) -> tuple[Task, Feeder | TextFeeder, Callable[[Phase], int]]:
    """What makes the feeds, and the steps of an epoch of all examples, few of which it may have."""
    task = found.task
    if isinstance(task, ImageClassification):
        images = Feeder(recipe, model, task, found.splits, FeatureStore(recipe.cache))
        return task, images, images.steps_per_epoch
    if isinstance(task, EmbeddingTask):
        task = task.for_backbone(model.backbone)
    texts = TextFeeder.of(recipe, model, task, found.splits)
    few = len(found.splits.train)

    def steps(phase: Phase) -> int:
        return math.ceil(texts.steps_per_epoch(phase) * found.count / few)

    return task, texts, steps


def _check(recipe: Recipe, examples: int | None, labels: Labels | None, blocks: int | None) -> None:
    issues = []
    if recipe.backbone.name == IN_MEMORY:
        message = "the recipe was made for a model in memory; name one that can be built."
        issues.append(Issue("backbone.name", message))
    numbers = {"examples": (examples, 1), "blocks": (blocks, 1)}
    if labels is not None:
        numbers["labels"] = (labels if isinstance(labels, int) else len(labels), 2)
    for name, (number, least) in numbers.items():
        if number is not None and number < least:
            issues.append(Issue(name, f"expected at least {least}, got {number}."))
    if issues:
        raise RecipeError(issues)
