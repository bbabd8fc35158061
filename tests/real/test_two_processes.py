"""Two real processes on this machine are one run: they equal one, end together, and resume."""

from __future__ import annotations

import os
import re
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import yaml

import tunekit
from tests.contract.process_runs import CASES, dialogues
from tests.contract.sharded_runs import wide_llama
from tests.contract.text_families import llama
from tests.processes import codes, free_address, said, started, wait_until

OPTIMISED = False

pytestmark = pytest.mark.real

PATIENCE = 900
"""Seconds for a run on a machine that has other things to do."""
NOTICED = 60
"""Seconds within which a process ends whose peer is dead."""
STEPS = 12


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with small Llamas, dialogues, and a recipe that trains one on them for 12 steps.

    Its weights, moments and checkpoints are shared by the processes.
    """
    folder = tmp_path_factory.mktemp("processes")
    llama(folder / "llama")
    wide_llama(folder / "wide")
    dialogues(folder)
    recipe = {
        "backbone": {"name": str(folder / "wide"), "pretrained": False},
        "data": {"path": str(folder / "dialogues.jsonl"), "validation_fraction": 0.25},
        "task": {"name": "sft", "samples": 0},
        "method": "full",
        "plan": [{"epochs": STEPS // 2, "learning_rate": 1e-4}],
        "batch": {"size": 4, "max_length": 64},
        "seed": 3,
        "runtime": {"checkpoint_every": "1 step", "restore_best": False, "mesh": "fsdp"},
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    return folder


def commands(workplace: Path, out: str, *more: str, count: int = 2) -> list[list[str]]:
    """Command lines of the processes of one run into a folder of the workplace."""
    run = ["-m", "tunekit.cli", "run", str(workplace / "recipe.yaml")]
    run += ["--out", str(workplace / out), *more]
    if count == 1:
        return [run]
    address = free_address()
    place = ["--coordinator", address, "--processes", str(count), "--process"]
    return [[*run, *place, str(index)] for index in range(count)]


def finished(workplace: Path, out: str, *more: str, count: int = 2) -> dict[str, np.ndarray]:
    """Runs to the end; returns what trained, and the losses."""
    logs = workplace / f"{out}-logs-{count}"
    with started(commands(workplace, out, *more, count=count), logs) as processes:
        ended = codes(processes, PATIENCE)
    assert ended == [0] * count, [said(logs, index) for index in range(count)]
    for index in range(1, count):
        # The first speaks for all; what C++ says of its connections is not ours.
        lines = said(logs, index).splitlines()
        assert [
            line for line in lines if not re.match(r"\[Gloo\]|[IWE]\d{4} |WARNING: All", line)
        ] == []
        assert f"epoch {STEPS // 2}" in (logs / f"speech.{index}").read_text()
    return learnt(workplace / out)


def learnt(out: Path) -> dict[str, np.ndarray]:
    result = tunekit.load(out)
    values = result.model.forward().values()
    rows = [row["loss"] for row in result.history]
    return {"loss": np.array(rows), **{name: np.asarray(value) for name, value in values.items()}}


def checkpoints(out: Path) -> list[int]:
    """Steps of the whole checkpoints in the folder of a run."""
    folder = out / "checkpoints"
    return sorted(int(entry.name) for entry in folder.glob("*") if entry.name.isdigit())


def killed(workplace: Path, out: str, victim: int, step: int, *more: str) -> str:
    """Kills a process of a run after a step's checkpoint; returns what the other says last."""
    logs = workplace / f"{out}-killed-{victim}"
    with started(commands(workplace, out, *more), logs) as processes:
        wait_until(lambda: bool(checkpoints(workplace / out)[-1:] >= [step]), processes)
        os.kill(processes[victim].pid, signal.SIGKILL)
        survivor = processes[1 - victim]
        assert survivor.wait(NOTICED) == 75, said(logs, 1 - victim)
    return said(logs, 1 - victim).rstrip().splitlines()[-1]


def assert_close(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    """A sum over a batch is made of two parts in another order: float32 rounds it otherwise."""
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=2e-5, atol=5e-5, err_msg=name)


def test_two_processes_train_as_one_does(workplace: Path) -> None:
    address = free_address()
    program = ["-m", "tests.contract.process_runs"]
    places = ["alone", f"{address},2,0", f"{address},2,1"]
    logs = workplace / "equality"
    with started([[*program, p, str(workplace), *CASES] for p in places], logs) as processes:
        ended = codes(processes, PATIENCE)
    assert ended == [0, 0, 0], [said(logs, index) for index in range(3)]
    for case in CASES:
        alone, shared = (dict(np.load(workplace / f"{case}-{count}.npz")) for count in (1, 2))
        assert_close(shared, alone)


def test_a_killed_process_ends_the_other_and_the_run_goes_on_from_its_checkpoint(
    workplace: Path,
) -> None:
    whole = finished(workplace, "whole")
    last = killed(workplace, "broken", 1, 2)
    told = (
        r"tunekit: process 1 of 2 \(pid \d+ on .*\) is gone: .* The checkpoint of step (\d+) is in"
    )
    assert (found := re.match(told, last)), last
    assert int(found[1]) in checkpoints(workplace / "broken")
    assert "run" in last and last.endswith("--resume"), last
    last = killed(workplace, "broken", 0, 6, "--resume")
    assert re.match("tunekit: process 0 of 2 .* is gone", last), last
    folder = workplace / "broken" / "checkpoints"
    for step in checkpoints(workplace / "broken")[:-1]:
        # As a kill leaves it that comes while an old checkpoint is being deleted.
        (folder / str(step) / "_CHECKPOINT_METADATA").unlink(missing_ok=True)
    shutil.copytree(workplace / "broken", workplace / "alone")
    resumed = finished(workplace, "broken", "--resume")
    for name, value in whole.items():
        np.testing.assert_array_equal(resumed[name], value, err_msg=name)
    assert_close(finished(workplace, "alone", "--resume", count=1), whole)


def test_a_process_of_another_recipe_ends_both_with_what_differs(workplace: Path) -> None:
    lines = commands(workplace, "mistaken")
    lines[1].append("optimizer.clip_norm=0.5")
    logs = workplace / "mistaken-logs"
    with started(lines, logs) as processes:
        assert codes(processes, PATIENCE) == [2, 2]
    told = "optimizer.clip_norm is .* in process 0 and .* in process 1. Give all of them the same"
    for index in range(2):
        assert re.search(told, said(logs, index)), said(logs, index)
