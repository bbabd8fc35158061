"""Two workers of Ray on this machine are one run: they equal one process, and end together."""

from __future__ import annotations

import os
import re
import signal
from pathlib import Path

import numpy as np
import pytest

from tests.processes import codes, said, started, wait_until
from tests.real.test_two_processes import (
    PATIENCE,
    assert_close,
    checkpoints,
    commands,
    finished,
    learnt,
    workplace,  # noqa: F401  (a fixture)
)

pytestmark = pytest.mark.real

RAY = ("--launcher", "ray", "--workers", "2")


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray reports to nobody, and leaves nothing in the home folder."""
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)


def workers() -> list[int]:
    """Processes of Ray's workers that train, of this machine."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            name = (folder / "cmdline").read_bytes()
        except OSError:
            continue
        if name.startswith(b"ray::RayTrainWorker"):
            found.append(int(folder.name))
    return found


def test_two_workers_train_as_one_process_does(workplace: Path) -> None:  # noqa: F811
    logs = workplace / "ray-logs"
    with started(commands(workplace, "by_ray", *RAY, count=1), logs) as processes:
        assert codes(processes, PATIENCE) == [0], said(logs, 0)
    assert f"saved in {workplace / 'by_ray'}" in said(logs, 0)
    assert_close(learnt(workplace / "by_ray"), finished(workplace, "by_one", count=1))


def test_a_killed_worker_ends_the_run_which_goes_on_from_its_checkpoint(
    workplace: Path,  # noqa: F811
) -> None:
    out, logs = workplace / "ray_broken", workplace / "ray_broken-logs"
    before = set(workers())
    with started(commands(workplace, "ray_broken", *RAY, count=1), logs) as processes:
        wait_until(lambda: bool(checkpoints(out)), processes)
        os.kill(max(set(workers()) - before), signal.SIGKILL)
        assert codes(processes, PATIENCE) == [2], said(logs, 0)
    assert "A worker of Ray is gone, and the others ended with it" in said(logs, 0)
    assert re.search(r"The checkpoint of step \d+ is in", said(logs, 0))
    steps = len(finished(workplace, "ray_broken", "--resume", count=1)["loss"])
    assert steps == len(np.unique(np.arange(steps))) and (out / "model.json").is_file()
