"""What a run shows, on a terminal and elsewhere."""

from __future__ import annotations

import io

import pytest

from tests.unit.training.small import small_model, small_trainer
from tunekit.plans.phase import Phase
from tunekit.training.progress import PlainReporter, RichReporter, reporter

PLAN = [Phase(train="head/.*", epochs=2, learning_rate=0.01, warmup="0%")]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("stream", "kind"), [(io.StringIO(), PlainReporter), (Terminal(), RichReporter)]
)
def test_a_terminal_gets_a_bar_and_a_log_gets_lines(stream, kind):
    assert type(reporter("auto", stream)) is kind


def test_lines_say_phase_share_and_every_pass():
    stream = io.StringIO()
    small_trainer(small_model(), PLAN, reporter=reporter("plain", stream)).fit()
    phase, memory, *rows = stream.getvalue().splitlines()
    assert phase == "phase 1/1: head/.*  27 parameters train (15.8%)  6 steps"
    assert memory.startswith("weights 1 kB, optimizer 0 kB, activations ")
    assert [row.split("  ")[0] for row in rows] == ["epoch 1", "epoch 2"]
    assert all("loss" in row and "examples/s" in row for row in rows)


def test_the_bar_ends_full_with_the_rows_above_it():
    stream = Terminal()
    small_trainer(small_model(), PLAN, reporter=reporter("rich", stream)).fit()
    shown = stream.getvalue()
    assert "epoch 2" in shown
    assert "6/6" in shown


def test_brackets_of_a_selector_are_shown_as_they_are():
    stream = Terminal()
    plan = [Phase(train="block[ab12]/.*", steps=1, learning_rate=0.01, warmup="0%")]
    small_trainer(small_model(), plan, reporter=reporter("rich", stream)).fit()
    assert "block[ab12]/.*" in stream.getvalue()


@pytest.mark.parametrize("kind", ["plain", "rich"])
def test_a_note_is_a_line_of_its_own(kind):
    stream = io.StringIO()
    shown = reporter(kind, stream)
    shown.note("computed once: 24 images")
    shown.close()
    assert "computed once: 24 images\n" in stream.getvalue()


def test_silence_prints_nothing(capsys):
    small_trainer(small_model(), PLAN, reporter=reporter("none")).fit()
    assert capsys.readouterr() == ("", "")


def test_within_a_long_pass_plain_lines_say_how_far_it_is():
    for every, lines in ((0.0, ["  step 4/9  loss 0.5000", "  step 5/9  loss 0.5000"]), (1e6, [])):
        stream = io.StringIO()
        shown = PlainReporter(stream, every_seconds=every)
        shown.start(steps=9, done=3)
        for _ in range(2):
            shown.step(loss=0.5, learning_rate=1e-3, examples=4)
        assert stream.getvalue().splitlines() == lines
