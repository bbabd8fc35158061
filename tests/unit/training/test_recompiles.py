"""A program that nobody expected is explained, and counted."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import jax
import numpy as np
import pytest

from tests.unit.training.small import Rows, small_model, small_trainer
from tunekit.plans.phase import Phase
from tunekit.training.progress import SilentReporter
from tunekit.training.recompiles import changes

PLAN = [Phase(train=".*", epochs=1, warmup="0%")]


class Odd(Rows):
    """Rows whose last batch is short."""

    def epoch(self, epoch: int, start_step: int = 0) -> Iterator[dict[str, np.ndarray]]:
        """Yields the batches; of the last one its first six rows."""
        for step, batch in enumerate(super().epoch(epoch, start_step)):
            yield {n: c[:6] for n, c in batch.items()} if step == 2 else batch


class Lines(SilentReporter):
    """Keeps the notes."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        """Keeps the line."""
        self.notes.append(text)


def test_a_batch_of_another_shape_is_told_of_with_what_changed_and_what_to_do():
    lines = Lines()
    trained = small_trainer(small_model(), PLAN, batches=Odd(), reporter=lines).fit()
    (found,) = trained.unexpected
    assert trained.compiles == 2
    assert (found.phase, found.step) == (0, 2)
    assert found.changes == (
        "column 'label' is int32[6], expected int32[8]",
        "column 'weight' is float32[6], expected float32[8]",
        "column 'x' is float32[6, 4], expected float32[8, 4]",
    )
    (line,) = (note for note in lines.notes if "compiled anew" in note)
    assert line == found.line() and "rows of weight 0" in line
    assert found.to_json()["seconds"] == found.seconds > 0


def test_batches_of_the_shapes_that_a_feed_names_are_expected():
    trainer = small_trainer(small_model(), PLAN, batches=Odd())
    (feed,) = trainer.feeds
    short = {n: jax.ShapeDtypeStruct((6, *c.shape[1:]), c.dtype) for n, c in feed.columns.items()}
    trainer.programs.feeds = [replace(feed, other_columns=[short])]
    trained = trainer.fit()
    assert trained.compiles == 2 and trained.unexpected == ()


def test_a_run_of_one_shape_has_no_unexpected_program():
    assert small_trainer(small_model(), PLAN).fit().unexpected == ()


@pytest.mark.parametrize(
    ("batch", "expected"),
    [
        ({"x": np.zeros(3)}, ()),
        ({"x": np.zeros(4)}, ()),
        ({"x": np.zeros(3, np.float32)}, ("column 'x' is float32[3], expected float64[3]",)),
        (
            {"x": np.zeros(3), "y": np.zeros((2, 1), bool)},
            ("column 'y' (bool[2, 1]) is new",),
        ),
        ({}, ("column 'x' (float64[3]) is missing",)),
    ],
)
def test_the_likest_of_the_expected_batches_is_compared_with(
    batch: dict[str, Any], expected: tuple[str, ...]
):
    assert changes(batch, [{"x": np.zeros(3)}, {"x": np.zeros(4)}]) == expected
