"""Whole steps on the disk: found by what they are made from, and by nothing less."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import keras
import numpy as np
import pytest

from tests.contract.families import images
from tunekit import step_identity
from tunekit.recipe import Recipe
from tunekit.session import session
from tunekit.training.kept_steps import ExpectedStep, KeptSteps

ROOT = Path(__file__).parents[2]

# Runs in a process of its own, with a folder of its own for programs. Of each run: how often a
# step was traced, how many were loaded before the model was, the losses, and the files it left.
RUNS = """
import json, sys, time
from pathlib import Path
from tests.contract.families import images
from tunekit import finetune
from tunekit.compilation_cache import kept_steps_folder
from tunekit.training.kept_steps import ExpectedStep
from tunekit.training.step import Step

early, take = [], ExpectedStep.taken
ExpectedStep.taken = lambda *a: (early.append(take(*a)), early[-1])[1]
traced, trace = [], Step.traced
Step.traced = lambda *a, **k: (traced.append(1), trace(*a, **k))[1]

def run(rate, names):
    traced.clear(), early.clear()
    result = finetune(
        "efficientnet_lite0", images(), blocks=1, image_size=32, batch_size=8, epochs=2,
        method="full", cache="off", learning_rate=rate, progress="none",
    )
    until = time.monotonic() + 60
    while len(list(kept_steps_folder().glob("*.name"))) < names and time.monotonic() < until:
        time.sleep(0.05)
    left = {end: len(list(kept_steps_folder().glob(f"*.{end}"))) for end in ("name", "step")}
    counts = {"traced": len(traced), "early": sum(each is not None for each in early)}
    return {**counts, "losses": [row["loss"] for row in result.history], **left}

def spoil():
    for file in kept_steps_folder().glob("*.step"):
        file.write_bytes(file.read_bytes()[:1000])

print(json.dumps(eval(sys.argv[1])))
"""


def runs(home: Path, scenario: str) -> list[dict]:
    """What a process says of its runs."""
    environment = {n: v for n, v in os.environ.items() if "CACHE" not in n}
    done = subprocess.run(
        [sys.executable, "-c", RUNS, scenario],
        env={**environment, "XDG_CACHE_HOME": str(home), "PYTHONPATH": str(ROOT)},
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_a_second_start_traces_nothing_and_trains_the_same(tmp_path):
    (first,) = runs(tmp_path, "[run(0.01, 1)]")
    assert (first["traced"], first["early"], first["name"], first["step"]) == (1, 0, 1, 1)
    again, other_rate, the_same = runs(tmp_path, "[run(0.01, 1), run(0.02, 2), run(0.02, 2)]")
    assert again == {**first, "traced": 0, "early": 1}
    # No program depends on the rate: it has a name of its own for the same one.
    assert (other_rate["traced"], other_rate["name"], other_rate["step"]) == (1, 2, 1)
    assert other_rate["early"] == 0
    assert the_same == {**other_rate, "traced": 0, "early": 1}
    assert other_rate["losses"] != first["losses"]

    spoiled, after = runs(tmp_path, "[spoil(), run(0.01, 2), run(0.01, 2)][1:]")
    assert (spoiled["traced"], spoiled["losses"]) == (1, first["losses"])
    assert after["losses"] == first["losses"]


@pytest.fixture
def folder(monkeypatch, tmp_path) -> Path:
    """Where steps would be kept."""
    monkeypatch.setattr(step_identity, "kept_steps_folder", lambda: tmp_path / "steps")
    return tmp_path / "steps"


def recipe(**changes: object) -> Recipe:
    """A small one."""
    backbone = {"name": "efficientnet_lite0", "blocks": 1, "image_size": 32}
    fields = {
        "backbone": backbone,
        "plan": [{"steps": 1}],
        "batch": {"size": 8},
        "runtime": {"progress": "none"},
    }
    return Recipe.model_validate(fields | changes)


def kept(asked: Recipe, data: object = None, model: keras.Model | None = None) -> KeptSteps | None:
    """Where the steps of a run would be."""
    with session(asked, model=model, data=images() if data is None else data) as ready:
        return ready.trainer().kept


def test_a_run_has_the_steps_of_its_recipe_data_and_settings_alone(folder, monkeypatch):
    same, first = kept(recipe()), kept(recipe())
    assert first is not None and same == first and first.folder == folder
    elsewhere = kept(recipe(runtime={"progress": "none", "out": str(folder / "out")}))
    assert elsewhere == first
    other_seed, other_data = kept(recipe(seed=1)), kept(recipe(), images(seed=1))
    assert len({each and each.run for each in (first, other_seed, other_data)}) == 3
    assert {each and each.machine for each in (other_seed, other_data)} == {first.machine}
    monkeypatch.setenv("XLA_FLAGS", "--xla_cpu_enable_fast_math=false")
    assert kept(recipe()).machine != first.machine


def test_changed_code_or_weights_are_another_run(folder, monkeypatch):
    first = kept(recipe())
    with monkeypatch.context() as patch:
        patch.setattr(step_identity, "_LOADED_CODE", [("new", 1, 1)])
        assert kept(recipe()).run != first.run
    monkeypatch.setattr(step_identity, "_stamps", lambda path, pattern: [("new", 1, 1)])
    assert kept(recipe()).run != first.run


@pytest.mark.parametrize("name", ["jax", "jaxlib", "keras", "keras_hub", "optax", "numpy"])
def test_another_version_of_what_makes_a_program_is_another_machine(folder, monkeypatch, name):
    first = kept(recipe())
    monkeypatch.setattr(f"{name}.__version__", "0.0.1")
    assert kept(recipe()).machine != first.machine


def test_several_devices_keep_no_steps(folder):
    with session(recipe(), data=images()) as ready:
        shared = replace(ready, is_named=True, layout=cast(Any, object()))
        assert shared._kept_steps() is None
        assert replace(shared, layout=None)._kept_steps() is not None


def test_a_full_disk_leaves_nothing_behind(tmp_path, monkeypatch):
    def full(source: str, target: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    steps = KeptSteps(tmp_path, "run", "machine", "recipe")
    monkeypatch.setattr(os, "replace", full)
    steps.keep(steps.name_of(0, [np.zeros(3)]), tmp_path / "a.step", None)
    assert list(tmp_path.iterdir()) == []


def test_the_stamps_of_a_folder_tell_of_a_changed_file(tmp_path):
    (tmp_path / "inner").mkdir()
    file = tmp_path / "inner" / "a.py"
    file.write_text("1")
    before = step_identity._stamps(tmp_path, "*.py")
    os.utime(file, ns=(1, 1))
    assert before != step_identity._stamps(tmp_path, "*.py")
    assert step_identity._stamps(tmp_path / "absent", "*") == []


class Theirs(keras.layers.Layer):
    """A layer whose code is not ours."""

    def call(self, inputs):
        return 2 * inputs


def network(layer: keras.layers.Layer) -> keras.Model:
    inputs = keras.Input((8, 8, 3))
    return keras.Model(inputs, layer(keras.layers.Conv2D(4, 3)(inputs)))


def test_a_model_from_memory_keeps_no_steps(folder):
    ours = recipe(backbone={"name": "in memory"})
    assert kept(ours, model=network(keras.layers.ReLU())) is None


@pytest.mark.parametrize(("layer", "is_kept"), [(keras.layers.ReLU(), True), (Theirs(), False)])
def test_layers_of_other_peoples_code_keep_no_steps(folder, layer, is_kept):
    with session(recipe(), model=network(layer), data=images()) as ready:
        found = step_identity.kept_steps(ready.recipe, ready.splits, ready.model)
    assert (found is not None) == is_kept


def test_the_oldest_go_where_there_is_no_room(tmp_path, monkeypatch):
    monkeypatch.setattr("tunekit.training.kept_steps.LARGEST_BYTES", 2500)
    for age in range(4):
        file = tmp_path / f"{age}.step"
        file.write_bytes(bytes(1000))
        os.utime(file, (10**9 - age, 10**9 - age))
    KeptSteps(tmp_path, "run", "machine", "recipe")._make_room()
    assert sorted(file.name for file in tmp_path.iterdir()) == ["0.step", "1.step"]


@pytest.fixture
def no_room(tmp_path) -> Iterator[Path]:
    """A folder that cannot be made."""
    (tmp_path / "file").write_text("in the way")
    yield tmp_path / "file" / "steps"


def test_a_folder_that_cannot_be_written_to_is_not_fatal(no_room):
    steps = KeptSteps(no_room, "run", "machine", "recipe")
    name = steps.name_of(0, [np.zeros(3)])
    assert steps.named(name) is None
    steps.keep(name, no_room / "absent.step", None)
    assert steps.load(no_room / "absent.step") is None


def test_a_step_that_was_expected_in_vain_is_let_go(tmp_path):
    steps = KeptSteps(tmp_path, "run", "machine", "recipe")
    for step in ("old", "new"):
        (tmp_path / f"{step}.step").write_bytes(b"no step")
    names = [steps.name_of(0, [np.zeros(n)]) for n in (1, 2)]
    for name, step, age in zip(names, ("new", "old"), (10, 20), strict=True):
        name.write_text(f"{step}.step")
        os.utime(name, (10**9 - age, 10**9 - age))
    steps.name_of(1, [np.zeros(1)]).write_text("old.step")  # Of a later phase.
    loading = ExpectedStep(tmp_path, "recipe").taken(tmp_path / "new.step")
    assert loading is not None and loading.result() is None
    assert not (tmp_path / "new.step").exists(), "what cannot be read is deleted"
    for recipe in ("recipe", "another"):
        assert ExpectedStep(tmp_path, recipe).taken(tmp_path / "new.step") is None
    (tmp_path / "new.step").write_bytes(b"no step")
    expected = ExpectedStep(tmp_path, "recipe")
    assert expected.taken(tmp_path / "old.step") is None
    assert expected.taken(tmp_path / "new.step") is None, "once"


def test_a_device_that_cannot_be_opened_costs_no_step(tmp_path, monkeypatch):
    steps, executable = KeptSteps(tmp_path, "run", "machine", "recipe"), tmp_path / "a.step"
    executable.write_bytes(b"a step")
    steps.name_of(0, [np.zeros(1)]).write_text(executable.name)

    def busy() -> None:
        raise RuntimeError("Unable to initialize backend")

    monkeypatch.setattr("jax.devices", busy)
    with pytest.raises(RuntimeError, match="initialize backend"):
        ExpectedStep(tmp_path, "recipe")
    with pytest.raises(RuntimeError, match="initialize backend"):
        steps.load(executable)
    assert executable.read_bytes() == b"a step"
