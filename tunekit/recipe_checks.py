"""What no recipe can say: values that are right alone and impossible together."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields, is_dataclass
from typing import TYPE_CHECKING, Any

from tunekit.errors import Issue
from tunekit.methods.spec import (
    LoRA,
    Plain,
    PrefixTuning,
    PromptTuning,
    refusal,
    refusal_of_builder,
)
from tunekit.models.selection import syntax_issues
from tunekit.plans.builders_rates import Discriminative, LayerDecay
from tunekit.plans.phase import Phase
from tunekit.recipe_issues import Keys, dotted
from tunekit.tasks.spec import ClassificationSpec

if TYPE_CHECKING:
    from tunekit.recipe import Recipe


@dataclass(frozen=True)
class Contradiction:
    """An impossible combination, and the parts of the recipe that it takes to be right."""

    issue: Issue
    reads: tuple[Keys, ...]


def contradictions(recipe: Recipe) -> Iterator[Contradiction]:
    """Yields what `recipe` says that cannot be, each value being right by itself."""
    for section in type(recipe).model_fields:
        yield from _within(getattr(recipe, section), (section,))
    yield from _of_train(recipe)
    yield from _of_first_schedule(recipe)
    yield from _of_class_weights(recipe)
    yield from _of_quantize(recipe)
    yield from _of_packing(recipe)
    yield from _of_cache(recipe)


def _within(value: Any, keys: Keys) -> Iterator[Contradiction]:
    """Yields what each spec finds in itself."""
    if isinstance(value, tuple):
        for index, item in enumerate(value):
            yield from _within(item, (*keys, index))
    if not is_dataclass(value):
        return
    find = getattr(value, "issues", tuple)
    for path, message in find():
        yield Contradiction(Issue(f"{dotted(keys)}.{path}", message), (keys,))
    for field in fields(value):
        yield from _within(getattr(value, field.name), (*keys, field.name))


def _of_train(recipe: Recipe) -> Iterator[Contradiction]:
    for index, item in enumerate(recipe.plan):
        if isinstance(item, Phase):
            keys = ("plan", index, "multipliers")
            for message in syntax_issues(list(item.multipliers)):
                yield Contradiction(Issue(dotted(keys), message), (keys,))
        if not isinstance(item, Phase | LayerDecay | Discriminative):
            keys = ("plan", index, "build")
            if message := refusal_of_builder(recipe.method, item.build):
                yield Contradiction(Issue(dotted(keys), message), (keys, ("method",)))
        elif item.train is not None:
            yield from _of_selectors(recipe, item.train, ("plan", index, "train"))


def _of_selectors(
    recipe: Recipe, train: str | tuple[str, ...], keys: Keys
) -> Iterator[Contradiction]:
    selectors = (train,) if isinstance(train, str) else train
    syntax = syntax_issues(selectors)
    for message in syntax:
        yield Contradiction(Issue(dotted(keys), message), (keys,))
    if not syntax and (message := refusal(recipe.method, selectors)):
        yield Contradiction(Issue(dotted(keys), message), (keys, ("method",)))


def _of_first_schedule(recipe: Recipe) -> Iterator[Contradiction]:
    first = recipe.plan[0]
    if isinstance(first, Phase) and first.schedule == "continue":
        message = "no phase comes before it to go on with; choose a course such as cosine."
        keys = ("plan", 0, "schedule")
        yield Contradiction(Issue(dotted(keys), message), (keys,))


def _of_quantize(recipe: Recipe) -> Iterator[Contradiction]:
    mode = recipe.backbone.quantize
    if mode is not None and recipe.method == Plain("full"):
        message = (
            f"kernels packed as {mode} cannot train, and method 'full' trains them; set method: "
            "lora, or leave quantize out."
        )
        yield Contradiction(Issue("backbone.quantize", message), (("backbone",), ("method",)))
    if isinstance(recipe.method, LoRA) and recipe.method.init == "loftq" and mode is None:
        message = (
            "'loftq' begins with what quantisation takes away; set backbone.quantize to nf4, int4 "
            "or int8, or leave init out."
        )
        yield Contradiction(Issue("method.init", message), (("backbone",), ("method",)))


def _of_packing(recipe: Recipe) -> Iterator[Contradiction]:
    packs = [(("batch",), recipe.batch.packing)]
    packs += [
        (("plan", index, "batch"), item.batch.packing)
        for index, item in enumerate(recipe.plan)
        if isinstance(item, Phase) and item.batch is not None
    ]
    for keys, packing in packs:
        if packing and isinstance(recipe.method, PromptTuning | PrefixTuning):
            message = (
                f"texts that share a row cannot each have the {recipe.method.length} learned "
                "positions of the method; set it to false, or choose a method such as lora."
            )
            yield Contradiction(Issue(f"{dotted(keys)}.packing", message), (keys, ("method",)))


def _of_cache(recipe: Recipe) -> Iterator[Contradiction]:
    spec = recipe.cache
    augments = [getattr(item, "augment", None) or recipe.augment for item in recipe.plan]
    if spec.store in ("auto", "off") or not all(a.mixes or a.varies for a in augments):
        return
    keys: tuple[Keys, ...] = (("cache", "store"), ("augment",), ("plan",))
    if all(augment.mixes for augment in augments):
        message = (
            f"{spec.store!r} keeps nothing: images are mixed within every batch anew; leave out "
            "augment.mixup and augment.cutmix, or set cache to off."
        )
        yield Contradiction(Issue("cache.store", message), keys)
    elif not spec.views:
        message = (
            f"{spec.store!r} keeps nothing: images are augmented anew in every pass; set "
            "cache.views to the number of versions to keep of each, or leave the augmentation out."
        )
        yield Contradiction(Issue("cache.store", message), keys)


def _of_class_weights(recipe: Recipe) -> Iterator[Contradiction]:
    if not isinstance(recipe.task, ClassificationSpec):
        return
    weights, labels = recipe.task.class_weights, recipe.data.labels
    if isinstance(weights, tuple) and labels is not None and len(weights) != len(labels):
        message = (
            f"expected one weight per label of data.labels, {len(labels)}; got {len(weights)}."
        )
        reads: tuple[Keys, ...] = (("task", "class_weights"), ("data", "labels"))
        yield Contradiction(Issue("task.class_weights", message), reads)
