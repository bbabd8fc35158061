"""From a phase of the plan to what its steps run on; the frozen part of the network runs once."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, cast

import jax
import numpy as np

from tunekit.data.examples import Source
from tunekit.data.features import (
    FeatureBatches,
    FeatureStore,
    cache_key,
    fill_features,
    ordered_fingerprint,
)
from tunekit.data.pipeline import Batches
from tunekit.data.source import Splits
from tunekit.data.spec import AugmentSpec, BatchSpec
from tunekit.evaluation.evaluate import collect_logits
from tunekit.evaluation.metrics import classification_metrics
from tunekit.models.forward import BatchNormMode, Forward
from tunekit.models.model import Model
from tunekit.models.prefix import Cut, find_cut
from tunekit.plans.phase import Phase
from tunekit.plans.resolve import ResolvedPhase
from tunekit.recipe import Recipe
from tunekit.tasks.image_classification import ImageClassification
from tunekit.training.feed import Evaluate, Feed, TrainingBatches
from tunekit.training.step import FEATURES, Values

Program = Callable[[Values, np.ndarray], Any]


def judge(
    task: ImageClassification,
    batches: Batches | FeatureBatches,
    forward: Callable[[np.ndarray], Any],
    column: str = "image",
) -> dict[str, Any]:
    """Returns the metrics of what `forward` makes of a column of the batches."""
    logits, labels = collect_logits(forward, batches.epoch(0), column)
    return classification_metrics(
        logits, labels, task.label_names, multi_label=task.multi_label, top_k=task.top_k
    )


@dataclass(eq=False)
class _Shared:
    """What the feeders of one model find out once."""

    forward: Forward
    cuts: dict[Any, Cut | None] = field(default_factory=dict)
    prefixes: dict[str, Program] = field(default_factory=dict)
    """Compiled up to each cut, by its name."""
    judges: dict[str, Program] = field(default_factory=dict)
    """Compiled from each cut on, by its name."""
    fingerprints: dict[str, tuple[list[jax.Array], str]] = field(default_factory=dict)

    def fingerprint(self, cut: Cut, values: Values) -> str:
        """Returns the cut's fingerprint, computed anew only where an array is another one."""
        read = [values[name] for name in sorted(cut.reads)]
        known, fingerprint = self.fingerprints.get(cut.name, ([], ""))
        if len(known) != len(read) or any(a is not b for a, b in zip(known, read, strict=True)):
            fingerprint = cut.fingerprint(values)
            self.fingerprints[cut.name] = (read, fingerprint)
        return fingerprint


@dataclass(eq=False)
class Feeder:
    """Makes the feeds of one run's phases."""

    recipe: Recipe
    model: Model
    task: ImageClassification
    splits: Splits
    store: FeatureStore
    shared: _Shared = field(init=False)

    def __post_init__(self) -> None:
        """Reads the model; nothing is computed yet."""
        groups = [group.variables for group in self.model.groups()]
        self.shared = _Shared(Forward.of(self.model.keras, groups))

    @property
    def forward(self) -> Forward:
        """The pass of the whole model, with its depth groups."""
        return self.shared.forward

    def sibling(self, recipe: Recipe) -> Feeder:
        """Returns a feeder over the same model and data, of another recipe."""
        other = copy.copy(self)
        other.recipe = recipe
        return other

    def steps_per_epoch(self, phase: Phase) -> int:
        """Returns the optimizer steps of one pass over the training data in `phase`."""
        return self._training_batches(phase).steps_per_epoch

    def feed(self, phase: ResolvedPhase) -> Feed:
        """Returns the feed of a phase, from the cached outputs of its frozen part where that pays.

        Raises:
            DataError: the cache asked for has no room.
        """
        augment, batch = self._augment(phase.spec), self._batch(phase.spec)
        policy = phase.spec.batch_norm
        forward = replace(
            self.forward,
            batch_norm=cast(BatchNormMode, "follow" if policy == "reestimated" else policy),
            frozen_dropout=phase.spec.frozen_dropout,
        )
        task = replace(self.task, mixup=augment.mixup, cutmix=augment.cutmix)
        batches = self._training_batches(phase.spec)
        shapes = batches.shapes()
        columns = {name: jax.ShapeDtypeStruct(*shape) for name, shape in shapes.items()}
        reason = self._why_uncached(phase, batches, augment)
        cut = None if reason else self._cut(forward, phase, columns)
        if cut is None:
            reason = reason or "the first layers train"
        elif not self._has_room(cut):
            cut, reason = None, "neither memory nor disk has room"
        start: Any = forward
        if cut is not None:
            start = cut
            columns = {
                FEATURES: jax.ShapeDtypeStruct((batch.size, *cut.shape), np.float32),
                **{name: column for name, column in columns.items() if name != "image"},
            }
        return Feed(
            forward=start,
            objective=task,
            columns=columns,
            steps_per_epoch=batches.steps_per_epoch,
            open=lambda values: self._opened(batches, cut, augment, values),
            accumulate=batch.accumulate,
            evaluate=self._evaluate(cut),
            measure=_measuring(start) if policy == "reestimated" else None,
            start=cut.name if cut else None,
            reason=reason,
            program=task,
        )

    def _augment(self, phase: Phase) -> AugmentSpec:
        return phase.augment or self.recipe.augment

    def _batch(self, phase: Phase) -> BatchSpec:
        return phase.batch or self.recipe.batch

    def _training_batches(self, phase: Phase) -> Batches:
        batch = self._batch(phase)
        return Batches(
            self.splits.train,
            self.task.encoder(self.model.preprocessing, self._augment(phase)),
            batch_size=batch.size,
            seed=self.recipe.seed,
            shuffle=True,
            balanced=batch.balanced,
            workers=batch.workers,
            prefetch=batch.prefetch,
        )

    def judging_batches(self, source: Source) -> Batches:
        """Returns the examples of `source` in order, each once, as they are."""
        batch = self.recipe.batch
        return Batches(
            source,
            self.task.encoder(self.model.preprocessing),
            batch_size=batch.size // batch.accumulate,
            seed=self.recipe.seed,
            shuffle=False,
            workers=batch.workers,
            prefetch=batch.prefetch,
        )

    def _why_uncached(self, phase: ResolvedPhase, batches: Batches, augment: AugmentSpec) -> str:
        """Why the frozen part is computed at every step; "" where it need not be."""
        spec = self.recipe.cache
        if spec.store == "off":
            return "cache: off"
        if augment.mixes:
            return "images are mixed within a batch"
        if augment.varies and not spec.views:
            return "images are augmented anew in every pass; cache.views keeps some versions"
        passes = phase.steps / batches.steps_per_epoch
        if spec.store == "auto" and passes <= max(spec.views, 1):
            return "no image comes twice"
        return ""

    def _cut(
        self, forward: Forward, phase: ResolvedPhase, columns: Mapping[str, Any]
    ) -> Cut | None:
        key = (phase.trainable, forward.batch_norm, forward.frozen_dropout)
        cuts = self.shared.cuts
        if key not in cuts:
            pixels = jax.ShapeDtypeStruct(columns["image"].shape, np.float32)
            cuts[key] = find_cut(forward, pixels, phase.trainable)
        cut = cuts[key]
        if cut is None:
            return None
        examples = len(self.splits.train) * max(self.recipe.cache.views, 1)
        if self.splits.validation is not None:
            examples += len(self.splits.validation)
        return cut

    def _has_room(self, cut: Cut) -> bool:
        """Whether the features of all examples can be kept.

        Raises:
            DataError: the store asked for cannot hold them.
        """
        examples = len(self.splits.train) * max(self.recipe.cache.views, 1)
        if self.splits.validation is not None:
            examples += len(self.splits.validation)
        bytes_each = 4 if self.recipe.cache.dtype == "float32" else 2
        return self.store.plan(examples * math.prod(cut.shape) * bytes_each) != "off"

    def _opened(
        self, batches: Batches, cut: Cut | None, augment: AugmentSpec, values: Values
    ) -> TrainingBatches:
        if cut is None:
            return batches
        views = self.recipe.cache.views if augment.varies else 0
        passes = batches if views else self.judging_batches(self.splits.train)
        features = self._features(cut, values, passes, augment if views else None)
        return FeatureBatches(batches, features, self._labels(self.splits.train))

    def _evaluate(self, cut: Cut | None) -> Evaluate | None:
        source = self.splits.validation
        if source is None:
            return None
        batches = self.judging_batches(source)
        if cut is None:
            return lambda values: judge(
                self.task, batches, lambda pixels: self.model.apply(pixels, values)
            )
        program = self.shared.judges.setdefault(
            cut.name, jax.jit(lambda values, features: cut(values, features, training=False)[0])
        )
        opened: dict[str, FeatureBatches] = {}

        def evaluate(values: Values) -> Mapping[str, Any]:
            if not opened:
                features = self._features(cut, values, batches)
                opened["features"] = FeatureBatches(batches, features, self._labels(source))
            return judge(
                self.task, opened["features"], lambda x: program(values, x), column=FEATURES
            )

        return evaluate

    def _labels(self, source: Source) -> np.ndarray:
        return np.stack([self.task.encode_label(label) for label in source.label_array])

    def _features(
        self, cut: Cut, values: Values, batches: Batches, augment: AugmentSpec | None = None
    ) -> np.ndarray:
        """The outputs of the frozen part, [V, N, ...], computed where the store has none."""
        views = self.recipe.cache.views if augment is not None else 1
        key = cache_key(
            prefix=self.shared.fingerprint(cut, values),
            data=ordered_fingerprint(cast(Source, batches.source)),
            preprocessing=self.model.preprocessing,
            dtype=self.recipe.cache.dtype,
            views=[views, augment, self.recipe.seed] if augment is not None else None,
            platform=[jax.default_backend(), jax.__version__],
        )
        program = self.shared.prefixes.setdefault(
            cut.name,
            jax.jit(lambda values, pixels: cut.features(values, pixels.astype("float32"))),
        )
        shape = (views, len(batches.source), *cut.shape)
        return self.store.get(
            key, shape, lambda out: fill_features(batches, lambda x: program(values, x), out)
        )


def _measuring(start: Forward | Cut) -> Any:
    """The same pass, with statistics that become the batch's own."""
    if isinstance(start, Cut):
        return replace(start, forward=replace(start.forward, largest_momentum=0.0))
    return replace(start, largest_momentum=0.0)
