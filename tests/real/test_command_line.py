"""Runs of the bundled network in processes of their own: killed, resumed, interrupted, repeated."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import tunekit

ROOT = Path(__file__).parents[2]
COMMAND = [sys.executable, "-m", "tunekit.cli"]
RUN = [*COMMAND, "run", "my.yaml"]
# The result is then what the last step made, and shows whatever any step before it lost.
LAST = "runtime.restore_best=false"
# BatchNorm's statistics, moments of two phases and a cosine schedule all have to come back.
RECIPE = """
seed: 3
backbone: {name: efficientnet_lite0, image_size: 32}
data: {path: photos, validation_fraction: 0.25}
augment: {horizontal_flip: true, mixup: 0.2}
plan:
  - {train: head, epochs: 1, learning_rate: 1e-3}
  - {train: [last 1, head], epochs: 3, learning_rate: 1e-3}
batch: {size: 4}
"""
KEYWORDS = """
import tunekit
from tunekit import Phase
tunekit.finetune(
    "efficientnet_lite0",
    "photos",
    seed=3,
    image_size=32,
    validation=0.25,
    augment=tunekit.AugmentSpec(horizontal_flip=True, mixup=0.2),
    plan=[
        Phase(train="head", epochs=1, learning_rate=1e-3),
        Phase(train=("last 1", "head"), epochs=3, learning_rate=1e-3),
    ],
    batch_size=4,
    out="called",
)
"""


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a recipe, 24 photos of two classes, and the result of an unbroken run."""
    folder = tmp_path_factory.mktemp("workplace")
    rng = np.random.default_rng(0)
    for label, channel in (("blue", 2), ("red", 0)):
        (folder / "photos" / label).mkdir(parents=True)
        for index in range(12):
            pixels = rng.integers(0, 200, (40, 40, 3), dtype=np.uint8)
            pixels[..., channel] += 40
            Image.fromarray(pixels).save(folder / "photos" / label / f"{index}.png")
    (folder / "my.yaml").write_text(RECIPE)
    finished(folder, *RUN, LAST, "--out", "whole")
    return folder


def start(folder: Path, *command: str) -> subprocess.Popen[str]:
    """A process in `folder`, with what it says of its progress to be read line by line."""
    return subprocess.Popen(
        command,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finished(folder: Path, *command: str) -> str:
    """Runs a command to its end and returns what it printed."""
    with start(folder, *command) as process:
        printed, complaint = process.communicate()
    assert process.returncode == 0, complaint
    return printed


def stopped(folder: Path, out: str, line: str, sign: signal.Signals) -> tuple[int, str]:
    """Stops a run once it said `line`; returns its exit code and what it said after that."""
    with start(folder, *RUN, LAST, "--out", out) as process:
        assert process.stderr is not None
        said = iter(process.stderr.readline, "")
        assert any(each.startswith(line) for each in said), f"the run never said {line!r}"
        process.send_signal(sign)
        _, rest = process.communicate()
    return process.returncode, rest


def weights(out: Path) -> bytes:
    return (out / "model.safetensors").read_bytes()


def record(out: Path) -> tuple[dict, list[dict]]:
    """The metrics and the history of a result, but for times."""
    rows = json.loads((out / "history.json").read_text())
    for row in rows:
        del row["seconds"], row["examples_per_second"]
    return json.loads((out / "metrics.json").read_text()), rows


def assert_equal(one: Path, other: Path) -> None:
    assert record(one) == record(other)
    assert weights(one) == weights(other)


def test_a_killed_run_resumed_equals_the_unbroken_one(workplace: Path) -> None:
    code, _ = stopped(workplace, "killed", "epoch 2", signal.SIGKILL)
    killed = workplace / "killed"
    assert code == -signal.SIGKILL and not (killed / "model.safetensors").exists()
    assert list((killed / "checkpoints").iterdir())
    with start(workplace, *RUN, LAST, "--out", "killed", "--resume") as process:
        _, said = process.communicate()
    assert process.returncode == 0, said
    epochs = [line.split("  ")[0] for line in said.splitlines() if line.startswith("epoch")]
    assert epochs[-1] == "epoch 4" and "epoch 1" not in epochs
    assert_equal(killed, workplace / "whole")


def test_two_runs_of_one_seed_are_equal(workplace: Path) -> None:
    finished(workplace, *RUN, LAST, "--out", "again")
    assert_equal(workplace / "again", workplace / "whole")


def test_the_call_in_a_new_process_equals_the_command(workplace: Path) -> None:
    finished(workplace, *RUN, "--out", "commanded")
    finished(workplace, sys.executable, "-c", KEYWORDS)
    assert_equal(workplace / "called", workplace / "commanded")


def test_predictions_of_a_new_process_are_those_of_the_result(
    workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = ["photos/blue/0.png", "photos/red/3.png", "photos/red/4.png"]
    printed = finished(workplace, *COMMAND, "predict", "whole", "--json", *files)
    monkeypatch.chdir(workplace)
    predictions = tunekit.load("whole").predict(files)
    assert json.loads(printed) == [each.to_json() for each in predictions]


def test_ctrl_c_ends_a_run_with_one_line_and_code_130(workplace: Path) -> None:
    code, rest = stopped(workplace, "interrupted", "epoch 1", signal.SIGINT)
    course = ("epoch", "phase", "computed")
    lines = [line for line in rest.splitlines() if not line.startswith(course)]
    assert (code, lines) == (130, ["tunekit: interrupted."])
    assert not (workplace / "interrupted" / "model.safetensors").exists()
