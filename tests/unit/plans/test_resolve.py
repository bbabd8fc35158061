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


def resolved(*plan: Phase, steps_per_epoch=10):
    """Phases over the names a, b and c; a selector is the names that it is spelt with."""

    def select(selectors):
        if unknown := set("".join(selectors)) - set("abc"):
            raise SelectionError(f"'{min(unknown)}' matches nothing.")
        return frozenset("".join(selectors))

    return resolve_plan(
        plan, select, default_train=("abc",), steps_per_epoch=lambda phase: steps_per_epoch
    )


def test_the_first_multiplier_that_selects_a_variable_counts_and_the_rest_have_one():
    (phase,) = resolved(Phase("abc", steps=1, multipliers={"a": 0.5, "ab": 0.1}))
    assert phase.multipliers == {"a": 0.5, "b": 0.1, "c": 1.0}


def test_only_what_trains_has_a_multiplier():
    (phase,) = resolved(Phase("b", steps=1, multipliers={"ab": 0.1}))
    assert phase.multipliers == {"b": 0.1}


def test_a_multiplier_that_selects_nothing_is_an_error_with_its_phase():
    with pytest.raises(SelectionError, match=r"plan\[1\]\.multipliers: 'z' matches nothing"):
        resolved(Phase("a", steps=1), Phase("a", steps=1, multipliers={"z": 2.0}))


def test_phases_that_continue_share_one_course_each_times_its_own_rate():
    alone = resolved(Phase("a", steps=10, learning_rate=1.0, warmup="0%"))[0].learning_rates
    parts = resolved(
        Phase("a", steps=4, learning_rate=1.0, warmup="0%"),
        Phase("b", steps=3, learning_rate=0.1, schedule="continue"),
        Phase("a", steps=3, learning_rate=1.0, schedule="continue", warmup="50%"),
    )
    assert [phase.steps for phase in parts] == [4, 3, 3]
    np.testing.assert_allclose(parts[0].learning_rates, alone[:4], rtol=1e-6)
    np.testing.assert_allclose(parts[1].learning_rates, alone[4:7] * 0.1, rtol=1e-6)
    np.testing.assert_allclose(parts[2].learning_rates, alone[7:], rtol=1e-6)


def test_a_phase_with_a_schedule_of_its_own_starts_a_new_course():
    first, _, third = resolved(
        Phase("a", steps=4, schedule="linear"),
        Phase("b", steps=4, schedule="continue"),
        Phase("a", steps=8, schedule="linear"),
    )
    np.testing.assert_array_equal(third.learning_rates[:4], first.learning_rates)


def test_a_phase_keeps_its_spec_and_is_as_long_as_its_own_batches_make_it():
    spec = Phase("a", epochs=2, early_stopping=3)
    (phase,) = resolved(spec, steps_per_epoch=7)
    assert (phase.spec, phase.steps, phase.patience, phase.label) == (spec, 14, 3, "a")


def test_rates_are_float32():
    (phase,) = resolved(Phase(steps=3))
    assert phase.learning_rates.dtype == np.float32
