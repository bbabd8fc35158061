"""Where the time of a run goes: parts that add up, and a verdict on what bounds it."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.unit.training.small import Rows, small_model, small_trainer
from tunekit.plans.phase import Phase
from tunekit.report.profile_text import profile_lines, profile_rows
from tunekit.training.checkpoints import Checkpoints
from tunekit.training.operations import operations
from tunekit.training.profiling import Profile
from tunekit.training.progress import SilentReporter
from tunekit.training.spec import RuntimeSpec, traced_steps
from tunekit.training.timeline import PARTS, Timeline, _shares


class Slow(Rows):
    """Batches that are there after some seconds each."""

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self.seconds = seconds

    def epoch(self, epoch: int, start_step: int = 0) -> Iterator[dict[str, np.ndarray]]:
        """Yields the batches, each after a while."""
        for batch in super().epoch(epoch, start_step):
            time.sleep(self.seconds)
            yield batch


class End(SilentReporter):
    """Knows when training ended; afterwards the device's peak is measured."""

    at = 0.0

    def close(self) -> None:
        """Looks at the clock."""
        self.at = time.perf_counter()


JUDGING = 0.05
"""Seconds of each evaluation."""


def judge(values: Any) -> dict[str, float]:
    jax.block_until_ready(values)  # What the last step still takes is the step's time.
    time.sleep(JUDGING)
    return {"accuracy": 0.5}


@pytest.fixture(scope="module")
def profiled(tmp_path_factory) -> tuple[dict[str, Any], float, Path]:
    """The profile of a run with two phases, an evaluation and checkpoints, its seconds, folder."""
    folder = tmp_path_factory.mktemp("run")
    plan = [
        Phase(train="head/.*", epochs=2, learning_rate=0.01),
        Phase(train=".*", epochs=3, learning_rate=0.01),
    ]
    checkpoints = Checkpoints(folder / "checkpoints", identity={}, keep=1)
    ended, model = End(), small_model()
    since = time.perf_counter()
    trained = small_trainer(
        model,
        plan,
        profile=Profile(folder / "profile", range(4, 7)),
        evaluate=judge,
        reporter=ended,
        checkpoints=checkpoints,
        runtime=RuntimeSpec(restore_best=False),
    ).fit()
    checkpoints.close()
    assert trained.profile is not None
    return trained.profile, ended.at - since, folder / "profile"


def test_the_parts_add_up_to_the_time_of_the_run(profiled):
    profile, seconds, _ = profiled
    parts = profile["seconds"]
    assert sum(parts[part] for part in PARTS) == pytest.approx(parts["total"], rel=1e-6)
    assert parts["total"] == pytest.approx(seconds, rel=0.05)
    # The thread that waits for the last step may hear of its end a little late.
    assert parts["evaluation"] > 5 * JUDGING / 2
    assert min(parts[part] for part in ("compile", "step", "checkpoint")) > 0
    assert profile["first_step_seconds"] < parts["total"]


def test_the_summary_and_a_trace_of_the_steps_named_are_written(profiled):
    profile, _, folder = profiled
    assert json.loads((folder / "summary.json").read_text()) == profile
    assert profile["traced_steps"] == [4, 7] and profile["trace"] == str(folder)
    assert len(list(folder.rglob("*.xplane.pb"))) == 1


def test_operations_are_those_of_the_steps(profiled):
    profile = profiled[0]
    trainer = small_trainer(small_model(), [Phase(train=".*"), Phase(train="head/.*")])
    whole, head = (
        operations(trainer.programs.step(i).traced(*trainer.programs.arguments(i)).jaxpr.jaxpr)
        for i in (0, 1)
    )
    assert profile["steps"] == 15 and head < whole
    assert profile["operations_per_step"] == pytest.approx((6 * head + 9 * whole) / 15)
    assert profile["share_of_peak"] == pytest.approx(
        profile["operations_per_second"] / profile["peak_operations_per_second"]
    )


def test_a_source_slower_than_the_steps_bounds_the_run():
    trainer = small_trainer(
        small_model(), [Phase(train=".*", epochs=4)], batches=Slow(0.1), profile=Profile()
    )
    profile = trainer.fit().profile
    assert profile is not None
    assert profile["bound"] == "input" and profile["waiting_share"] > 0.5
    assert profile["seconds"]["input"] > 10 * 0.1
    assert profile_lines(profile)[-1].startswith("Input-bound")
    assert profile["trace"] is None


def test_batches_that_are_waited_for_while_a_step_runs_cost_nothing():
    timeline = Timeline()

    class Result:
        def block_until_ready(self) -> None:
            time.sleep(0.3)

    timeline.step(Result())
    with timeline.part("input"):
        time.sleep(0.1)
    seconds = timeline.seconds()
    timeline.close()
    assert seconds["input"] < 0.05 and seconds["step"] > 0.25


def test_a_run_whose_steps_are_the_longer_is_bound_by_them():
    profile = Profile()
    heavy = jax.jit(lambda x: jax.lax.fori_loop(0, 40, lambda _, y: x @ y / 600, x).sum())
    x = jnp.ones((600, 600))
    heavy(x).block_until_ready()
    for _ in profile.waiting(range(5)):
        profile.before_step()
        profile.after_step(heavy(x), 1.0)
    found = profile.summary()
    assert found["bound"] == "compute" and found["waiting_share"] < 0.1
    assert profile_lines(found)[-1].startswith("Compute-bound")


def test_time_in_which_a_step_runs_is_the_steps():
    spans: list[Any] = [("input", 0.0, 4.0), ("compile", 4.0, 6.0), ("other", 6.0, 7.0)]
    busy = [(1.0, 2.0), (3.0, 5.0), (6.5, 9.0)]
    assert list(_shares(spans, busy)) == [
        ("input", 2.0, 2.0),
        ("compile", 1.0, 1.0),
        ("other", 0.5, 0.5),
    ]


def test_a_run_that_fails_ends_its_trace(tmp_path):
    trainer = small_trainer(
        small_model(),
        [Phase(train=".*", epochs=3)],
        profile=Profile(tmp_path, range(0, 100)),
        evaluate=lambda values: {},
    )
    with pytest.raises(Exception, match="evaluation gives no"):
        trainer.fit()
    # JAX has one trace at a time: another could not begin.
    jax.profiler.start_trace(str(tmp_path / "another"))
    jax.profiler.stop_trace()


def test_the_table_has_a_row_a_part(profiled):
    rows = profile_rows(profiled[0])
    assert [row[0] for row in rows] == [*PARTS, "in all"]
    assert "GFLOP/s" in profile_lines(profiled[0])[1]


def test_steps_of_a_trace_are_first_and_end():
    assert traced_steps("10:13") == range(10, 13)
    for wrong in ("10", "3:3", "a:b", "1:2:3", "-1:2"):
        with pytest.raises(ValueError, match="expected steps as FIRST:END"):
            traced_steps(wrong)
    assert RuntimeSpec(profile_steps="5:2").issues()[0][0] == "profile_steps"


def test_what_no_result_depends_on_is_no_operation():
    def step(x: jax.Array) -> jax.Array:
        _ = jnp.tanh(x @ x) @ x
        kept, _ = jax.jit(lambda y: (y @ x, y @ x @ x))(x)
        looped, _ = jax.lax.scan(lambda y, _: (y @ x, y @ x @ x), kept, None, length=3)
        return looped

    found = operations(jax.jit(step).trace(jnp.ones((8, 8))).jaxpr.jaxpr)
    assert found == (1 + 3) * 2 * 8**3
