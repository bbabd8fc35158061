"""What a sweep varies: how values are said, and the recipe of every member."""

from __future__ import annotations

import re

import numpy as np
import pytest

from tests.contract.families import images
from tunekit import BatchSpec, Phase, Recipe, plans
from tunekit.data.source import open_data
from tunekit.data.spec import DataSpec
from tunekit.errors import RecipeError
from tunekit.sweep_members import member_recipes
from tunekit.sweep_space import Listed, Searched, Space, value_text, values_text

BASE = Recipe(plan=(Phase(epochs=1),), seed=5)


def read(said) -> Space:
    issues = []
    space = Space.read(said, issues)
    assert issues == []
    return space


def recipes(said, base: Recipe = BASE) -> list[Recipe]:
    issues = []
    space = Space.read(said, issues)
    return member_recipes(base, space, list(space.members()), issues)


def mistakes(said, base: Recipe = BASE) -> list[str]:
    with pytest.raises(RecipeError) as caught:
        recipes(said, base)
    return [str(issue) for issue in caught.value.issues]


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("1e-4,3e-4, 1e-3", (1e-4, 3e-4, 1e-3)),
        ("0..3", (0, 1, 2, 3)),
        ("-1..1,7", (-1, 0, 1, 7)),
        ('head,"last 2"', ("head", "last 2")),
        ("head,[head, last 2]", ("head", ["head", "last 2"])),
        ("{build: lp_ft},{build: layer_decay, factor: 0.5}",
         ({"build": "lp_ft"}, {"build": "layer_decay", "factor": 0.5})),
        ("'a, b',null,true", ("a, b", None, True)),
        ("linear(x),mlp", ("linear(x)", "mlp")),
    ],
)  # fmt: skip
def test_values_are_listed_between_commas_outside_brackets_and_quotes(text, values):
    assert read([f"here={text}"]).ranges == {"here": Listed(values)}


def test_one_value_is_an_override_and_no_axis():
    space = read(["seed=0..1", "data.path=../photos", "head.kind=mlp", "batch.size=4,8"])
    assert space.constants == {"data.path": "../photos", "head.kind": "mlp"}
    assert space.axes == ("batch.size",)
    assert space.seeds() == [{"seed": 0}, {"seed": 1}]


def test_the_last_path_goes_fastest():
    members = list(read(["a=1,2", "b=x,y"]).members())
    assert [tuple(values.values()) for values in members] == [
        (1, "x"),
        (1, "y"),
        (2, "x"),
        (2, "y"),
    ]


@pytest.mark.parametrize(
    ("text", "searched"),
    [
        ("log(1e-5, 1e-1)", Searched("log", 1e-5, 1e-1)),
        ("uniform(-1,0.5)", Searched("uniform", -1, 0.5)),
        (" int(1,8)", Searched("int", 1, 8)),
    ],
)
def test_a_range_is_searched_on_the_command_line_and_in_python(text, searched):
    assert read([f"here={text}"]).ranges["here"] == searched
    assert read({"here": text}).ranges["here"] == searched
    assert read({"here": searched}).searched


def test_in_python_several_values_are_a_list_a_range_or_an_array_and_a_text_is_one():
    space = read(
        {
            "seed": range(3),
            "learning_rate": np.array([0.5, 0.25]),
            "plan.0.train": [("head", "last 2"), "all"],
            "data.path": "photos, old",
        }
    )
    assert space.constants == {"data.path": "photos, old"}
    assert [each.values for each in space.ranges.values()] == [
        (0, 1, 2),
        (0.5, 0.25),
        (["head", "last 2"], "all"),
    ]


def test_builders_are_values_of_a_plan():
    found = recipes({"plan": [plans.lp_ft(), plans.layer_decay(0.5), Phase(steps=3)]})
    assert [recipe.plan for recipe in found] == [
        (plans.lp_ft(),),
        (plans.layer_decay(0.5),),
        (Phase(steps=3),),
    ]
    values = read({"plan": [plans.layer_decay(0.5), Phase(steps=3)]}).ranges["plan"].values
    assert [value_text(value) for value in values] == [
        "factor: 0.5, build: layer_decay",
        "steps: 3",
    ]


def test_any_field_varies_alone_and_with_others():
    heads = "head.kind=linear,mlp"
    found = recipes([heads, "optimizer.weight_decay=0,0.1", "cache=disk"])
    told = [(each.head.kind, each.optimizer.weight_decay) for each in found]
    assert told == [("linear", 0), ("linear", 0.1), ("mlp", 0), ("mlp", 0.1)]
    assert {each.cache.store for each in found} == {"disk"}


@pytest.mark.parametrize("name", ["learning_rate", "optimizer.learning_rate"])
def test_the_learning_rate_is_that_of_a_single_phase(name):
    assert [each.plan[0].learning_rate for each in recipes([f"{name}=1e-4,3e-4"])] == [1e-4, 3e-4]


def test_the_learning_rate_scales_those_of_all_phases_and_builders():
    plan = (Phase(epochs=1, learning_rate=0.004), plans.lp_ft(5, learning_rate=0.001))
    base = Recipe(plan=(*plan, plans.discriminative(0.0001, 0.002)))
    (found,) = recipes(["learning_rate=0.04"], base)
    phase, lp_ft, discriminative = found.plan
    assert phase.learning_rate == 0.04
    rates = (lp_ft.learning_rate, lp_ft.head_learning_rate, discriminative.lo, discriminative.hi)
    assert rates == pytest.approx((0.01, 0.01, 0.001, 0.02))


def test_the_learning_rate_scales_a_plan_that_varies_too():
    found = recipes({"learning_rate": [0.1], "plan.0.learning_rate": [1, 2]})
    assert [each.plan[0].learning_rate for each in found] == [0.1, 0.1]


def test_seeds_share_the_split_that_the_recipe_alone_would_have():
    for said in (["seed=0..2"], ["seed=0..2", "learning_rate=1e-4,1e-3"]):
        found = recipes(said)
        assert {each.data.split_seed for each in found} == {5}
        assert {each.seed for each in found} == {0, 1, 2}
    assert recipes(["learning_rate=1e-4,1e-3"])[0].data.split_seed is None


def test_a_split_seed_that_is_said_is_kept():
    found = recipes(["seed=0..1", "data.split_seed=3,4"])
    assert [each.data.split_seed for each in found] == [3, 4, 3, 4]


def test_the_split_seed_and_not_the_seed_draws_splits_and_examples():
    def drawn(seed: int, **changes) -> list[str]:
        spec = DataSpec(max_examples=12, validation_fraction=0.25, **changes)
        splits = open_data(images(30), spec, seed=seed)
        return [source.fingerprint for _, source in splits.items()]

    assert drawn(0) != drawn(1)
    assert drawn(0, split_seed=7) == drawn(1, split_seed=7) == drawn(7)


def test_a_member_writes_nothing_and_comes_back_from_yaml_equal(tmp_path):
    base = Recipe(plan=(Phase(epochs=1),), runtime={"out": "runs/x"}, batch=BatchSpec(size=8))
    member = recipes(["seed=3..4", "learning_rate=1e-4"], base)[1]
    assert member.runtime.out is None
    member.save(tmp_path / "one.yaml")
    assert Recipe.load(tmp_path / "one.yaml") == member


def test_mistakes_of_all_members_are_said_at_once_with_the_values_that_make_them():
    found = mistakes(["plan.0.epoch=1", "batch.size=8,x", "learning_rate=1e-3,-1", "seed=0..3"])
    assert found == [
        "plan[0].epoch: plan[0] has no such field. Did you mean 'epochs'?",
        "learning_rate: expected a number above 0, got -1. In members with learning_rate=-1.",
        'batch.size: expected a whole number; got "x". In members with batch.size=x.',
    ]


def test_a_mistake_of_members_with_several_values_in_common_names_all_of_them():
    # Micro-batches must divide a batch: 3 do not divide 8, nor 2 divide 9.
    found = mistakes(["batch.size=8,9", "batch.accumulate=2,3"])
    assert len(found) == 2
    assert found[0].endswith("In members with batch.size=8 batch.accumulate=3.")
    assert found[1].endswith("In members with batch.size=9 batch.accumulate=2.")


def test_a_mistake_of_members_that_share_no_value_names_the_first():
    (found,) = mistakes(["head={hidden: [8]},{hidden: [8], bias: false},{kind: linear}"])
    assert found.endswith("In members with head=hidden: 8, and 1 more.")


@pytest.mark.parametrize(
    ("said", "message"),
    [
        (["learning_rate"], "'learning_rate' is not of the form path=values"),
        (["=3"], "'=3' is not of the form path=values"),
        (["seed=7..0"], r"seed: 7\.\.0 holds no number; the first is the lower: 0\.\.7"),
        (["seed=1,2,1"], "seed: lists 1 more than once"),
        (["seed=1,2", "seed=3"], "seed: is given twice; keep one"),
        (["learning_rate=1", "optimizer.learning_rate=2"], "is given twice; keep one"),
        (["seed=int(0,7)"], r"seed: is repeated and not searched; list it: seed=0\.\.7"),
        (["a=log(0,1)"], r"expected log\(lowest, highest\) with 0 < lowest < highest"),
        (["a=uniform(1,0)"], r"expected uniform\(lowest, highest\) with lowest < highest"),
        (["a=int(0.5,2)"], r"expected int\(lowest, highest\) of two whole numbers"),
        (["a=log(1)"], r"expected log\(lowest, highest\) of two numbers, got log\(1\)"),
        (["seed=[1"], "the value of 'seed=.1'.* is not YAML"),
        ({"seed": []}, "seed: has no value; give one or several"),
        ({"seed": [object()]}, "expected a plain value"),
        (["plan.3.epochs=1,2"], r"plan\[3\]: the override has no place"),
    ],
)
def test_what_cannot_be_swept_is_answered(said, message):
    assert any(re.search(message, found) for found in mistakes(said)), mistakes(said)


@pytest.mark.parametrize(
    "said",
    [
        ["seed=0..1000"],
        ["seed=0..99999999999"],
        {"seed": range(10**12)},
        ["seed=0..99", "batch.size=1,2,3,4,5,6,7,8,9,10,11"],
    ],
)
def test_more_than_a_thousand_members_are_refused_with_their_count(said):
    with pytest.raises(RecipeError, match=r"[\d,]{5,} members, and at most 1,000 are trained"):
        recipes(said)


def test_samples_of_a_searched_space_hold_every_value_and_both_ends():
    space = read(["a=log(1,2)", "b=x,y,z", "c=1"])
    assert list(space.samples()) == [{"a": 1, "b": "x"}, {"a": 2, "b": "y"}, {"a": 1, "b": "z"}]


def test_values_read_as_they_would_be_written():
    values = {"learning_rate": 0.00031622776, "plan.0.train": ["head", "last 2"], "x": None}
    assert values_text(values) == "learning_rate=0.000316228 plan.0.train=head, last 2 x=null"
