"""The memory of a phase: of the arrays that there are, and of the program that runs."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import pytest

from tests.unit.training.small import small_model, small_trainer
from tunekit.plans.optimizer import OptimizerSpec
from tunekit.plans.phase import Phase
from tunekit.training.members import Members
from tunekit.training.memory import memory_text, step_memory, temporary_bytes
from tunekit.training.progress import SilentReporter
from tunekit.training.step import Carried

FLOAT = 4
HEAD = 8 * 3 + 3
ALL = (4 * 8 + 8) + (8 * 8 + 8) + 2 * (8 + 8) + HEAD
STATISTICS = 2 * (8 + 8)
SEEDS = 2 * 2


class Heard(SilentReporter):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


def head_then_all(**changes: Any):
    plan = [Phase(train="head/.*", steps=2, warmup="0%"), Phase(train=".*", steps=2, warmup="0%")]
    return small_trainer(small_model(), plan, **changes)


def test_each_phase_records_the_bytes_of_what_it_holds():
    heard = Heard()
    head, everything = [each["memory"] for each in head_then_all(reporter=heard).fit().phases]
    assert head["trained"] == HEAD * FLOAT
    assert everything["trained"] == ALL * FLOAT
    assert head["trained"] + head["frozen"] == everything["trained"] + everything["frozen"]
    assert everything["frozen"] == (STATISTICS + SEEDS) * FLOAT
    # Two moments a parameter; a count of steps for each variable at most.
    assert 2 * HEAD * FLOAT <= head["optimizer"] <= 2 * HEAD * FLOAT + 64
    assert everything["activations"] > head["activations"] > 0
    assert [note.split()[0] for note in heard.notes] == ["weights", "weights"]


def test_moving_averages_count_as_the_optimizers():
    plain = head_then_all().fit().phases[1]["memory"]
    averaged = head_then_all(optimizer=OptimizerSpec(ema=0.9)).fit().phases[1]["memory"]
    assert averaged["optimizer"] - plain["optimizer"] == ALL * FLOAT


def test_activations_are_those_that_xla_allocates():
    def step(x: jax.Array) -> jax.Array:
        return jnp.sort(jnp.sin(x) @ x.T).sum()

    rows = jnp.ones((64, 64))
    program = jax.jit(step).lower(rows).compile()
    memory = step_memory(Carried({"w": rows}, {}, {}, {}), {}, temporary_bytes(program))
    assert memory["activations"] == program.memory_analysis().temp_size_in_bytes
    assert (memory["activations"] or 0) >= rows.nbytes
    assert (memory["trained"], memory["frozen"], memory["optimizer"]) == (rows.nbytes, 0, 0)


def test_members_at_once_count_what_they_share_once():
    first, second = head_then_all(seed=0), head_then_all(seed=1)
    alone = head_then_all().fit().phases[0]["memory"]
    second.forward = second.programs.forward = first.forward
    both = Members([first, second]).fit()
    memory = both[0].trained.phases[0]["memory"]
    assert memory == both[1].trained.phases[0]["memory"]
    assert memory["trained"] == 2 * alone["trained"]
    assert memory["frozen"] < 2 * alone["frozen"]


@pytest.mark.parametrize(
    ("memory", "text"),
    [
        ((85_000_000, 1_000_000, 1_230_000, 410e6), "86 MB, optimizer 1.2 MB, activations 410 MB"),
        ((0, 15_372, 30_744, 0), "15 kB, optimizer 31 kB, activations 0 kB"),
        ((2_500_000_000, 0, 0, None), "2,500 MB, optimizer 0 kB"),
    ],
)
def test_the_line_says_it_in_megabytes(memory, text):
    names = ("frozen", "trained", "optimizer", "activations")
    assert memory_text(dict(zip(names, memory, strict=True))) == f"weights {text}"
