"""Builders of plans: the phases of each, written out for a network of a few blocks."""

from __future__ import annotations

import re

import pytest

import tunekit
from tunekit import plans
from tunekit.errors import SelectionError
from tunekit.models.depth import Group
from tunekit.plans.builders import expand_plan
from tunekit.plans.phase import Phase
from tunekit.plans.rates import even_multipliers


def network(blocks: int = 4, *, beta: bool = True, bias: bool = True) -> tuple[Group, ...]:
    leaves = ["kernel"] + ["bias"] * bias + ["norm/beta"] * beta
    kinds = {"stem": "stem", **{f"blocks[{i}]": "block" for i in range(blocks)}, "top": "top"}
    groups = []
    for name, kind in {**kinds, "heads/label": "head"}.items():
        weights = tuple(f"{name}/{leaf}" for leaf in leaves)
        groups.append(Group(name, kind, weights, (), None, 1, weights))
    return tuple(groups)


def trains(builder, groups=None) -> list:
    return [phase.train for phase in builder.phases(network() if groups is None else groups)]


def rates(builder) -> list[float]:
    return [phase.learning_rate for phase in builder.phases(network())]


ALL = [
    plans.alternating(),
    plans.bit_fit(),
    plans.chain_thaw(),
    plans.discriminative(1e-5, 1e-3),
    plans.gradual_unfreeze(),
    plans.gradual_unfreeze(direction="bottom_up", portions=None),
    plans.head_only(),
    plans.layer_decay(),
    plans.lp_ft(),
    plans.norm_only(),
    plans.surgical(1),
    plans.ulmfit(),
]


@pytest.mark.parametrize("builder", ALL, ids=lambda builder: builder.build)
def test_a_builder_builds_phases_without_issues_and_as_long_as_it_says(builder):
    phases = builder.phases(network())
    assert all(phase.issues() == [] for phase in phases)
    assert phases[0].schedule != "continue"
    assert sum(phase.epochs for phase in phases) == pytest.approx(builder.epochs)
    assert getattr(plans, builder.build) is type(builder)


def test_every_builder_is_a_lower_case_function_of_plans():
    assert {builder.build for builder in ALL} == set(plans.__all__)
    assert tunekit.plans is plans


def test_the_head_comes_before_everything_in_lp_ft():
    builder = plans.lp_ft(epochs=10, head_epochs=4, learning_rate=1e-4, head_learning_rate=1e-2)
    first, second = builder.phases(network())
    assert (first.train, first.epochs, first.learning_rate) == ("head", 4, 1e-2)
    assert (second.train, second.epochs, second.learning_rate) == ("all", 6, 1e-4)


@pytest.mark.parametrize("head_epochs", [3, 4])
def test_lp_ft_needs_epochs_left_for_everything(head_epochs):
    ((field, message),) = plans.lp_ft(epochs=3, head_epochs=head_epochs).issues()
    assert field == "head_epochs"
    assert f"expected fewer than the 3 epochs of the whole, got {head_epochs}" in message


def test_gradual_unfreezing_goes_from_the_head_to_the_input():
    assert trains(plans.gradual_unfreeze(portions=None)) == [
        "head",
        ("head", "blocks[3]", "top"),
        ("head", "blocks[2:4]", "top"),
        ("head", "blocks[1:4]", "top"),
        ("head", "blocks[0:4]", "top"),
        "all",
    ]


def test_gradual_unfreezing_bottom_up_goes_from_the_input_to_the_head():
    assert trains(plans.gradual_unfreeze(portions=None, direction="bottom_up")) == [
        "head",
        ("head", "stem"),
        ("head", "stem", "blocks[0]"),
        ("head", "stem", "blocks[0:2]"),
        ("head", "stem", "blocks[0:3]"),
        "all",
    ]


@pytest.mark.parametrize(
    ("portions", "expected"),
    [
        (1, ["head", "all"]),
        (2, ["head", ("head", "blocks[1:4]", "top"), "all"]),
        (3, ["head", ("head", "blocks[2:4]", "top"), ("head", "blocks[0:4]", "top"), "all"]),
    ],
)
def test_portions_are_nearly_equal_and_end_with_everything(portions, expected):
    assert trains(plans.gradual_unfreeze(portions=portions)) == expected


def test_more_portions_than_blocks_are_one_block_at_a_time():
    assert trains(plans.gradual_unfreeze(portions=99)) == trains(
        plans.gradual_unfreeze(portions=None)
    )


def test_only_the_head_alone_has_the_rate_of_the_head():
    builder = plans.gradual_unfreeze(portions=2, learning_rate=1e-4, head_learning_rate=1e-2)
    assert rates(builder) == [1e-2, 1e-4, 1e-4]


def test_a_group_without_weights_is_never_selected():
    groups = list(network())
    groups[2] = Group("blocks[1]", "block", (), (), None, 0, ())
    groups[5] = Group("top", "top", ("top/moving_mean",), (), None, 0, ())
    assert trains(plans.chain_thaw(portions=None), groups) == [
        ("head",), ("stem",), ("blocks[0]",), ("blocks[2]",), ("blocks[3]",), ("all",),
    ]  # fmt: skip
    (phase,) = plans.layer_decay(0.5).phases(groups)
    assert set(phase.multipliers) == {"stem", "blocks[0]", "blocks[2]", "blocks[3]"}
    # A weightless block is still a step in depth, as it is in the network.
    assert phase.multipliers["blocks[0]"] == 0.5**4


def test_chain_thaw_trains_the_head_then_each_part_alone_from_the_input_then_everything():
    # The order of DeepMoji (Felbo et al. 2017, section 3.3).
    builder = plans.chain_thaw(portions=None)
    assert trains(builder) == [
        ("head",),
        ("stem",),
        ("blocks[0]",),
        ("blocks[1]",),
        ("blocks[2]",),
        ("blocks[3]", "top"),
        ("all",),
    ]
    assert rates(builder) == [1e-3] + [1e-4] * 6


def test_chain_thaw_takes_several_blocks_at_once():
    assert trains(plans.chain_thaw(portions=2)) == [
        ("head",), ("stem", "blocks[0]"), ("blocks[1:4]", "top"), ("all",),
    ]  # fmt: skip


def test_ulmfit_thaws_gradually_with_2_6_between_portions_on_one_slanted_triangle():
    phases = plans.ulmfit(portions=2).phases(network())
    assert [p.train for p in phases] == trains(plans.gradual_unfreeze(portions=2))
    assert [p.schedule for p in phases] == ["slanted_triangular", "continue", "continue"]
    assert {p.learning_rate for p in phases} == {1e-3}
    below, lowest = 1 / 2.6, 1 / 2.6**2
    factors = {"stem": lowest, "blocks[0]": lowest, "blocks[1:4]": below, "top": below}
    assert phases[-1].multipliers == pytest.approx(factors)


def test_layer_decay_falls_by_its_factor_from_block_to_block():
    (phase,) = plans.layer_decay(0.5, train=("head", "last 2")).phases(network(2))
    assert phase.train == ("head", "last 2")
    assert phase.multipliers == {"stem": 0.125, "blocks[0]": 0.25, "blocks[1]": 0.5, "top": 0.5}


@pytest.mark.parametrize(
    ("lo", "hi", "expected"),
    [
        (1e-5, 1e-3, even_multipliers(1e-5, 1e-3, 4)),
        (1e-4, 8e-4, [1e-4, 2e-4, 4e-4, 8e-4]),
        (None, 1e-3, [1e-4, 1e-4, 1e-4, 1e-3]),  # fastai's slice(hi)
    ],
)
def test_discriminative_rates_are_those_of_fastais_slice(lo, hi, expected):
    (phase,) = plans.discriminative(lo, hi).phases(network(2))
    by_group = [phase.multipliers[name] * hi for name in ("stem", "blocks[0]", "blocks[1]")]
    assert [*by_group, phase.learning_rate] == pytest.approx(expected, rel=1e-12)
    assert phase.multipliers["top"] == phase.multipliers["blocks[1]"]


def test_a_slice_that_falls_is_taken_for_a_slip():
    ((field, message),) = plans.discriminative(1e-2, 1e-3).issues()
    assert field == "lo" and "expected at most hi, 0.001, got 0.01; swap them." in message


def test_alternating_gives_head_and_backbone_their_turns_on_one_course():
    phases = plans.alternating(rounds=2).phases(network())
    assert [phase.train for phase in phases] == ["head", "backbone"] * 2
    assert [phase.schedule for phase in phases] == ["cosine"] + ["continue"] * 3
    assert [phase.learning_rate for phase in phases] == [1e-3, 2e-4] * 2


@pytest.mark.parametrize(("block", "selector"), [(0, "blocks[0]"), (-4, "blocks[-4]")])
def test_surgery_trains_one_block_with_the_head(block, selector):
    assert trains(plans.surgical(block)) == [("head", selector)]


@pytest.mark.parametrize("block", [4, -5])
def test_surgery_on_a_block_that_is_not_there_says_where_and_which_there_are(block):
    message = f"plan[1].block: the backbone has 4 blocks, 0 to 3 or -4 to -1; got {block}."
    with pytest.raises(SelectionError, match=re.escape(message)):
        expand_plan([Phase(epochs=1), plans.surgical(block)], network())


@pytest.mark.parametrize("groups", [network(), network(bias=False), network(beta=False)])
def test_bit_fit_trains_the_biases_with_the_head(groups):
    assert trains(plans.bit_fit(), groups) == [("head", "bias")]


def test_bit_fit_without_a_bias_in_the_backbone_is_refused():
    with pytest.raises(SelectionError, match=r"plan\[0\].build: bit_fit trains biases, and this"):
        expand_plan([plans.bit_fit()], network(beta=False, bias=False))


def test_norms_train_with_the_head():
    assert trains(plans.norm_only()) == [("head", "norm")]


def test_a_plan_of_phases_and_builders_is_expanded_in_order():
    first, last = Phase("head", epochs=1), Phase("all", steps=3)
    expanded = expand_plan([first, plans.lp_ft(), last], network())
    assert expanded == (first, *plans.lp_ft().phases(network()), last)
