"""A recipe's plan, on this machine and without the compiler of another."""

import importlib.util
import json
from dataclasses import replace

import numpy as np
import pytest

from tunekit.cli import main
from tunekit.errors import RecipeError
from tunekit.planning.hardware import TargetError, target
from tunekit.planning.planner import Planner, plan
from tunekit.recipe import Recipe
from tunekit.session import session

SMALL = ["backbone.image_size=32", "batch.size=4", "cache=off"]
FEATURES = 1280
"""Of an EfficientNet-Lite0, into a head of as many labels as are asked for."""
HEAD = FEATURES * 3 + 3

without_compilers = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is not None, reason="the compiler for TPUs is installed"
)


@pytest.fixture(scope="module")
def here():
    recipe = Recipe.load("vision/linear_probe", [*SMALL, "data.validation_fraction=0"])
    return plan(recipe, on="this", examples=40, labels=3, search=False)


def test_a_plan_of_this_machine_is_compiled_and_timed_by_its_own_peaks(here):
    assert here.fits and here.is_compiled and here.blocks == ()
    (phase,) = here.phases
    assert phase.counted.trained == HEAD
    assert phase.memory["trained"] == HEAD * 4 and phase.memory["copies"] == HEAD * 4
    assert phase.memory["activations"] > 4 * 32 * 32 * 3 * 4
    assert 0 < phase.time.lower < phase.time.upper
    assert here.steps == 15 * 10


def test_a_plan_of_this_machine_is_the_program_that_a_run_has(here):
    images = np.random.default_rng(0).integers(0, 255, (12, 32, 32, 3), np.uint8)
    quiet = ["plan.0={steps: 1, warmup: 0%}", "runtime.progress=none"]
    recipe = Recipe.load("vision/linear_probe", [*SMALL, *quiet, "data.validation_fraction=0"])
    with session(recipe, data=(images, np.arange(12) % 3)) as ready:
        (phase,) = ready.trainer().fit().phases
    told, measured = here.worst.memory, phase["memory"]
    assert {k: told[k] for k in ("frozen", "trained")} == {
        k: measured[k] for k in ("frozen", "trained")
    }
    # The batch of the step, and the two that are read ahead.
    batches = 3 * here.worst.cost.inputs
    assert told["activations"] - batches == pytest.approx(measured["activations"], rel=0.05)


@without_compilers
def test_without_the_compiler_state_and_operations_are_told_and_how_to_get_the_rest():
    found = plan(Recipe.load("vision/linear_probe", SMALL), on="v5e-8", examples=40, labels=3)
    assert found.fits is None and found.worst.memory is None
    assert found.worst.counted.state["trained"] == HEAD * 4
    assert found.worst.flops > 4 * 1e6
    assert "Activations are not told" in found.notes[-1]
    assert "pip install 'tunekit[tpu-plan]'" in str(found).replace("\n  ", " ")
    assert json.loads(json.dumps(found.to_json()))["compiled"] is None


@without_compilers
def test_a_plan_of_cached_features_says_that_computing_them_is_left_out():
    overrides = ["backbone.image_size=32", "batch.size=4"]
    found = plan(Recipe.load("vision/linear_probe", overrides), on="v5e-1", examples=40, labels=3)
    assert any("steps of phase 1 begin at" in note for note in found.notes)


@without_compilers
def test_a_state_too_large_for_all_devices_is_refused_without_a_compiler():
    found = Planner("x", _tiny_machine(), 40, 3).plan(Recipe.load("vision/full", SMALL))
    assert found.fits is False
    assert "does not fit: weights and optimizer alone" in str(found)


def _tiny_machine():
    """One chip with 10 MB."""
    machine = target("v5e-1")
    return replace(machine, chip=replace(machine.chip, memory_bytes=10**7))


def test_a_mistyped_machine_is_one_line(capsys):
    assert main(["plan", "vision/full", "--on", "v5r-8"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "no machine is called 'v5r-8'" in line and "v5e" in line
    with pytest.raises(TargetError, match="no machine is called 'h10O-1'"):
        plan("vision/full", on="h10O-1")


def test_a_mistyped_machine_among_several_is_told_before_anything_is_compiled(capsys):
    assert main(["plan", "vision/full", "--compare", "v5e-8,h10O"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "'h10O'" in line
    assert main(["plan", "vision/full", "--compare", ","]) == 2
    assert "expected names of machines" in capsys.readouterr().err


def test_a_batch_that_does_not_divide_over_the_machine_names_those_that_do():
    recipe = Recipe.load("vision/full", ["batch.size=30", "runtime.mesh=data"])
    with pytest.raises(RecipeError, match="30 examples do not divide.*24 or 32"):
        plan(recipe, on="v5e-8", examples=40)


def test_no_examples_at_all_is_a_mistake():
    with pytest.raises(RecipeError, match="examples: expected at least 1, got 0"):
        plan("vision/full", on="v5e-8", examples=0)
