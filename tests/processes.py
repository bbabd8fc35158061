"""Several processes of one run on this machine: started, waited for, and none left behind."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).parents[1]
_QUIET = {"TF_CPP_MIN_LOG_LEVEL": "2", "JAX_PLATFORMS": "cpu"}


def free_address() -> str:
    """Returns "host:port" of this machine where nothing listens."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return f"127.0.0.1:{server.getsockname()[1]}"


@contextmanager
def started(commands: Sequence[Sequence[str]], folder: Path) -> Iterator[list[subprocess.Popen]]:
    """Yields a process of Python for each command, with its output in ``<folder>/<index>.log``.

    What one that is not the first keeps to itself is in ``<folder>/speech.<index>``.
    """
    processes: list[subprocess.Popen] = []
    folder.mkdir(parents=True, exist_ok=True)
    try:
        for index, command in enumerate(commands):
            with open(folder / f"{index}.log", "w") as log:
                process = subprocess.Popen(
                    [sys.executable, "-u", *command],
                    cwd=ROOT,
                    env={**os.environ, **_QUIET, "TUNEKIT_LOG": str(folder / "speech")},
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
            processes.append(process)
        yield processes
    finally:
        for process in processes:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def said(folder: Path, index: int) -> str:
    """Returns what a process has printed."""
    return (folder / f"{index}.log").read_text()


def wait_until(holds: Callable[[], bool], processes: Sequence[subprocess.Popen]) -> None:
    """Returns once the condition holds; fails where a process has ended before."""
    while not holds():
        ended = [process.args for process in processes if process.poll() is not None]
        assert not ended, f"ended too early: {ended}"
        time.sleep(0.005)


def codes(processes: Sequence[subprocess.Popen], seconds: float) -> list[int]:
    """Returns the exit codes, once all have ended of themselves."""
    until = time.monotonic() + seconds
    return [process.wait(max(until - time.monotonic(), 0.1)) for process in processes]
