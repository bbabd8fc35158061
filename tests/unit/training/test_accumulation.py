"""The fewest micro-batches that fit, and how little is asked to find them."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest

from tunekit.training.accumulation import device_bytes, fewest, micro_batch_counts, step_bytes


def test_micro_batches_divide_the_batch_and_each_its_devices():
    assert micro_batch_counts(12) == [1, 2, 3, 4, 6, 12]
    assert micro_batch_counts(12, shards=2) == [1, 2, 3, 6]
    assert micro_batch_counts(12, shards=8) == []
    assert micro_batch_counts(7) == [1, 7]


@pytest.mark.parametrize("least", [1, 2, 3, 4, 6, 7, 12, 13])
def test_the_first_that_fits_is_found_by_few_questions(least):
    counts, asked = micro_batch_counts(12), []

    def fits(count: int) -> bool:
        asked.append(count)
        return count >= least

    assert fewest(counts, fits) == next((c for c in counts if c >= least), None)
    assert len(asked) == len(set(asked)) <= 4
    assert fewest([], fits) is None


@pytest.mark.parametrize(("donated", "arrays"), [((), 2), ((0,), 1)])
def test_a_step_holds_its_arguments_and_the_results_that_do_not_take_their_place(donated, arrays):
    program = jax.jit(lambda x: x + 1, donate_argnums=donated).lower(jnp.ones((512, 512))).compile()
    assert step_bytes(program) == arrays * 512 * 512 * 4


def test_what_is_in_memory_already_is_no_more_to_take(monkeypatch):
    monkeypatch.setattr("tunekit.training.memory.available_memory", lambda: 1000)
    share = 1 / len(jax.local_devices())
    assert device_bytes(0) == int(900 * share)
    assert device_bytes(1000) == int(1800 * share)
