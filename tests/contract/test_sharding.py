"""Several devices give what one does: eight virtual ones, in a process of their own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.contract.sharded_runs import FAMILIES, RUNS

ROOT = Path(__file__).parents[2]
CASES = [
    f"{family} {m} {mesh}" for family in FAMILIES for m, meshes in RUNS.items() for mesh in meshes
]

# Sums over a batch or a width are taken in parts, in another order: float32 rounding, 6e-8 of the
# loss a step. Adam divides by the root of a mean of squares, so a gradient that is nearly zero may
# move a weight the other way: by up to the learning rate (1e-3) a step where it is rounding alone.
LOSSES = 2e-5
WEIGHTS = 5e-4


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """What each run came to, beside the same on one device."""
    flags = "--xla_force_host_platform_device_count=8"
    done = subprocess.run(
        [sys.executable, "-m", "tests.contract.sharded_runs", str(tmp_path_factory.mktemp("runs"))],
        cwd=ROOT,
        env=os.environ | {"XLA_FLAGS": flags, "KERAS_BACKEND": "jax"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return {run["name"]: run for run in map(json.loads, done.stdout.splitlines())}


@pytest.mark.parametrize("case", CASES)
def test_several_devices_give_what_one_does(case: str, runs: dict[str, Any]) -> None:
    run = runs[case]
    for losses in ("losses", "val_losses"):
        alone, shared = run[losses]
        np.testing.assert_allclose(shared, alone, rtol=LOSSES)
    assert run["values_apart"] < WEIGHTS


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("method", ("full", "lora"))
def test_fsdp_leaves_each_device_its_share_of_the_state(
    family: str, method: str, runs: dict[str, Any]
) -> None:
    alone, shared = runs[f"{family} {method} fsdp"]["memory"]
    held = ("trained", "optimizer") if method == "full" else ("frozen",)
    assert sum(shared[k] for k in held) < 1.1 / 8 * sum(alone[k] for k in held)


def test_data_parallel_devices_have_all_of_the_state(runs: dict[str, Any]) -> None:
    alone, shared = runs["vit full data"]["memory"]
    assert shared["trained"] == alone["trained"]
    assert runs["vit full data"]["mesh"] == "data 8"


def test_tensor_parallel_devices_share_weights_too(runs: dict[str, Any]) -> None:
    alone, shared = runs["vit full tensor"]["memory"]
    assert shared["trained"] < 0.5 * alone["trained"]
