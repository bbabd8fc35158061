"""Two workers of Ray on this machine are one run: they equal one process, and end together."""

from __future__ import annotations

import os
import re
import signal
from pathlib import Path

import pytest

import tunekit
from tests.processes import codes, said, started, wait_until
from tests.real.test_two_processes import (
    NOTICED,
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


def test_two_workers_end_together_go_on_from_their_checkpoint_and_equal_one_process(
    workplace: Path,  # noqa: F811
) -> None:
    out, logs = workplace / "by_ray", workplace / "by_ray-logs"
    command = commands(workplace, "by_ray", *RAY, count=1)
    before = set(workers())
    with started(command, logs) as processes:
        wait_until(lambda: len(checkpoints(out)) > 1, processes)
        os.kill(max(set(workers()) - before), signal.SIGKILL)
        assert codes(processes, NOTICED) == [2], said(logs, 0)
    assert "A worker of Ray is gone, and the others ended with it" in said(logs, 0)
    assert re.search(r"The checkpoint of step \d+ is in", said(logs, 0))
    with started([[*command[0], "--resume"]], logs) as processes:
        assert codes(processes, PATIENCE) == [0], said(logs, 0)
    assert f"saved in {out}" in said(logs, 0)
    assert tunekit.load(out).report["device"]["processes"] == 2
    assert_close(learnt(out), finished(workplace, "alone", count=1))
