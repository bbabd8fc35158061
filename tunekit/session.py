"""A recipe made ready: its data open, its model loaded, its phases in steps."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import keras

from tunekit.asked import open_task
from tunekit.beside_base import beside_base
from tunekit.compilation_cache import cache_warning, keep_programs
from tunekit.data.features import FeatureStore
from tunekit.data.source import Source, Splits
from tunekit.distributed import is_first
from tunekit.errors import CheckpointError, Issue, RecipeError
from tunekit.evaluation.audit import audit
from tunekit.evaluation.embedding_head import fit_head
from tunekit.feeds import Feeder, training_pixels
from tunekit.meshes import layout_of, loading_place
from tunekit.micro_batches import chosen, is_auto
from tunekit.models.model import Model
from tunekit.phases import phases_of
from tunekit.plans.resolve import ResolvedPhase
from tunekit.ready_model import put_method, ready_model
from tunekit.recipe import Recipe
from tunekit.recipe_keywords import IN_MEMORY
from tunekit.report.run import run_report
from tunekit.result import MODEL_FILE, RUN_FOLDER, Result
from tunekit.same_run import check_same_run
from tunekit.step_identity import expected_step, kept_steps
from tunekit.tasks.embedding import EmbeddingTask
from tunekit.tasks.image_classification import ImageClassification
from tunekit.tasks.language_modelling import LanguageModelling
from tunekit.tasks.registry import Task
from tunekit.tasks.text_classification import TextClassification
from tunekit.text_answers import metrics_on
from tunekit.text_feeds import TextFeeder
from tunekit.training.checkpoints import Checkpoints
from tunekit.training.kept_steps import ExpectedStep, KeptSteps
from tunekit.training.layout import Layout
from tunekit.training.profiling import FIRST_TRACED, TRACED, Profile, Unprofiled
from tunekit.training.progress import reporter
from tunekit.training.spec import traced_steps
from tunekit.training.step import Values
from tunekit.training.trainer import Trained, Trainer

AnyFeeder = Feeder | TextFeeder


@dataclass(frozen=True, eq=False)
class Session:
    """A recipe made ready: data open, model loaded, phases in steps."""

    recipe: Recipe
    splits: Splits
    task: Task
    model: Model
    feeder: AnyFeeder
    phases: tuple[ResolvedPhase, ...]
    layout: Layout | None = None
    """How the run lies on several devices; `None` is one."""
    is_named: bool = False
    """Whether the model is the one that the recipe names, and not one from memory."""
    expected: ExpectedStep | None = None
    """The first step of the last start, being loaded."""

    def of(self, recipe: Recipe) -> Session:
        """Returns a session over the same model and data, of a recipe that differs elsewhere."""
        feeder = self.feeder.sibling(recipe)
        phases = phases_of(recipe, feeder.model, feeder.steps_per_epoch)
        layout = layout_of(recipe, self.model, phases) if self.layout else None
        return replace(self, recipe=recipe, feeder=feeder, phases=phases, layout=layout)

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
            layout=self.layout,
            kept=self._kept_steps(),
            **changes,
        )

    def _kept_steps(self) -> KeptSteps | None:
        if self.layout is not None or not self.is_named:
            return None
        return kept_steps(self.recipe, self.splits, self.model, self.expected)

    def fresh_head(self) -> Values:
        """Returns the values of a fresh head as the recipe's seed draws them, by full name."""
        return self.model.fresh_head_values(self.recipe.seed)

    def train(self) -> Trained:
        """Trains the model through the phases."""
        checkpoints = _checkpoints(self.recipe, self.splits)
        shown = reporter(self.recipe.runtime.progress)
        self.feeder.note = shown.note
        if (line := cache_warning(keep_programs())) is not None:
            shown.note(line)
        if isinstance(self.feeder, TextFeeder) and self.recipe.runtime.progress != "none":
            for line in self.feeder.preflight():
                shown.note(line)
        try:
            ready = self._in_micro_batches(shown.note)
            return ready.trainer(checkpoints, reporter=shown, profile=self._profile()).fit()
        finally:
            if checkpoints is not None:
                checkpoints.close()

    def _in_micro_batches(self, note: Callable[[str], None]) -> Session:
        """The same with numbers of micro-batches that fit, where the recipe leaves them open."""
        if not is_auto(self.recipe):
            return self
        shards = 1 if self.layout is None else self.layout.sizes.batch_shards
        found = chosen(self.recipe, shards, lambda recipe: self.of(recipe).trainer())
        note(found.line())
        return self.of(found.recipe)

    def _profile(self) -> Unprofiled:
        runtime = self.recipe.runtime
        if not runtime.profile:
            return Unprofiled()
        steps = sum(phase.steps for phase in self.phases)
        first = min(FIRST_TRACED, max(steps - TRACED, 0))
        told = runtime.profile_steps
        return Profile(
            None if runtime.out is None else Path(runtime.out).expanduser() / "profile",
            traced_steps(told) if told else range(first, first + TRACED),
            self.recipe.backbone.dtype.removeprefix("mixed_"),
        )

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
            if self.layout is not None:
                values = self.layout.values(values)
            metrics = self.feeder.metrics(judged, values, self.phases[-1])
        names = frozenset[str]().union(*(phase.trainable for phase in self.phases))
        answers: list[dict[str, Any]] = []
        if judged is not None and isinstance(self.task, LanguageModelling):
            own = {n: v for n, v in before.items() if n in names and not n.startswith("adapters/")}
            compared, answers = self._beside_base(self.task, judged, own)
            metrics |= compared
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
        report["device"]["mesh"] = str(self.layout.sizes) if self.layout else "one device"
        report["compilation_cache"] = keep_programs().folder
        report["unexpected_compiles"] = [each.to_json() for each in trained.unexpected]
        if trained.profile is not None:
            report["profile"] = trained.profile
        if answers:
            report["samples"] = answers
        task = self.task
        if isinstance(task, EmbeddingTask) and task.kind == "labelled":
            task = self._fit_head(task)
            if judged is not None:
                classified = metrics_on(self.model, task, judged, self.recipe.batch)
                metrics = {**classified, "embedding": metrics}
        return Result(self.model, self.recipe, trained.history, metrics, report, task)

    def _beside_base(
        self, task: LanguageModelling, judged: Source, base_values: Values
    ) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """The base's metrics, and both models' answers, where the task asks for them."""
        if not task.samples:
            return {}, []
        assert isinstance(self.feeder, TextFeeder)
        judge = partial(self.feeder.judged, judged)
        return beside_base(self.model, task, judged, base_values, judge)

    def _fit_head(self, task: EmbeddingTask) -> TextClassification:
        """The model has a classifier on the vectors that it has learned to set apart."""
        assert isinstance(self.feeder, TextFeeder)
        return fit_head(
            self.model,
            task,
            self.splits.train,
            self.model.apply,
            self.feeder.tokenizer,
            self.feeder.max_length,
        )


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
    keep_programs()
    _check_named(recipe, model, data)
    splits, task = open_task(recipe, data)
    _check_stopping(recipe, splits)
    expected = expected_step(recipe) if model is None else None
    with ExitStack() as stack:
        with loading_place(recipe):
            ready = stack.enter_context(ready_model(recipe, model, task))
        if isinstance(task, ImageClassification):
            put_method(recipe, ready, lambda: training_pixels(recipe, ready, task, splits))
            feeder: AnyFeeder = Feeder(recipe, ready, task, splits, _store(recipe, ready, store))
        else:
            if isinstance(task, EmbeddingTask):
                task = task.for_backbone(ready.backbone)
            texts = TextFeeder.of(recipe, ready, task, splits)
            put_method(recipe, ready, texts.training_inputs)
            texts.check_answers()
            feeder = texts
        check_same_run(recipe, splits, ready)
        phases = phases_of(recipe, feeder.model, feeder.steps_per_epoch)
        layout = layout_of(recipe, ready, phases)
        is_named = model is None
        yield Session(recipe, splits, task, ready, feeder, phases, layout, is_named, expected)


def _store(recipe: Recipe, model: Model, shared: FeatureStore | None) -> FeatureStore:
    """The store given, or the model's, which outlives the run: a new head starts from there."""
    if shared is not None and shared.spec == recipe.cache:
        return shared
    if model.features is None or model.features.spec != recipe.cache:
        model.features = FeatureStore(recipe.cache)
    return model.features


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
    # Another process may find there what the first is about to write.
    if unfinished and not recipe.runtime.resume and is_first():
        raise CheckpointError(
            f"{out} holds the checkpoints of a run that has not ended. Go on with it by "
            f"resume=True (tunekit run --resume), choose another folder, or delete {folder}."
        )
    tree = recipe.model_dump(
        mode="json", exclude={"runtime": True, "data": True, "cache": {"store", "folder"}}
    )
    return Checkpoints(
        folder,
        identity={**tree, **splits.fingerprints()},
        keep=recipe.runtime.keep_checkpoints,
    )
