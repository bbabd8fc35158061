"""The model of a run: loaded or given, with the task's head and the method's adapter."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import keras

from tunekit.errors import Issue, ModelError, RecipeError
from tunekit.methods.spec import LoRA, Plain, is_adapter
from tunekit.models import catalogue
from tunekit.models.backbone import Backbone
from tunekit.models.loading import load_model
from tunekit.models.masked_head import with_masked_head
from tunekit.models.model import Model
from tunekit.models.spec import HeadSpec
from tunekit.models.trainable import put
from tunekit.recipe import Recipe
from tunekit.tasks.image_classification import ImageClassification
from tunekit.tasks.language_modelling import LanguageModelling
from tunekit.tasks.masked_lm import MaskedLM
from tunekit.tasks.registry import Task


@contextmanager
def ready_model(recipe: Recipe, given: Model | keras.Model | None, task: Task) -> Iterator[Model]:
    """Yields the model with a head for the task; a given `Model` is put back on an error.

    Raises:
        RecipeError: only a head is to train, and the task has none.
        ModelError: the model is not of the task's kind, or a given one is not as the recipe says.
    """
    _check_method(recipe, task)
    if not isinstance(given, Model):
        yield _loaded(recipe, given, task)
        return
    check_given(recipe, given)
    _check_kind(given.backbone, task)
    with given.restored_on_error():
        acting = [adapter.spec for adapter, _ in given.adapters.acting]
        if is_adapter(recipe.method) and acting != [recipe.method]:
            given.set_adapter([])  # It keeps the head that it has; the new one comes for another.
        _put_head(recipe, given, task)
        yield given


def _loaded(recipe: Recipe, given: keras.Model | None, task: Task) -> Model:
    backbone = recipe.backbone
    model = load_model(
        backbone.name if given is None else given,
        image_size=backbone.image_size,
        labels=task.label_names,
        head=_head(recipe.head, task),
        dtype=backbone.dtype,
        pretrained=backbone.pretrained,
        blocks=backbone.blocks,
        seed=recipe.seed,
    )
    return _for_task(model, task)


def model_on(backbone: Backbone, recipe: Recipe, task: Task) -> Model:
    """Returns the model of a run on a backbone that is loaded already; without adapters.

    Raises: as `ready_model` does.
    """
    _check_method(recipe, task)
    head = _head(recipe.head, task)
    return _for_task(Model(backbone, task.label_names, head, seed=recipe.seed), task)


def _for_task(model: Model, task: Task) -> Model:
    _check_kind(model.backbone, task)
    _put_language_head(model, task)
    model.multi_label = task.multi_label
    return model


def _put_head(recipe: Recipe, model: Model, task: Task) -> None:
    """The model has a head for the task's labels, the one that it had where that will do."""
    if not task.label_names:
        if model.labels:
            raise ModelError(
                f"the model given has a head for the labels {', '.join(model.labels[:5])}…, and "
                "this task goes without. Load it anew with tunekit.load_model(...)."
            )
        _put_language_head(model, task)
        return
    asked = recipe.head if recipe.head != HeadSpec() else None
    if model.backbone.takes == "tokens" and model.head_spec.pooling == "none":
        asked = asked or HeadSpec()  # The head that it has may be of tokens.
    asked = _head(asked or HeadSpec(), task) if asked or _stands_on(task) == "token" else None
    same_head = asked is None or asked == model.head_spec
    if model.labels != task.label_names or not same_head:
        model.replace_head(task.label_names, asked, seed=recipe.seed, multi_label=task.multi_label)
    model.multi_label = task.multi_label


def _put_language_head(model: Model, task: Task) -> None:
    """The model has a head for hidden tokens, or gives hidden states, where the task needs that."""
    own = model.backbone.language_head
    wanted = own
    if isinstance(task, MaskedLM):
        wanted = with_masked_head(model.backbone).language_head
    elif _stands_on(task) == "none":
        wanted = None
    if wanted is not own:
        model.take_language_head(wanted)


def _stands_on(task: Task) -> str:
    return "text" if isinstance(task, ImageClassification) else task.stands_on


def _head(spec: HeadSpec, task: Task) -> HeadSpec:
    """The head that a recipe asks for, of each token where the task is of tokens."""
    if not isinstance(task, ImageClassification) and task.stands_on == "text":
        if spec.pooling == "none":
            raise ModelError(
                "head.pooling: 'none' gives logits for each token, and this task asks for those of "
                "a whole text; leave it at 'auto', or choose 'avg'."
            )
    if _stands_on(task) != "token":
        return spec
    if spec.pooling not in ("auto", "none"):
        raise ModelError(
            f"head.pooling: {spec.pooling!r} gives one vector a text, and this task gives labels "
            "to tokens; leave it at 'auto'."
        )
    return replace(spec, pooling="none")


def _check_method(recipe: Recipe, task: Task) -> None:
    if recipe.method == Plain("head") and not task.label_names and not isinstance(task, MaskedLM):
        raise RecipeError(
            [
                Issue(
                    "method",
                    "'head' trains a head alone, and this task has none of its own; "
                    "choose lora, or full.",
                )
            ]
        )


def _check_kind(backbone: Backbone, task: Task) -> None:
    wanted = "images" if isinstance(task, ImageClassification) else "tokens"
    name = f"'{backbone.source}' takes {backbone.takes}"
    if backbone.takes != wanted:
        kind = "images" if wanted == "images" else "texts"
        raise ModelError(
            f"{name}, and the data are {kind}: choose a model of {kind}, or name the task (task=) "
            "if the data were taken for something else."
        )
    if wanted == "tokens" and backbone.tokenizer is None:
        if backbone.source in catalogue.names():
            raise ModelError(
                f"{name}, and the catalogue has no tokenizers: to train it from scratch on texts, "
                "name a folder with its config.json and a tokenizer.json, and pretrained: false."
            )
        raise ModelError(
            f"'{backbone.source}' came without a tokenizer that can be read; expected a "
            "tokenizer.json beside its weights. Copy the one of its own model there."
        )
    if isinstance(task, LanguageModelling) and backbone.features != "decoder_states":
        raise ModelError(
            f"task {task.name}: expected a causal language model, and '{backbone.source}' is an "
            "encoder, which reads a text from both sides; choose a decoder such as SmolLM2, or "
            "for plain text task: masked_lm."
        )
    if isinstance(task, LanguageModelling) and backbone.language_head is None:
        raise ModelError(
            f"task {task.name}: '{backbone.source}' came without its language head, which gives "
            "the next token; load the whole causal language model."
        )


def put_method(recipe: Recipe, model: Model, inputs: Callable[[], Iterator[Any]]) -> None:
    """The model has the recipe's adapter, and then a quantised backbone, where they are asked.

    Args:
        recipe: says which.
        model: with its head.
        inputs: gives batches of what the model takes, for a method that begins with the data.
    """
    method, quantize = recipe.method, recipe.backbone.quantize
    needs_data = isinstance(method, LoRA) and method.init == "eva"
    put(
        method,
        model,
        seed=recipe.seed,
        inputs=inputs() if needs_data else None,
        quantize=quantize,
    )
    if quantize is not None and model.quantization is None:
        model.quantize(quantize)


def check_given(recipe: Recipe, model: Model) -> None:
    """Refuses what only the loading of a model can do."""
    wanted = recipe.backbone.image_size
    wanted = (wanted, wanted) if isinstance(wanted, int) else wanted
    dtype = model.backbone.keras.dtype_policy.name
    if wanted is not None:
        size = model.preprocessing.image_size_px
        if tuple(wanted) != tuple(size):
            raise ModelError(
                f"image_size: expected {size}, that of the model given, got {tuple(wanted)}. Load "
                f"it with tunekit.load_model(..., image_size={wanted})."
            )
    if recipe.backbone.blocks is not None:
        raise ModelError(
            f"blocks: {recipe.backbone.blocks} of a model that is already made cannot be kept. "
            f"Load it with tunekit.load_model(..., blocks={recipe.backbone.blocks})."
        )
    if recipe.backbone.quantize not in (None, model.quantization):
        mode = recipe.backbone.quantize
        raise ModelError(
            f"quantize: expected {model.quantization!r}, that of the model given, got {mode!r}, "
            f"which would change it for good. Call model.quantize({mode!r}) first, or load it with "
            f"tunekit.load_model(..., quantize={mode!r})."
        )
    if recipe.backbone.dtype not in ("float32", dtype):
        raise ModelError(
            f"precision: expected {dtype!r}, that of the model given, got "
            f"{recipe.backbone.dtype!r}. Load it with tunekit.load_model(..., "
            f"dtype={recipe.backbone.dtype!r})."
        )
