"""Rates over time and depth, against the formulas of the projects that they come from."""

from __future__ import annotations

import math

import numpy as np
import optax
import pytest

from tunekit.models.depth import Group
from tunekit.plans.rates import (
    course,
    depth_ranks,
    even_multipliers,
    layer_scales,
    one_cycle,
    slanted_triangular,
)


@pytest.mark.parametrize(
    ("lo", "hi", "count", "expected"),
    [
        # fastai's even_mults: start * (stop / start) ** (i / (n - 1)).
        (1e-5, 1e-3, 3, [1e-5, 1e-4, 1e-3]),
        (1.0, 8.0, 4, [1.0, 2.0, 4.0, 8.0]),
        (1e-6, 1e-2, 5, [1e-6, 1e-5, 1e-4, 1e-3, 1e-2]),
        (3e-3, 3e-3, 2, [3e-3, 3e-3]),
        (1e-5, 1e-3, 1, [1e-3]),
    ],
)
def test_even_multipliers_are_those_of_fastai(lo, hi, count, expected):
    np.testing.assert_allclose(even_multipliers(lo, hi, count), expected, rtol=1e-12)


@pytest.mark.parametrize(
    ("step", "expected"),
    [
        # T = 1000, cut = 100: equation 3 by hand.
        (0, 1 / 32),
        (50, (1 + 0.5 * 31) / 32),
        (99, (1 + 0.99 * 31) / 32),
        (100, 1.0),
        (550, (1 + 0.5 * 31) / 32),
        (999, (1 + 31 / 900) / 32),
    ],
)
def test_the_slanted_triangle_is_equation_3_of_howard_and_ruder(step, expected):
    assert slanted_triangular(1000)[step] == pytest.approx(expected, rel=1e-12)


def test_the_slanted_triangle_takes_its_cut_and_ratio():
    course = slanted_triangular(8, cut_fraction=0.5, ratio=2.0)
    np.testing.assert_allclose(course, [0.5, 0.625, 0.75, 0.875, 1, 0.875, 0.75, 0.625])


@pytest.mark.parametrize("steps", [1, 2, 9, 10, 19, 29, 101])
def test_a_short_triangle_neither_divides_by_zero_nor_falls_below_its_lowest_rate(steps):
    rates = slanted_triangular(steps)
    assert len(rates) == steps
    assert min(rates) >= 1 / 32 and max(rates) <= 1


@pytest.mark.parametrize("steps", [1, 3, 10, 100])
def test_one_cycle_is_that_of_optax(steps):
    schedule = optax.cosine_onecycle_schedule(steps, 1.0)
    expected = [float(schedule(step)) for step in range(steps)]
    np.testing.assert_allclose(one_cycle(steps), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("constant", [1 / 3, 2 / 3, 1, 1, 1, 1]),
        ("linear", [1 / 3, 2 / 3, 1, 0.75, 0.5, 0.25]),
        ("cosine", [1 / 3, 2 / 3, *(0.5 * (1 + math.cos(math.pi * i / 4)) for i in range(4))]),
    ],
)
def test_a_course_rises_through_its_warmup_and_then_follows_its_schedule(schedule, expected):
    np.testing.assert_allclose(course(schedule, 6, 2), expected, rtol=1e-12)


@pytest.mark.parametrize("schedule", ["one_cycle", "slanted_triangular"])
def test_a_course_with_a_rise_of_its_own_has_no_warmup(schedule):
    assert course(schedule, 50, 20) == course(schedule, 50)


def test_layer_scales_are_powers_of_the_factor_from_the_head_down():
    assert layer_scales(0.5, 4) == [0.125, 0.25, 0.5, 1.0]


def test_the_top_ranks_with_the_last_block_and_the_heads_above_all():
    kinds = {"stem": "stem", "blocks[0]": "block", "blocks[1]": "block", "top": "top"}
    groups = [
        Group(name, kind, (), (), None, 0, ())
        for name, kind in {**kinds, "heads/a": "head", "heads/b": "head"}.items()
    ]
    expected = {"stem": 0, "blocks[0]": 1, "blocks[1]": 2, "top": 2, "heads/a": 3, "heads/b": 3}
    assert depth_ranks(groups) == expected
    assert depth_ranks(groups[1:]) == {n: r for n, r in expected.items() if n != "stem"}
