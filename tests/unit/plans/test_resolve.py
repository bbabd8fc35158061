"""Phases in steps, and the course of the learning rate."""

from __future__ import annotations

import numpy as np
import pytest

from tunekit.errors import SelectionError
from tunekit.plans.phase import Phase
from tunekit.plans.resolve import resolve_plan


def rates(**phase) -> np.ndarray:
    phases = resolve_plan(
        [Phase(learning_rate=1.0, **phase)],
        lambda selectors: frozenset(selectors),
        default_train=("head",),
        steps_per_epoch=lambda phase: 10,
    )
    assert phases[0].trainable == {"head"}
    return phases[0].learning_rates


def test_cosine_equals_its_closed_form_after_a_linear_rise_that_wastes_no_step():
    course = rates(epochs=2, schedule="cosine", warmup="4 steps")
    assert len(course) == 20
    np.testing.assert_allclose(course[:4], [0.2, 0.4, 0.6, 0.8], rtol=1e-6)
    expected = 0.5 * (1 + np.cos(np.pi * np.arange(16) / 16))
    np.testing.assert_allclose(course[4:], expected, atol=1e-6)


def test_linear_falls_in_equal_steps_and_constant_stays():
    np.testing.assert_allclose(
        rates(steps=5, schedule="linear", warmup="0%"), [1, 0.8, 0.6, 0.4, 0.2], atol=1e-6
    )
    np.testing.assert_array_equal(rates(steps=5, schedule="constant", warmup="0%"), 1)


def test_one_cycle_rises_to_the_rate_and_ends_far_below_its_start():
    course = rates(steps=100, schedule="one_cycle")
    assert course.max() == pytest.approx(1, abs=1e-3)
    assert course[0] > 10 * course[-1]
    assert 20 < course.argmax() < 40


def test_an_error_of_selection_says_which_phase():
    def select(selectors):
        raise SelectionError("'hed' matches nothing.")

    with pytest.raises(SelectionError, match=r"plan\[0\]\.train: 'hed' matches nothing"):
        resolve_plan(
            [Phase(train="hed", epochs=1)],
            select,
            default_train=(),
            steps_per_epoch=lambda phase: 1,
        )
