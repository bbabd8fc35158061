"""A recipe run: from a model and data to a trained model and its record."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import keras
import numpy as np

from tunekit.data.features import FeatureStore
from tunekit.data.pipeline import Batches
from tunekit.data.source import Splits, open_data
from tunekit.errors import CheckpointError, Issue, ModelError, RecipeError
from tunekit.evaluation.audit import audit
from tunekit.feeds import Feeder
from tunekit.folder import check_replaceable
from tunekit.methods.spec import LoRA, default_train, is_adapter, rate_factor, trained_parts
from tunekit.models.loading import load_model
from tunekit.models.model import Model
from tunekit.models.spec import HeadSpec
from tunekit.models.trainable import put, resolve_trainable
from tunekit.plans.builders import expand_plan
from tunekit.plans.resolve import ResolvedPhase, resolve_plan
from tunekit.recipe import Recipe
from tunekit.recipe_keywords import IN_MEMORY
from tunekit.report.run import run_report
from tunekit.result import MARKS, MODEL_FILE, RUN_FOLDER, Result
from tunekit.tasks.image_classification import ImageClassification
from tunekit.training.checkpoints import Checkpoints
from tunekit.training.progress import reporter
from tunekit.training.step import Values
from tunekit.training.trainer import Trained, Trainer


def run(recipe: Recipe, *, model: Model | keras.Model | None = None, data: Any = None) -> Result:
    """Returns the result of `recipe`; saved too where the recipe names a folder.

    Args:
        recipe: what to do.
        model: used in place of the one that the recipe names.
        data: used in place of the path that the recipe names.

    Raises:
        RecipeError: the recipe names no data, or stops early without validation data.
        DataError: everything that is wrong with the data, at once.
        ModelError: the model cannot be loaded, or the folder is not tunekit's to write to.
        CheckpointError: the checkpoints to resume from belong to another run, or there are some of
            an unfinished run and it is not to be resumed.
    """
    since = time.perf_counter()
    if recipe.runtime.out is not None:
        # Now, and not when hours of training are to be saved.
        check_replaceable(Path(recipe.runtime.out).expanduser(), MARKS)
    with session(recipe, model, data) as ready:
        before = ready.feeder.forward.values()
        trained = ready.train()
    if not isinstance(model, Model):
        ready.model.features = None  # Nobody asked to go on from here: memory is given back.
    # From here on the model is trained, and an error no reason to take its new head away.
    result = ready.result(trained, before, seconds=time.perf_counter() - since)
    if recipe.runtime.out is not None:
        result.save(recipe.runtime.out)
    return result


@dataclass(frozen=True, eq=False)
class Session:
    """A recipe made ready: data open, model loaded, phases in steps."""

    recipe: Recipe
    splits: Splits
    task: ImageClassification
    model: Model
    feeder: Feeder
    phases: tuple[ResolvedPhase, ...]

    def of(self, recipe: Recipe) -> Session:
        """Returns a session over the same model and data, of a recipe that differs elsewhere."""
        feeder = self.feeder.sibling(recipe)
        return replace(self, recipe=recipe, feeder=feeder, phases=_phases(recipe, feeder))

    def trainer(self, checkpoints: Checkpoints | None = None, **changes: Any) -> Trainer:
        """Returns what trains the phases."""
        return Trainer(
            forward=self.feeder.forward,
            phases=self.phases,
            feeds=[self.feeder.feed(phase) for phase in self.phases],
            optimizer=self.recipe.optimizer,
            runtime=self.recipe.runtime,
            seed=self.recipe.seed,
            checkpoints=checkpoints,
            **changes,
        )

    def fresh_head(self) -> Values:
        """Returns the values of a fresh head as the recipe's seed draws them, by full name."""
        return self.model.fresh_head_values(self.recipe.seed)

    def train(self) -> Trained:
        """Trains the model through the phases."""
        checkpoints = _checkpoints(self.recipe, self.splits)
        shown = reporter(self.recipe.runtime.progress)
        self.feeder.note = shown.note
        try:
            return self.trainer(checkpoints, reporter=shown).fit()
        finally:
            if checkpoints is not None:
                checkpoints.close()

    def result(self, trained: Trained, before: Values, *, seconds: float) -> Result:
        """Returns the result of the model as it is.

        Args:
            trained: the record of its training.
            before: every value when training began.
            seconds: that it took.
        """
        judged = self.splits.test if self.splits.test is not None else self.splits.validation
        metrics = {}
        if judged is not None:
            values = self.feeder.forward.values()
            metrics = self.feeder.metrics(judged, values, self.phases[-1])
        names = frozenset[str]().union(*(phase.trainable for phase in self.phases))
        after = self.feeder.forward.values()
        report = run_report(
            self.model,
            self.splits,
            trained=names,
            seconds=seconds,
            compiles=trained.compiles,
            phases=trained.phases,
            audit=audit(before, after, names, self.model.groups()),
        )
        return Result(self.model, self.recipe, trained.history, metrics, report, self.task)


@contextmanager
def session(
    recipe: Recipe,
    model: Model | keras.Model | None = None,
    data: Any = None,
    store: FeatureStore | None = None,
) -> Iterator[Session]:
    """Yields a recipe made ready; an error in the block gives a `Model` its earlier head back.

    Args:
        recipe: what to do.
        model: used in place of the one that the recipe names.
        data: used in place of the path that the recipe names.
        store: of features that other sessions share; `None` is the model's own.

    Raises: as `run` does before it trains.
    """
    _check_named(recipe, model, data)
    splits = open_data(data, recipe.data, seed=recipe.seed)
    task = ImageClassification.bind(recipe.task, splits.train, recipe.augment)
    _check_stopping(recipe, splits)
    with _ready_model(recipe, model, task) as ready:
        _put_method(recipe, ready, task, splits)
        feeder = Feeder(recipe, ready, task, splits, _store(recipe, ready, store))
        yield Session(recipe, splits, task, ready, feeder, _phases(recipe, feeder))


def _store(recipe: Recipe, model: Model, shared: FeatureStore | None) -> FeatureStore:
    """The store given, or the model's, which outlives the run: a new head starts from there."""
    if shared is not None and shared.spec == recipe.cache:
        return shared
    if model.features is None or model.features.spec != recipe.cache:
        model.features = FeatureStore(recipe.cache)
    return model.features


def _phases(recipe: Recipe, feeder: Feeder) -> tuple[ResolvedPhase, ...]:
    model, method = feeder.model, recipe.method
    phases = resolve_plan(
        expand_plan(recipe.plan, model.groups()),
        lambda selectors: resolve_trainable(selectors, model, method),
        default_train=default_train(method),
        steps_per_epoch=feeder.steps_per_epoch,
    )
    return tuple(
        replace(
            phase,
            label=phase.label if phase.spec.train is not None else trained_parts(method),
            multipliers={n: f * rate_factor(method, n) for n, f in phase.multipliers.items()},
        )
        for phase in phases
    )


@contextmanager
def _ready_model(
    recipe: Recipe, given: Model | keras.Model | None, task: ImageClassification
) -> Iterator[Model]:
    """The model with a head for the task's labels; a given `Model` is put back on an error."""
    backbone = recipe.backbone
    if not isinstance(given, Model):
        model = load_model(
            backbone.name if given is None else given,
            image_size=backbone.image_size,
            labels=task.label_names,
            head=recipe.head,
            dtype=backbone.dtype,
            pretrained=backbone.pretrained,
            blocks=backbone.blocks,
            seed=recipe.seed,
        )
        model.multi_label = task.multi_label
        yield model
        return
    check_given(recipe, given)
    with given.restored_on_error():
        acting = [adapter.spec for adapter, _ in given.adapters.acting]
        if is_adapter(recipe.method) and acting != [recipe.method]:
            given.set_adapter([])  # It keeps the head that it has; the new one comes for another.
        asked = recipe.head if recipe.head != HeadSpec() else None
        same_head = asked is None or asked == given.head_spec
        if given.labels != task.label_names or not same_head:
            given.replace_head(
                task.label_names, asked, seed=recipe.seed, multi_label=task.multi_label
            )
        given.multi_label = task.multi_label
        yield given


def _put_method(recipe: Recipe, model: Model, task: ImageClassification, splits: Splits) -> None:
    """The model has the recipe's adapter, and then a quantised backbone, where they are asked."""
    method, quantize = recipe.method, recipe.backbone.quantize
    needs_data = isinstance(method, LoRA) and method.init == "eva"
    inputs = _pixels(recipe, model, task, splits) if needs_data else None
    put(method, model, seed=recipe.seed, inputs=inputs, quantize=quantize)
    if quantize is not None and model.quantization is None:
        model.quantize(quantize)


def _pixels(
    recipe: Recipe, model: Model, task: ImageClassification, splits: Splits
) -> Iterator[np.ndarray]:
    """The training images in batches, in an order of their own."""
    batches = Batches(
        splits.train,
        task.encoder(model.preprocessing),
        batch_size=min(recipe.batch.size, len(splits.train)),
        seed=recipe.seed,
        shuffle=True,
        workers=recipe.batch.workers,
        prefetch=recipe.batch.prefetch,
    )
    for batch in batches.epoch(0):
        yield batch["image"]


def check_given(recipe: Recipe, model: Model) -> None:
    """Refuses what only the loading of a model can do."""
    size, wanted = model.preprocessing.image_size_px, recipe.backbone.image_size
    wanted = (wanted, wanted) if isinstance(wanted, int) else wanted
    dtype = model.backbone.keras.dtype_policy.name
    if wanted is not None and tuple(wanted) != tuple(size):
        raise ModelError(
            f"image_size: expected {size}, that of the model given, got {tuple(wanted)}. Load it "
            f"with tunekit.load_model(..., image_size={wanted})."
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


def _check_named(recipe: Recipe, model: Any, data: Any) -> None:
    """Refuses a recipe that leaves out what the caller does not give either."""
    issues = []
    if model is None and recipe.backbone.name == IN_MEMORY:
        message = "the recipe was made for a model in memory; name one, or pass model=."
        issues.append(Issue("backbone.name", message))
    if data is None and recipe.data.path is None:
        message = "expected the path of the training data, got none; name one, or pass data=."
        issues.append(Issue("data.path", message))
    if issues:
        raise RecipeError(issues)


def _check_stopping(recipe: Recipe, splits: Splits) -> None:
    if splits.validation is not None:
        return
    issues = [
        Issue(
            f"plan[{index}].early_stopping",
            "needs validation data, and there is none. Give data.validation or a "
            "data.validation_fraction above 0.",
        )
        for index, phase in enumerate(recipe.plan)
        if getattr(phase, "early_stopping", None) is not None
    ]
    if issues:
        raise RecipeError(issues)


def _checkpoints(recipe: Recipe, splits: Splits) -> Checkpoints | None:
    if recipe.runtime.out is None or recipe.runtime.checkpoint_every is None:
        return None
    out = Path(recipe.runtime.out).expanduser()
    folder = out / RUN_FOLDER
    unfinished = folder.is_dir() and any(folder.iterdir()) and not (out / MODEL_FILE).exists()
    if unfinished and not recipe.runtime.resume:
        raise CheckpointError(
            f"{out} holds the checkpoints of a run that has not ended. Go on with it by "
            f"resume=True (tunekit run --resume), choose another folder, or delete {folder}."
        )
    tree = recipe.model_dump(
        mode="json", exclude={"runtime": True, "data": True, "cache": {"store", "folder"}}
    )
    data = {f"{name} data": source.fingerprint for name, source in splits.items()}
    return Checkpoints(
        folder,
        identity={**tree, **data},
        keep=recipe.runtime.keep_checkpoints,
    )
