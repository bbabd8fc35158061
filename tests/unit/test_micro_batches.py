"""`accumulate: auto`: a number found by compiling, said, and kept in the report."""

from __future__ import annotations

import numpy as np
import pytest

from tests.contract.families import fixed, images, plain_cnn
from tunekit.data.spec import BatchSpec
from tunekit.errors import TrainingError
from tunekit.finetune import finetune
from tunekit.micro_batches import is_auto, with_micro_batches
from tunekit.plans.phase import Phase
from tunekit.recipe import Recipe
from tunekit.training import accumulation

QUICK = {"train": "all", "epochs": 1, "validation": 0.0, "batch_size": 12, "progress": "plain"}


def tuned(monkeypatch, share: float, **changes):
    """A run whose device has so much of what the step in one micro-batch takes."""
    steps, step_bytes = [], accumulation.step_bytes

    def measured(program):
        steps.append(step_bytes(program))
        return steps[-1]

    monkeypatch.setattr(accumulation, "step_bytes", measured)
    monkeypatch.setattr(accumulation, "device_bytes", lambda held: int(share * steps[0]))
    return finetune(fixed(plain_cnn()), images(), **{"accumulate": "auto", **QUICK, **changes})


def test_the_fewest_micro_batches_that_fit_are_taken_and_said(monkeypatch, capsys):
    result = tuned(monkeypatch, 0.6)
    (phase,) = result.report["phases"]
    count = phase["micro_batches"]
    assert count in (2, 3, 4)
    told = f"accumulate: auto is {count}, micro-batches of {12 // count} examples: 0.00 of 0.00 GB"
    assert told in capsys.readouterr().err
    # The recipe goes on to say auto, for another device has room for another number.
    assert result.recipe.batch.accumulate == "auto"
    by_hand = finetune(
        fixed(plain_cnn()), images(), accumulate=count, **{**QUICK, "progress": "none"}
    )
    assert [row["loss"] for row in result.history] == [row["loss"] for row in by_hand.history]


def test_what_fits_whole_is_not_divided(monkeypatch):
    result = tuned(monkeypatch, 1.0, progress="none")
    assert result.report["phases"][0]["micro_batches"] == 1


def test_what_does_not_fit_example_by_example_is_an_error(monkeypatch):
    with pytest.raises(TrainingError, match="finds no number of micro-batches whose step fits"):
        tuned(monkeypatch, 0.01, progress="none")


def test_a_number_stands_where_the_recipe_says_auto_and_nowhere_else():
    batches = BatchSpec(8, 2), BatchSpec(8, "auto")
    plan = tuple(Phase(epochs=1, batch=batch) for batch in batches)
    recipe = Recipe(batch=BatchSpec(8, "auto"), plan=plan)
    assert is_auto(recipe) and recipe.batch.micro_batches == 1
    numbered = with_micro_batches(recipe, 4)
    found = [numbered.batch, *(phase.batch for phase in numbered.plan)]
    assert [batch.accumulate for batch in found] == [4, 2, 4]
    assert not is_auto(numbered)
    assert np.all([batch.issues() == [] for batch in (recipe.batch, *found)])
