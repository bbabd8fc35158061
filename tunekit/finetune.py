"""The call: from a model, data and a recipe to a trained model and its record."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import keras

from tunekit.data.pipeline import Batches
from tunekit.data.source import Source, Splits, open_data
from tunekit.data.spec import AugmentSpec
from tunekit.errors import CheckpointError, Issue, ModelError, RecipeError
from tunekit.evaluation.evaluate import collect_logits
from tunekit.evaluation.metrics import classification_metrics
from tunekit.folder import check_replaceable
from tunekit.methods.spec import DEFAULT_TRAIN, MethodName
from tunekit.models.forward import Forward
from tunekit.models.model import Model, load_model
from tunekit.models.spec import Dtype, HeadSpec
from tunekit.plans.optimizer import OptimizerSpec
from tunekit.plans.phase import Phase, Schedule
from tunekit.plans.resolve import ResolvedPhase, resolve_plan
from tunekit.plans.selection import resolve_selection
from tunekit.recipe import Recipe
from tunekit.recipe_keywords import IN_MEMORY
from tunekit.report.run import run_report
from tunekit.result import MARKS, MODEL_FILE, RUN_FOLDER, Result
from tunekit.tasks.image_classification import ImageClassification
from tunekit.training.checkpoints import Checkpoints
from tunekit.training.progress import reporter
from tunekit.training.step import Values
from tunekit.training.trainer import Trained, Trainer


def finetune(
    model: str | Path | Model | keras.Model,
    data: Any,
    *,
    task: str = "image_classification",
    labels: Sequence[str] | None = None,
    method: MethodName = "full",
    head: str | HeadSpec | None = None,
    train: str | Sequence[str] | None = None,
    plan: Sequence[Phase] | None = None,
    epochs: float | None = None,
    learning_rate: float | None = None,
    schedule: Schedule | None = None,
    warmup: str | None = None,
    early_stopping: int | None = None,
    batch_size: int | None = None,
    accumulate: int | None = None,
    optimizer: str | OptimizerSpec | None = None,
    weight_decay: float | None = None,
    clip_norm: float | None = None,
    ema: float | None = None,
    augment: str | AugmentSpec | None = None,
    label_smoothing: float | None = None,
    class_weights: str | Sequence[float] | None = None,
    balanced: bool = False,
    image_size: int | tuple[int, int] | None = None,
    precision: Dtype = "float32",
    validation: Any = None,
    seed: int = 0,
    out: str | Path | None = None,
    resume: bool = False,
    progress: Literal["auto", "rich", "plain", "none"] = "auto",
) -> Result:
    """Returns a model tuned on `data`, with its history and metrics.

    Every keyword is a field of the recipe, whose classes say what their defaults mean; `None` is
    the field's default. A `Model` given as an object is trained itself and gets a head for the
    data's labels, rows of labels that it knows kept; a `keras.Model` is copied. An error leaves
    a `Model` as it was; Ctrl-C leaves it as the last whole step made it.

    Args:
        model: bundled name, preset, folder, keras.applications name, `Model` or `keras.Model`.
        data: a path, (images, labels), or a dict of those by split name.
        task: what is asked of the model.
        labels: order of the label names.
        method: what may train: "full" anything, "head" only the head.
        head: kind of head, or a whole `HeadSpec`.
        train: selectors of what trains: "head", "all", "last 2", patterns, lists of them.
        plan: several phases, in place of `train` to `early_stopping`.
        epochs: passes over the training data.
        learning_rate: highest rate; by default lower where the backbone trains.
        schedule: course of the rate after the warmup.
        warmup: "5%", "1 epoch" or "100 steps".
        early_stopping: evaluations without a better one that end the training.
        batch_size: examples per optimizer step.
        accumulate: micro-batches that one step is computed in.
        optimizer: name, or a whole `OptimizerSpec`.
        weight_decay: decoupled decay of kernels.
        clip_norm: largest global norm of the gradients.
        ema: decay of the moving average of the weights.
        augment: "light", or an `AugmentSpec`.
        label_smoothing: share of each target spread over all classes.
        class_weights: "balanced", or one weight a label.
        balanced: draws every class equally often.
        image_size: side, or (height, width), in pixels.
        precision: of weights and computations.
        validation: a path, (images, labels), or the fraction of the training data set aside.
        seed: of everything random.
        out: folder for checkpoints and the result.
        resume: goes on from the last checkpoint in `out`.
        progress: a bar, plain lines or nothing.

    Raises:
        RecipeError: every mistake in the keywords, at once.
        DataError: everything that is wrong with the data, at once.
        ModelError: the model cannot be loaded.

    Example:
        >>> result = finetune("efficientnet_lite0", "photos/", method="head", epochs=3)
        >>> result.metrics["accuracy"]
    """
    recipe = Recipe.from_keywords(**locals())
    named = isinstance(model, (str, Path))
    return run(
        recipe,
        model=None if named else model,
        data=_in_memory(data, validation),
    )


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
    _check_named(recipe, model, data)
    if recipe.runtime.out is not None:
        # Now, and not when hours of training are to be saved.
        check_replaceable(Path(recipe.runtime.out).expanduser(), MARKS)
    splits = open_data(data, recipe.data, seed=recipe.seed)
    task = ImageClassification.bind(recipe.task, splits.train, recipe.augment)
    _check_stopping(recipe, splits)
    with _ready_model(recipe, model, task) as ready:
        trained, phases = _train(recipe, ready, task, splits)
    # From here on the model is trained, and an error no reason to take its new head away.
    judged = splits.test if splits.test is not None else splits.validation
    metrics = {} if judged is None else _Evaluation(recipe, ready, task, judged)()
    names = frozenset[str]().union(*(phase.trainable for phase in phases))
    report = run_report(
        ready,
        splits,
        trained=names,
        seconds=time.perf_counter() - since,
        compiles=trained.compiles,
    )
    result = Result(ready, recipe, trained.history, metrics, report, task)
    if recipe.runtime.out is not None:
        result.save(recipe.runtime.out)
    return result


def _train(
    recipe: Recipe, model: Model, task: ImageClassification, splits: Splits
) -> tuple[Trained, tuple[ResolvedPhase, ...]]:
    batches = Batches(
        splits.train,
        task.encoder(model.preprocessing, recipe.augment),
        batch_size=recipe.batch.size,
        seed=recipe.seed,
        shuffle=True,
        balanced=recipe.batch.balanced,
        workers=recipe.batch.workers,
        prefetch=recipe.batch.prefetch,
    )
    phases = resolve_plan(
        recipe.plan,
        lambda selectors: resolve_selection(selectors, model),
        default_train=DEFAULT_TRAIN[recipe.method],
        steps_per_epoch=batches.steps_per_epoch,
    )
    checkpoints = _checkpoints(recipe, splits)
    trainer = Trainer(
        forward=Forward.of(model.keras, [group.variables for group in model.groups()]),
        objective=task,
        batches=batches,
        phases=phases,
        optimizer=recipe.optimizer,
        runtime=recipe.runtime,
        seed=recipe.seed,
        accumulate=recipe.batch.accumulate,
        evaluate=(
            None
            if splits.validation is None
            else _Evaluation(recipe, model, task, splits.validation)
        ),
        checkpoints=checkpoints,
        reporter=reporter(recipe.runtime.progress),
    )
    try:
        return trainer.fit(), phases
    finally:
        if checkpoints is not None:
            checkpoints.close()


class _Evaluation:
    """Metrics of a model on one source, for any values of its variables."""

    def __init__(
        self, recipe: Recipe, model: Model, task: ImageClassification, source: Source
    ) -> None:
        """Prepares the batches; nothing is read yet."""
        self._model, self._task = model, task
        self._batches = Batches(
            source,
            task.encoder(model.preprocessing),
            batch_size=recipe.batch.size // recipe.batch.accumulate,
            seed=recipe.seed,
            shuffle=False,
            workers=recipe.batch.workers,
            prefetch=recipe.batch.prefetch,
        )

    def __call__(self, values: Values | None = None) -> dict[str, Any]:
        """Returns the metrics with `values`, or with the model's own."""
        logits, labels = collect_logits(
            lambda pixels: self._model.apply(pixels, values), self._batches.epoch(0)
        )
        return classification_metrics(
            logits,
            labels,
            self._task.label_names,
            multi_label=self._task.multi_label,
            top_k=self._task.top_k,
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
            seed=recipe.seed,
        )
        model.multi_label = task.multi_label
        yield model
        return
    _check_given(recipe, given)
    with given.restored_on_error():
        asked = recipe.head if recipe.head != HeadSpec() else None
        same_head = asked is None or asked == given.head_spec
        if given.labels != task.label_names or not same_head:
            given.replace_head(
                task.label_names, asked, seed=recipe.seed, multi_label=task.multi_label
            )
        given.multi_label = task.multi_label
        yield given


def _check_given(recipe: Recipe, model: Model) -> None:
    """Refuses what only the loading of a model can do."""
    size, wanted = model.preprocessing.image_size_px, recipe.backbone.image_size
    wanted = (wanted, wanted) if isinstance(wanted, int) else wanted
    dtype = model.backbone.keras.dtype_policy.name
    if wanted is not None and tuple(wanted) != tuple(size):
        raise ModelError(
            f"image_size: expected {size}, that of the model given, got {tuple(wanted)}. Load it "
            f"with tunekit.load_model(..., image_size={wanted})."
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
        if phase.early_stopping is not None
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
    tree = recipe.model_dump(mode="json", exclude={"runtime", "data"})
    data = {f"{name} data": source.fingerprint for name, source in splits.items()}
    return Checkpoints(
        folder,
        identity={**tree, **data},
        keep=recipe.runtime.keep_checkpoints,
    )


def _in_memory(data: Any, validation: Any) -> Any:
    """What of the data is objects and not paths, joined; `None` where all of it is paths."""
    if validation is None or isinstance(validation, (str, Path, int, float)):
        return None if isinstance(data, (str, Path)) else data
    if isinstance(data, Mapping):
        return {**data, "validation": validation}
    return {"train": data, "validation": validation}
