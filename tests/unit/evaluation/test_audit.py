"""The freeze audit against hand-computed changes."""

import json

import jax.numpy as jnp
import numpy as np
import pytest

from tunekit.evaluation.audit import audit
from tunekit.models.depth import Group

BODY = Group(
    name="blocks[0]",
    kind="block",
    variables=("b/kernel", "b/gamma", "b/moving_mean", "b/dropout/seed_generator_state"),
    layers=("b",),
    stage=None,
    parameters=4,
    weights=("b/kernel", "b/gamma"),
)
HEAD = Group("heads/label", "head", ("h/kernel", "h/bias"), ("h",), None, 3, ("h/kernel", "h/bias"))
GROUPS = (BODY, HEAD)
START = {
    "b/kernel": np.array([[3.0, 4.0]], np.float32),
    "b/gamma": np.array([1.0, -0.0], np.float32),
    "b/moving_mean": np.array([0.5], np.float32),
    "b/dropout/seed_generator_state": np.array([7, 0], np.uint32),
    "h/kernel": np.array([[3.0, 4.0]], np.float32),
    "h/bias": np.array([0.0], np.float32),
}


def audited(trained=("h/kernel", "h/bias"), **changes):
    after = {**START, **{name.replace("__", "/"): np.asarray(v) for name, v in changes.items()}}
    return audit(START, after, trained, GROUPS)


def test_relative_l2_of_a_group_and_of_its_largest_variable_are_those_of_the_formula():
    kernel, bias = np.float32([[3.0, 5.0]]), np.float32([0.75])
    head = audited(h__kernel=kernel, h__bias=bias)["groups"][1]
    assert head == {
        "group": "heads/label",
        "parameters": 3,
        "weights": 2,
        "trained": 2,
        "moved": 2,
        "relative_l2": pytest.approx(np.sqrt(1 + 0.75**2) / 5),
        "largest": {"name": "h/kernel", "relative_l2": pytest.approx(1 / 5)},
    }


def test_a_part_that_stood_still_moved_by_nothing():
    report = audited(h__kernel=np.float32([[3.0, 5.0]]))
    body = report["groups"][0]
    assert (body["relative_l2"], body["moved"], body["largest"]) == (0.0, 0, None)
    assert report["frozen"] == {"variables": 2, "moved": []}


def test_the_groups_are_in_depth_order():
    assert [row["group"] for row in audited()["groups"]] == ["blocks[0]", "heads/label"]


def test_a_frozen_weight_that_moved_in_one_bit_is_named():
    report = audited(b__gamma=np.float32([1.0, 0.0]))  # minus zero became zero
    assert report["frozen"] == {"variables": 2, "moved": ["b/gamma"]}
    assert report["groups"][0]["moved"] == 1


def test_a_moved_statistic_is_no_moved_weight():
    report = audited(b__moving_mean=np.float32([9.0]))
    assert report["statistics"] == {"variables": 1, "moved": ["b/moving_mean"]}
    assert report["frozen"]["moved"] == []
    assert (report["groups"][0]["moved"], report["groups"][0]["relative_l2"]) == (0, 0.0)


def test_a_random_seed_that_counted_on_is_no_part_of_the_audit():
    assert audited(b__dropout__seed_generator_state=np.uint32([7, 5])) == audited()


def test_the_change_of_what_was_zero_has_no_ratio():
    zeros = {**START, "h/kernel": np.zeros((1, 2), np.float32)}
    after = {**zeros, "h/kernel": np.ones((1, 2), np.float32)}
    head = audit(zeros, after, HEAD.weights, GROUPS)["groups"][1]
    assert (head["relative_l2"], head["largest"], head["moved"]) == (None, None, 1)


def test_sums_are_not_those_of_bfloat16():
    ones = {**START, "h/kernel": jnp.ones((1, 4096), jnp.bfloat16)}
    after = {**ones, "h/kernel": jnp.full((1, 4096), 1.5, jnp.bfloat16)}
    head = audit(ones, after, HEAD.weights, GROUPS)["groups"][1]
    assert head["relative_l2"] == pytest.approx(0.5)


def test_a_group_without_weights_moved_by_nothing():
    empty = Group("blocks[1]", "block", (), ("pool",), None, 0, ())
    row = audit(START, START, (), (empty,))["groups"][0]
    assert (row["relative_l2"], row["largest"]) == (0.0, None)


def test_an_audit_is_json():
    report = audited(h__kernel=jnp.float32([[3.0, 5.0]]))
    assert json.loads(json.dumps(report)) == report
