"""YAML as recipes are written in it, and overrides."""

from __future__ import annotations

import math
from typing import Any

import pytest
import yaml

from tunekit.errors import Issue
from tunekit.recipe_text import dump, override, parse


def read(text: str) -> Any:
    issues: list[Issue] = []
    value = parse(text, issues, where="my.yaml")
    assert issues == []
    return value


def complaints(text: str) -> list[str]:
    issues: list[Issue] = []
    parse(text, issues, where="my.yaml")
    return [str(issue) for issue in issues]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4),  # text to YAML 1.1, which wants 1.0e-4
        ("-.5E+2", -50.0),
        ("3.", 3.0),
        ("3", 3),
        ("010", 10),  # eight to YAML 1.1
        ("no", "no"),  # false to YAML 1.1, and a fine name of a label
        ("on", "on"),
        ("1:30", "1:30"),  # ninety to YAML 1.1
        ("2024-01-31", "2024-01-31"),  # a date to YAML 1.1
        ("1_000", "1_000"),  # a thousand to YAML 1.1
        ("true", True),
        ("~", None),
        ("", None),
        ("'3'", "3"),
        ("!!str 3", "3"),
        (".inf", math.inf),
        ("-.inf", -math.inf),
        ("[head, last 2]", ["head", "last 2"]),
    ],
)
def test_scalars_follow_yaml_1_2(text: str, value: object) -> None:
    got = read(text)
    assert (got, type(got)) == (value, type(value))


def test_not_a_number_is_read_as_itself() -> None:
    assert math.isnan(read(".nan"))


def test_keys_are_text_whatever_yaml_1_1_takes_them_for() -> None:
    assert read("on: 1\n2: b") == {"on": 1, "2": "b"}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a: [1", "my.yaml, line 1, column 6 is not YAML: while parsing a flow sequence"),
        ("a: 1\nb:\tc\n\td: 1", "my.yaml, line 2, column 3 is not YAML"),
        ("a: *b", "undefined alias 'b'"),
        ("a: 1\n---\nb: 2", "expected a single document"),
        ("a: \x00", "my.yaml is not YAML: special characters are not allowed"),
        ("a: 1\nb:\n  c: 1\n  c: 2", "b.c: line 4: given a second time; keep one."),
        ("a: !!python/object:os.system x", "a: line 1: a recipe has no tags, got 'tag:yaml.org"),
        ("a: !!int x", "a: line 1: a recipe has no tags"),
        ("a: !mine [1]", "a: line 1: a recipe has no tags, got '!mine'."),
        ("a: &b [*b]", "a[0]: line 1: an alias of what it stands in."),
        ("? [a]\n: 1", "line 1: expected the name of a field before the colon."),
    ],
)
def test_what_is_no_recipe_text_is_said_with_its_line(text: str, expected: str) -> None:
    (complaint,) = complaints(text)
    assert expected in complaint


def test_every_duplicate_key_is_reported() -> None:
    assert len(complaints("a: 1\na: 2\nb: {c: 1, c: 2}")) == 2


NASTY = ["no", "1e-4", "1", "null", "", "~", "a: b", "0x1", "1:30", "true", "é", ".inf", "x\ny"]


def test_what_is_written_is_read_back_equal() -> None:
    tree = {
        "labels": NASTY,
        "plan": [{"rate": 1e-5, "train": ["a"]}, {"n": None}],
        "e": [],
        "d": {},
    }
    assert read(dump(tree)) == tree


def test_what_is_written_means_the_same_to_readers_of_yaml_1_1() -> None:
    tree = {"labels": NASTY, "rates": [1e-5, 1e-4, 1e20, 3, 0.5], "flag": True}
    assert yaml.safe_load(dump(tree)) == tree


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("plan.0.epochs=2", {"plan": [{"epochs": 2}], "seed": 1}),
        ("plan[0].epochs=1e1", {"plan": [{"epochs": 10.0}], "seed": 1}),
        ("seed=", {"plan": [{"epochs": 1}], "seed": None}),
        ("data.path=a=b", {"plan": [{"epochs": 1}], "seed": 1, "data": {"path": "a=b"}}),
        ("a.b.c=[x, 1]", {"plan": [{"epochs": 1}], "seed": 1, "a": {"b": {"c": ["x", 1]}}}),
        ("plan.0={steps: 5}", {"plan": [{"steps": 5}], "seed": 1}),
    ],
)
def test_an_override_sets_the_value_at_its_path(text: str, expected: dict[str, Any]) -> None:
    tree = {"plan": [{"epochs": 1}], "seed": 1}
    issues: list[Issue] = []
    override(tree, text, issues)
    assert (tree, issues) == (expected, [])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("seed", "override 'seed' is not of the form path=value"),
        ("=3", "override '=3' is not of the form path=value"),
        ("plan..epochs=1", "is not of the form path=value"),
        ("plan.3.epochs=1", "plan[3]: the override has no place: plan has 1 item, 0."),
        ("plan.-1.epochs=1", "plan[-1]: the override has no place"),
        ("plan.epochs=1", "plan[epochs]: the override has no place"),
        ("labels.0=a", "labels[0]: the override has no place: labels has no items."),
        ("seed.x=1", "seed: is 1 and has no field 'x'; override seed itself."),
        ("seed=[1", "the value of override 'seed=[1', line 1, column 3 is not YAML"),
    ],
)
def test_an_override_without_a_place_is_reported_and_changes_nothing(
    text: str, expected: str
) -> None:
    tree = {"plan": [{"epochs": 1}], "seed": 1, "labels": []}
    issues: list[Issue] = []
    override(tree, text, issues)
    (issue,) = issues
    assert expected in str(issue)
    assert tree == {"plan": [{"epochs": 1}], "seed": 1, "labels": []}
