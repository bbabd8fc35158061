"""The keywords of `tunekit.finetune`, and the field of the recipe that each one is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, get_args

from tunekit.data.spec import AugmentSpec, BatchSpec, CacheSpec, DataSpec
from tunekit.errors import Issue, did_you_mean
from tunekit.methods.spec import METHOD_NAMES, Method, Plain, default_learning_rate, named_method
from tunekit.models.spec import BackboneSpec, HeadSpec
from tunekit.plans.builders import Builder, Discriminative
from tunekit.plans.optimizer import OptimizerSpec
from tunekit.plans.phase import Phase
from tunekit.tasks.spec import TaskSpec
from tunekit.training.spec import RuntimeSpec

IN_MEMORY = "in memory"
"""Name of the backbone in the recipe of a model that came as an object."""

AUGMENTS = {"light": AugmentSpec(horizontal_flip=True, random_resized_crop=(0.5, 1.0))}
"""What `augment` says by a name; light: changes that few kinds of photograph mind."""

DEFAULT_EPOCHS = 5
_OF_TEXTS = (".jsonl", ".json", ".txt", ".conll", ".gguf")
"""Ends of the names of files that hold texts, or models of texts."""

_FIELDS = {
    "model": "backbone.name",
    "data": "data.path",
    "task": "task.name",
    "labels": "data.labels",
    "text": "data.text_column",
    "pair": "data.pair_column",
    "prompt": "data.prompt_column",
    "response": "data.response_column",
    "label": "data.label_column",
    "mix": "data.mix",
    "template": "task.template",
    "method": "method",
    "head": "head.kind",
    "optimizer": "optimizer.name",
    "weight_decay": "optimizer.weight_decay",
    "batch_size": "batch.size",
    "accumulate": "batch.accumulate",
    "max_length": "batch.max_length",
    "packing": "batch.packing",
    "cache": "cache.store",
    "augment": "augment",
    "label_smoothing": "task.label_smoothing",
    "class_weights": "task.class_weights",
    "balanced": "batch.balanced",
    "clip_norm": "optimizer.clip_norm",
    "ema": "optimizer.ema",
    "image_size": "backbone.image_size",
    "blocks": "backbone.blocks",
    "precision": "backbone.dtype",
    "quantize": "backbone.quantize",
    "validation": "data.validation",
    "seed": "seed",
    "out": "runtime.out",
    "resume": "runtime.resume",
    "remat": "runtime.remat",
    "mesh": "runtime.mesh",
    "progress": "runtime.progress",
}
_SPECS = {
    "backbone": BackboneSpec,
    "data": DataSpec,
    "task": TaskSpec,
    "head": HeadSpec,
    "optimizer": OptimizerSpec,
    "augment": AugmentSpec,
    "batch": BatchSpec,
    "cache": CacheSpec,
    "runtime": RuntimeSpec,
}
_PHASE = ("train", "epochs", "learning_rate", "schedule", "warmup", "early_stopping")
_NAMES = (*_FIELDS, *_PHASE, "plan")


def to_tree(keywords: Mapping[str, Any], issues: list[Issue]) -> dict[str, Any]:
    """Returns the fields of the recipe that `keywords` say; mistakes join `issues`.

    `None` and a field's own default say nothing. A spec is a whole section. A model or data that
    are objects in memory have no place in a recipe: the caller holds them.
    """
    for name in keywords:
        if name not in _NAMES:
            hint = did_you_mean(name, _NAMES) or f" It has {', '.join(_NAMES)}."
            issues.append(Issue(name, f"finetune has no such keyword.{hint}"))
    given = {name: value for name, value in keywords.items() if value is not None}
    if isinstance(augment := given.get("augment"), str):
        given["augment"] = AUGMENTS.get(augment)
        if augment not in AUGMENTS:
            names = " or ".join(f"'{name}'" for name in AUGMENTS)
            message = f"expected {names}, or an AugmentSpec; got {augment!r}."
            issues.append(Issue("augment", message + did_you_mean(augment, AUGMENTS)))
            del given["augment"]
    tree: dict[str, Any] = {}
    doors: dict[str, str] = {}
    doors_of: dict[str, str] = {}
    for name, field in _FIELDS.items():
        section = field.partition(".")[0]
        if section in _SPECS and isinstance(given.get(name), _SPECS[section]):
            doors_of[section] = type(given[name]).__name__
            tree[section] = asdict(given.pop(name))
            doors[section] = name
    for name in _FIELDS.keys() & given.keys():
        for field, value in _said(name, given[name]):
            section, _, key = field.partition(".")
            if not key:
                tree[section] = value
            elif value != _default(section, key):
                if section in doors:
                    message = f"{doors[section]} is a whole {doors_of[section]}; say {key} in it."
                    issues.append(Issue(name, message))
                tree.setdefault(section, {})[key] = value
    tree["plan"] = _plan(given, issues)
    return tree


def _default(section: str, key: str) -> Any:
    """What a field is where nothing is said; a task's is that of the first task that has it."""
    specs = get_args(_SPECS[section]) or (_SPECS[section],)
    return next((getattr(spec, key) for spec in specs if hasattr(spec, key)), None)


def _said(name: str, value: Any) -> list[tuple[str, Any]]:
    """Returns the fields that one keyword says, with their values."""
    field = _FIELDS[name]
    if name == "model" and not isinstance(value, (str, Path)):
        return [(field, IN_MEMORY)]
    if name in ("data", "validation") and not isinstance(value, (str, Path)):
        is_share = name == "validation" and isinstance(value, (int, float))
        return [("data.validation_fraction", value)] if is_share else []
    tolist = getattr(value, "tolist", None)  # a NumPy array has no one answer to ==
    return [(field, tolist() if callable(tolist) else value)]


def _plan(given: Mapping[str, Any], issues: list[Issue]) -> Any:
    """Returns the phases of `plan`, or the one phase that the keywords of a phase say."""
    of_phase = {
        name: given[name]
        for name in _PHASE
        if name in given and given[name] != getattr(Phase, name, None)
    }
    if "plan" in given:
        for name in of_phase:
            message = "belongs to a phase, and plan gives the phases; say it in them."
            issues.append(Issue(name, message))
        plan = given["plan"]
        return [plan] if isinstance(plan, (Phase, Builder, Mapping)) else plan
    if isinstance(of_phase.get("learning_rate"), slice):
        return [_spread(of_phase, issues)]
    head_only = of_phase.get("train") in ("head", ["head"])
    method = Plain("head") if head_only else _method(given)
    rate = default_learning_rate(method, of_texts=_is_of_texts(given))
    return [{"epochs": DEFAULT_EPOCHS, "learning_rate": rate} | of_phase]


def _is_of_texts(given: Mapping[str, Any]) -> bool:
    """Whether the keywords alone show that the data are texts."""
    task = given.get("task")
    name = task if isinstance(task, str) else getattr(task, "name", "auto")
    if name != "auto":
        return name != "image_classification"
    files = (str(given.get(key, "")).lower() for key in ("data", "model"))
    return any(file.endswith(_OF_TEXTS) for file in files)


def _method(given: Mapping[str, Any]) -> Method:
    """The method that the keywords say; the default one for a mistake, told of elsewhere."""
    method = given.get("method", "full")
    if isinstance(method, str):
        return named_method(method) if method in METHOD_NAMES else Plain()
    return method if isinstance(method, Method) else Plain()


def _spread(of_phase: dict[str, Any], issues: list[Issue]) -> dict[str, Any]:
    """Returns the builder that ``learning_rate=slice(lo, hi)`` says, with the other keywords."""
    rates = of_phase.pop("learning_rate")
    if rates.stop is None or rates.step is not None:
        message = f"expected a number, slice(lo, hi) or slice(hi), got {rates}."
        issues.append(Issue("learning_rate", message))
        rates = slice(Discriminative.hi)
    found = {"lo": rates.start, "hi": rates.stop, "build": Discriminative.build}
    return {"epochs": DEFAULT_EPOCHS} | found | of_phase


def as_keywords(issue: Issue, keywords: Mapping[str, Any]) -> Issue:
    """Returns `issue` with its place named by the keyword that said it, where one did."""
    for name, field in _FIELDS.items():
        if issue.path == field and name in keywords:
            return Issue(name, issue.message)
    if keywords.get("plan") is None:
        field = issue.path.removeprefix("plan[0].")
        name = {"lo": "learning_rate", "hi": "learning_rate"}.get(field, field)
        if name in _PHASE and field != issue.path:
            return Issue(name, issue.message)
    return issue
