"""The rules by which a plan is drafted, one after the other."""

from __future__ import annotations

import pytest

from tunekit.evaluation.drafted_plan import Depth, Evidence, drafted_plan
from tunekit.models.selection import syntax_issues

NAMES = ("stem", "blocks[0]", "blocks[1]", "blocks[2]", "blocks[3]", "top")


def evidence(accuracies, snrs=(0.5,) * 6, *, error=0.02, empty=()):
    depths = tuple(
        Depth(name, 0 if name in empty else 100, 8, accuracy, error, snr, 0.1)
        for name, accuracy, snr in zip(NAMES, accuracies, snrs, strict=True)
    )
    return Evidence(depths, 0.5, 1000, 200, 32)


def trained(found):
    phases, reasons = drafted_plan(found)
    assert not any(syntax_issues(phase.train) for phase in phases)
    assert not any(phase.issues() for phase in phases)
    return [phase.train for phase in phases], " ".join(reasons)


def test_what_comes_after_the_best_depth_trains_once_the_head_has():
    plan, said = trained(evidence([0.6, 0.7, 0.83, 0.78, 0.76, 0.74]))
    assert plan == [("head",), ("head", "blocks[2:]", "top")]
    assert "after blocks[1] reaches 0.83 ± 0.02, after top, the last, 0.74 ± 0.02" in said
    assert "backbone.blocks=2" in said and "the head trains first" in said


def test_a_tie_within_one_standard_error_goes_to_the_deeper_and_cheaper_cut():
    plan, said = trained(evidence([0.6, 0.7, 0.83, 0.812, 0.76, 0.74]))
    assert plan == [("head",), ("head", "blocks[3]", "top")]
    assert "blocks[2], with 0.81, is within one standard error and lets less train" in said


def test_the_head_trains_alone_where_the_last_depth_ties_with_the_best():
    plan, said = trained(evidence([0.6, 0.7, 0.83, 0.8, 0.79, 0.815]))
    assert plan == [("head",)]
    assert "within one standard error" in said and "0.5, of stem" in said


def test_the_head_trains_alone_where_the_last_depth_is_the_best():
    plan, said = trained(evidence([0.6, 0.7, 0.8, 0.8, 0.8, 0.9]))
    assert plan == [("head",)]
    assert "after top reaches 0.90 ± 0.02 (200 validation examples): what" in said


def test_a_gradient_clear_in_one_batch_is_worth_training_where_all_depths_are_good():
    plan, said = trained(evidence([0.8] * 6, [2.0, 1.5, 0.5, 0.5, 0.9, 0.1]))
    assert plan == [("head",), ("head", "stem", "blocks[0]")]
    assert "in stem, blocks[0] the gradient of a single batch of 32" in said


def test_training_a_group_whose_gradient_is_noise_over_all_examples_comes_with_a_warning():
    accuracies = [0.6, 0.7, 0.83, 0.78, 0.76, 0.74]
    plan, said = trained(evidence(accuracies, [0.1, 0.1, 0.1, 0.033, 0.031, 0.0]))
    assert plan == [("head",), ("head", "blocks[2:]", "top")]
    assert "the gradient of blocks[3], top is more noise than signal even over all 1,000" in said
    assert "more noise" not in trained(evidence(accuracies))[1]


def test_everything_trains_where_no_depth_is_better_than_a_guess():
    plan, said = trained(evidence([0.5, 0.5, 0.51, 0.52, 0.5, 0.5]))
    assert plan == [("all",)]
    assert "always guessing the most frequent label (0.50)" in said


def test_blocks_without_weights_are_not_selected():
    plan, _ = trained(evidence([0.6, 0.83, 0.7, 0.7, 0.7, 0.7], empty=("blocks[2]", "top")))
    assert plan == [("head",), ("head", "blocks[1]", "blocks[3]")]


def test_a_cut_at_the_stem_leaves_all_blocks_to_train():
    plan, said = trained(evidence([0.83, 0.7, 0.7, 0.7, 0.7, 0.7]))
    assert plan == [("head",), ("head", "blocks[0:]", "top")]
    assert "backbone.blocks" not in said


@pytest.mark.parametrize(("snr", "scale"), [(0.5, 64), (0.0, float("inf"))])
def test_noise_scale_is_the_batch_in_which_signal_equals_noise(snr, scale):
    found = evidence([0.5] * 6, [snr] * 6)
    assert found.noise_scale(found.depths[0]) == scale
