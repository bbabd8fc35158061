"""From a phase of the plan to the batches of texts that its steps run on, and to their metrics."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import jax
import keras
import numpy as np

from tunekit.beside_base import Watched
from tunekit.data.examples import Source, Splits
from tunekit.data.packing import Packing
from tunekit.data.sequences import SequenceBatches, buckets
from tunekit.data.spec import BatchSpec
from tunekit.errors import DataError, ModelError
from tunekit.evaluation.text import evaluate
from tunekit.inspection import preflight_lines
from tunekit.methods.intercept import Wrap
from tunekit.models.forward import Forward
from tunekit.models.generation import Generator
from tunekit.models.model import Model
from tunekit.models.remat import rematerialised
from tunekit.models.tokenizing import Tokenizer
from tunekit.plans.phase import Phase
from tunekit.plans.resolve import ResolvedPhase
from tunekit.recipe import Recipe
from tunekit.tasks.language_modelling import LanguageModelling
from tunekit.tasks.text_task import TextTask
from tunekit.text_answers import longest
from tunekit.training.feed import Feed
from tunekit.training.step import Values


@dataclass(eq=False)
class TextFeeder:
    """Makes the feeds of one run's phases, from texts."""

    recipe: Recipe
    model: Model
    task: TextTask
    splits: Splits
    tokenizer: Tokenizer
    note: Callable[[str], None] = lambda text: None
    """Told in a line of what is computed before the first step."""
    prepared: dict[tuple[int, int, bool], tuple[Source, Source]] = field(default_factory=dict)
    """By the identity of a source, its longest text and whether it is trained on: it, and what
    batches are of."""
    batches: dict[BatchSpec, SequenceBatches] = field(default_factory=dict)
    """Of the training data, by what phases ask of them."""

    @classmethod
    def of(cls, recipe: Recipe, model: Model, task: TextTask, splits: Splits) -> TextFeeder:
        """Returns the feeder of a model that has a tokenizer; nothing is read yet.

        Raises:
            ModelError: texts may be longer than the model's positions.
        """
        longest(recipe.batch, model)
        return cls(recipe, model, task, splits, model.backbone.text_tokenizer())

    @cached_property
    def max_length(self) -> int:
        """Most tokens of a text; first asked for when the model has its adapters."""
        return longest(self.recipe.batch, self.model)

    @cached_property
    def forward(self) -> Forward:
        """The pass of the whole model, with its depth groups and adapters."""
        return self.model.forward()

    @cached_property
    def _remat(self) -> Mapping[keras.Layer, Wrap]:
        body = self.model.keras.get_layer("backbone")
        return rematerialised(body, self.recipe.runtime.remat)

    def sibling(self, recipe: Recipe) -> TextFeeder:
        """Returns a feeder over the same model and data, of another recipe."""
        return replace(self, recipe=recipe, prepared={}, batches={})

    def check_answers(self) -> None:
        """Passes where the model can answer prompts, or none are to be answered.

        Raises:
            ModelError: it cannot; training would come to an end at its first evaluation.
        """
        if not self._answers:
            return
        try:
            Generator(self.model)
        except ModelError as error:
            raise ModelError(
                f"{error} To train it without answers beside the base's, set task.samples: 0."
            ) from error

    @property
    def _answers(self) -> bool:
        judged = self.splits.validation is not None or self.splits.test is not None
        return judged and isinstance(self.task, LanguageModelling) and self.task.samples > 0

    def preflight(self) -> list[str]:
        """Returns what is to be known of the texts before the first step, in a few lines."""
        return preflight_lines(self.task, self.splits, self.tokenizer, self.max_length)

    def steps_per_epoch(self, phase: Phase) -> int:
        """Returns the optimizer steps of one pass over the training data in `phase`."""
        return self._training_batches(phase).steps_per_epoch

    def feed(self, phase: ResolvedPhase) -> Feed:
        """Returns the feed of a phase."""
        if phase.spec.batch_norm == "reestimated":
            raise ModelError(
                "batch_norm: 'reestimated' measures the statistics of BatchNorm layers, which "
                "networks of texts do not have; leave it out."
            )
        batches = self._training_batches(phase.spec)
        batch = phase.spec.batch or self.recipe.batch
        if batch.packing:
            rows = batches.packed
            count = f"{len(batches.source):,} texts in {len(rows):,} rows"
            self.note(f"packed: {count}, {rows.fill:.0%} full")
        forward = replace(
            self.forward,
            batch_norm=phase.spec.batch_norm,
            frozen_dropout=phase.spec.frozen_dropout,
            remat=self._remat,
        )
        *others, columns = [_columns(batches.shapes(bucket)) for bucket in batches.buckets]
        return Feed(
            forward=forward,
            objective=self.task,
            columns=columns,
            other_columns=others,
            steps_per_epoch=batches.steps_per_epoch,
            open=lambda values: batches,
            accumulate=batch.micro_batches,
            evaluate=self._evaluate(),
            reason="texts are of several lengths",
            monitor=self.task.monitor,
            program=self.task,
        )

    def metrics(
        self, source: Source, values: Values, phase: ResolvedPhase | None = None
    ) -> dict[str, Any]:
        """Returns the metrics of the model with `values` on the examples of `source`."""
        del phase  # Images have outputs of its frozen part at hand.
        return self.judged(source, values)

    def judged(self, source: Source, values: Values | None = None) -> dict[str, Any]:
        """Returns the metrics on `source` with `values`, or of the model as it is."""
        batches = self.judging_batches(source).epoch(0)
        return evaluate(self.task, source, batches, lambda inputs: self.model.apply(inputs, values))

    def judging_batches(self, source: Source) -> SequenceBatches:
        """Returns the examples of `source` in order, each once."""
        batch = self.recipe.batch
        size = batch.size // batch.micro_batches
        return self._batches(source, batch, training=False, size=size)

    def training_inputs(self) -> Iterator[dict[str, np.ndarray]]:
        """Yields what the model takes of the training data, in an order of their own."""
        spec = replace(self.recipe.batch, packing=False, balanced=False)
        size = min(spec.size, len(self.splits.train))
        for batch in self._batches(self.splits.train, spec, training=True, size=size).epoch(0):
            yield self.task.inputs(batch)

    def _evaluate(self) -> Callable[[Values], Mapping[str, Any]] | None:
        source = self.splits.validation
        if source is None:
            return None

        def evaluated(values: Values) -> dict[str, Any]:
            found = self.metrics(source, values)
            if self._answers and self.recipe.runtime.progress != "none":
                for line in self._watched.lines(values):
                    self.note(line)
            return found

        return evaluated

    @cached_property
    def _watched(self) -> Watched:
        """The prompts that are answered while training lasts; the base answers them once."""
        assert isinstance(self.task, LanguageModelling) and self.splits.validation is not None
        return Watched(self.model, self.task, self.splits.validation)

    def _training_batches(self, phase: Phase) -> SequenceBatches:
        """The batches of a phase; which texts share a row is found once for all that pack."""
        batch = phase.batch or self.recipe.batch
        if batch not in self.batches:
            self.batches[batch] = self._batches(self.splits.train, batch, training=True)
        return self.batches[batch]

    def _batches(
        self, source: Source, batch: BatchSpec, *, training: bool, size: int | None = None
    ) -> SequenceBatches:
        """The examples of `source`, `size` at a time or as the spec says; packed to train alone."""
        length = longest(batch, self.model)
        return SequenceBatches(
            self._prepared(source, length, training=training),
            self.task.encoder(self.tokenizer, length),
            batch_size=size or batch.size,
            seed=self.recipe.seed,
            shuffle=training,
            buckets=buckets(length),
            pad_id=self.tokenizer.pad_id,
            balanced=batch.balanced and training,
            workers=batch.workers,
            prefetch=batch.prefetch,
            packing=Packing(length) if batch.packing and training else None,
        )

    def _prepared(self, source: Source, length: int, *, training: bool) -> Source:
        """What batches are made of: the examples, or windows or pairs of them; made once."""
        key = (id(source), length, training)
        if key not in self.prepared:
            found = self.task.prepared(
                source, self.tokenizer, length, training=training, seed=self.recipe.seed
            )
            if not len(found):
                raise DataError("data: nothing is left to train on once the texts are encoded")
            self.prepared[key] = source, found
        return self.prepared[key][1]


def _columns(shapes: Mapping[str, tuple[tuple[int, ...], Any]]) -> dict[str, jax.ShapeDtypeStruct]:
    return {name: jax.ShapeDtypeStruct(*shape) for name, shape in shapes.items()}
