"""From a phase of the plan to what its steps run on; the frozen part of the network runs once."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, cast

import jax
import keras
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
from tunekit.distributed import process_count
from tunekit.evaluation.evaluate import collect_logits
from tunekit.evaluation.metrics import classification_metrics
from tunekit.methods.intercept import Wrap
from tunekit.models.forward import Forward
from tunekit.models.model import Model
from tunekit.models.placement import beside, fetched
from tunekit.models.prefix import Cut, find_cut
from tunekit.models.remat import RematMode, rematerialised
from tunekit.plans.phase import Phase
from tunekit.plans.resolve import ResolvedPhase
from tunekit.recipe import Recipe
from tunekit.tasks.image_classification import ImageClassification
from tunekit.training.feed import Evaluate, Feed, TrainingBatches
from tunekit.training.step import FEATURES, Values

Program = Callable[[Values, np.ndarray], Any]


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

    remats: dict[RematMode, Mapping[keras.Layer, Wrap]] = field(default_factory=dict)
    contents: dict[int, tuple[Source, str]] = field(default_factory=dict)
    labels: dict[int, tuple[Source, np.ndarray]] = field(default_factory=dict)

    def content(self, source: Source) -> str:
        """Returns the fingerprint of the images in their order, computed once a source."""
        if id(source) not in self.contents:
            self.contents[id(source)] = source, ordered_fingerprint(source)
        return self.contents[id(source)][1]

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
    note: Callable[[str], None] = lambda text: None
    """Told in a line of each computation of the frozen part."""
    shared: _Shared = field(init=False)

    def __post_init__(self) -> None:
        """Reads the model; nothing is computed yet."""
        self.shared = _Shared(self.model.forward())

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
        task = replace(self.task, mixup=augment.mixup, cutmix=augment.cutmix)
        batches = self._training_batches(phase.spec)
        shapes = batches.shapes()
        columns = {name: jax.ShapeDtypeStruct(*shape) for name, shape in shapes.items()}
        forward = self._forward(phase.spec)
        cut, reason = self._start(phase, columns["image"])
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
            accumulate=batch.micro_batches,
            evaluate=self._evaluate(cut),
            measure=_measuring(start) if phase.spec.batch_norm == "reestimated" else None,
            start=cut.name if cut else None,
            reason=reason,
            program=task,
        )

    def metrics(
        self, source: Source, values: Values, phase: ResolvedPhase | None = None
    ) -> dict[str, Any]:
        """Returns the metrics of the model with `values` on the examples of `source`.

        Args:
            source: labelled examples.
            values: every value of the model by structural name.
            phase: whose programs, and whose cached features of the validation examples, are used.
        """
        batches: Any = self.judging_batches(source)
        cut = None
        if phase is not None and self.recipe.cache.dtype == "float32":
            (height, width), size = self.model.preprocessing.image_size_px, batches.batch_size
            cut, _ = self._start(phase, jax.ShapeDtypeStruct((size, height, width, 3), np.uint8))
        return self._metrics(source, values, cut)

    def _metrics(self, source: Source, values: Values, cut: Cut | None) -> dict[str, Any]:
        batches: Any = self.judging_batches(source)
        column = "image"
        after: Any = None if cut is None else self._judge(cut)
        if cut is None:
            forward = lambda pixels: self.model.apply(pixels, values)  # noqa: E731
        elif source is self.splits.validation:
            features = self._features(cut, values, batches)
            batches = FeatureBatches(batches, features, self._labels(source))
            column, forward = FEATURES, lambda features: fetched(after(values, features))
        else:
            before = self._prefix(cut)
            forward = lambda pixels: fetched(after(values, before(values, pixels)))  # noqa: E731
        logits, labels = collect_logits(forward, batches.epoch(0), column)
        task = self.task
        return classification_metrics(
            logits, labels, task.label_names, multi_label=task.multi_label, top_k=task.top_k
        )

    def _forward(self, phase: Phase) -> Forward:
        policy = "follow" if phase.batch_norm == "reestimated" else phase.batch_norm
        return replace(
            self.forward,
            batch_norm=policy,
            frozen_dropout=phase.frozen_dropout,
            remat=self._remat(self.recipe.runtime.remat),
        )

    def _remat(self, mode: RematMode) -> Mapping[keras.Layer, Wrap]:
        """What a backward pass computes anew; found once, by a run of the network."""
        if mode not in self.shared.remats:
            body = self.model.keras.get_layer("backbone")
            self.shared.remats[mode] = rematerialised(body, mode)
        return self.shared.remats[mode]

    def _start(self, phase: ResolvedPhase, images: jax.ShapeDtypeStruct) -> tuple[Cut | None, str]:
        """Where the phase's steps start, or why from the images."""
        if reason := self._why_uncached(phase):
            return None, reason
        cut = self._cut(self._forward(phase.spec), phase.trainable, images)
        if cut is None:
            return None, "the first layers train"
        if not self._has_room(cut):
            return None, "neither memory nor disk has room"
        return cut, ""

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
            batch_size=batch.size // batch.micro_batches,
            seed=self.recipe.seed,
            shuffle=False,
            workers=batch.workers,
            prefetch=batch.prefetch,
        )

    def _why_uncached(self, phase: ResolvedPhase) -> str:
        """Why the frozen part is computed at every step; "" where it need not be."""
        spec, augment = self.recipe.cache, self._augment(phase.spec)
        if spec.store == "off":
            return "cache: off"
        if process_count() > 1:
            return "each process reads a part of the images"
        if augment.mixes:
            return "images are mixed within a batch"
        if augment.varies and not spec.views:
            return "images are augmented anew in every pass; cache.views keeps some versions"
        views = spec.views if augment.varies else 1
        if spec.store == "auto" and phase.steps <= views * self.steps_per_epoch(phase.spec):
            return "no image comes twice"
        return ""

    def _cut(
        self, forward: Forward, trainable: frozenset[str], images: jax.ShapeDtypeStruct
    ) -> Cut | None:
        key = (trainable, forward.batch_norm, forward.frozen_dropout)
        cuts = self.shared.cuts
        if key not in cuts:
            pixels = jax.ShapeDtypeStruct(images.shape, np.float32)
            cuts[key] = find_cut(forward, pixels, trainable)
        return cuts[key]

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
        return None if source is None else lambda values: self._metrics(source, values, cut)

    def _prefix(self, cut: Cut) -> Program:
        program = self.shared.prefixes.setdefault(
            cut.name,
            jax.jit(lambda values, pixels: cut.features(values, pixels.astype("float32"))),
        )
        return lambda values, pixels: program(values, beside(values, pixels))

    def _judge(self, cut: Cut) -> Program:
        program = self.shared.judges.setdefault(
            cut.name, jax.jit(lambda values, features: cut(values, features, training=False)[0])
        )
        return lambda values, features: program(values, beside(values, features))

    def _labels(self, source: Source) -> np.ndarray:
        """The label column of every example, as batches of images have it."""
        labels = self.shared.labels
        if id(source) not in labels:
            encoded = [self.task.encode_label(label) for label in source.label_array]
            labels[id(source)] = source, np.stack(encoded)
        return labels[id(source)][1]

    def _features(
        self, cut: Cut, values: Values, batches: Batches, augment: AugmentSpec | None = None
    ) -> np.ndarray:
        """The outputs of the frozen part, [V, N, ...], computed where the store has none."""
        views = self.recipe.cache.views if augment is not None else 1
        key = cache_key(
            prefix=self.shared.fingerprint(cut, values),
            data=self.shared.content(cast(Source, batches.source)),
            preprocessing=self.model.preprocessing,
            dtype=self.recipe.cache.dtype,
            views=[views, augment, self.recipe.seed] if augment is not None else None,
            platform=[jax.default_backend(), jax.__version__],
        )
        program = self._prefix(cut)

        def fill(out: np.ndarray) -> None:
            since = time.perf_counter()
            fill_features(batches, lambda pixels: fetched(program(values, pixels)), out)
            self.note(
                f"computed once: {len(batches.source):,} images up to {cut.name}, "
                f"{out.nbytes / 1e6:,.1f} MB  {time.perf_counter() - since:.1f} s"
            )

        return self.store.get(key, (views, len(batches.source), *cut.shape), fill)


def _measuring(start: Forward | Cut) -> Any:
    """The same pass, with statistics that become the batch's own."""
    if isinstance(start, Cut):
        return replace(start, forward=replace(start.forward, largest_momentum=0.0))
    return replace(start, largest_momentum=0.0)


def training_pixels(
    recipe: Recipe, model: Model, task: ImageClassification, splits: Splits
) -> Iterator[np.ndarray]:
    """Yields the training images in batches, in an order of their own."""
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
