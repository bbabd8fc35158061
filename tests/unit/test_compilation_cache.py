"""Compiled programs on the disk, each case in a process of its own: JAX is set once in each."""

from __future__ import annotations

import os
import subprocess
import sys
import zlib
from pathlib import Path

import pytest

from tunekit.compilation_cache import Kept, cache_warning, kind_of_cpu

PROGRAM = """
import warnings, sys
from tunekit.compilation_cache import keep_programs, cache_warning
import jax, jax.numpy as jnp
assert jax.config.jax_compilation_cache_dir == BEFORE, jax.config.jax_compilation_cache_dir
hits = []
jax.monitoring.register_event_listener(lambda event, **_: hits.append(event))
kept = keep_programs()
assert keep_programs().folder == kept.folder
jax.jit(lambda x: jnp.tanh(x) @ x + NUMBER)(jnp.ones((3, 3))).block_until_ready()
print(kept.folder)
print(kept.reason)
print(hits.count('/jax/compilation_cache/cache_hits'))
print(cache_warning(kept))
"""


def start(
    home: Path, *, number: int = 1, before: str | None = None, **environment: str
) -> list[str]:
    """What a process says: folder, reason, programs found, line; and then what it warned of."""
    ours = {"XDG_CACHE_HOME": str(home), **environment}
    theirs = {n: v for n, v in os.environ.items() if "CACHE" not in n}
    code = f"BEFORE, NUMBER = {before!r}, {number}\n{PROGRAM}"
    done = subprocess.run(
        [sys.executable, "-c", code], env={**theirs, **ours}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return [*done.stdout.splitlines(), done.stderr]


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    """A cache folder in which one process has left its programs."""
    home = tmp_path_factory.mktemp("home")
    folder, reason, found, line, _ = start(home)
    assert folder == str(home / "tunekit" / "programs" / kind_of_cpu())
    assert (reason, found, line) == ("", "0", "None")
    return home


def entries(home: Path) -> list[Path]:
    return sorted(home.glob("tunekit/programs/*/jit__lambda-*-cache"))


def test_a_second_process_finds_the_programs_of_the_first(home):
    found, errors = start(home)[2::2]
    assert int(found) > 0
    # What XLA says of a program for another kind of CPU would be here.
    assert errors == ""


def test_an_entry_whose_writer_was_killed_is_written_anew_and_stops_no_other(home):
    (entry,) = entries(home)
    used = entry.with_name(entry.name.replace("-cache", "-atime"))
    whole = entry.read_bytes()
    entry.write_bytes(whole[: len(whole) // 2])
    used.unlink()
    assert start(home)[4] == ""
    zlib.decompress(entry.read_bytes())
    assert used.exists()


def test_an_entry_that_has_gone_bad_is_said_and_is_not_fatal(home):
    (entry,) = entries(home)
    whole = entry.read_bytes()
    entry.write_bytes(whole[:50] + bytes(50) + whole[100:])
    try:
        assert "Error reading persistent compilation cache entry" in start(home)[4]
    finally:
        entry.write_bytes(whole)


def test_two_processes_that_write_at_once_leave_whole_entries(tmp_path):
    environment = {n: v for n, v in os.environ.items() if "CACHE" not in n}
    code = f"BEFORE, NUMBER = None, 2\n{PROGRAM}"
    both = [
        subprocess.Popen(
            [sys.executable, "-c", code],
            env={**environment, "XDG_CACHE_HOME": str(tmp_path)},
            stderr=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
        )
        for _ in range(2)
    ]
    assert [process.communicate()[1] for process in both] == [b"", b""]
    (entry,) = entries(tmp_path)
    zlib.decompress(entry.read_bytes())


def test_a_folder_that_cannot_be_written_to_is_said_and_is_not_fatal(tmp_path):
    (tmp_path / "tunekit").write_text("in the way")
    folder, reason, _, line, _ = start(tmp_path)
    assert folder == "None"
    assert reason.startswith(f"cannot write to {tmp_path}")
    assert "compiled programs are not kept" in line and "JAX_COMPILATION_CACHE_DIR" in line


def test_a_folder_that_the_user_has_given_jax_is_left_as_it_is(tmp_path):
    own = str(tmp_path / "own")
    folder, reason, _, line, _ = start(tmp_path, before=own, JAX_COMPILATION_CACHE_DIR=own)
    assert (folder, reason, line) == (own, "chosen in JAX", "None")
    # Its thresholds are the user's too: by JAX' own, what is compiled at once is not kept.
    assert not (tmp_path / "tunekit").exists() and not list(Path(own).glob("jit__lambda*"))


@pytest.mark.parametrize(
    ("environment", "reason"),
    [
        ({"TUNEKIT_COMPILATION_CACHE": "off"}, "switched off by TUNEKIT_COMPILATION_CACHE"),
        ({"JAX_ENABLE_COMPILATION_CACHE": "false"}, "switched off in JAX"),
    ],
)
def test_the_cache_can_be_switched_off(tmp_path, environment, reason):
    folder, why, _, line, _ = start(tmp_path, **environment)
    assert (folder, why, line) == ("None", reason, "None")
    assert not list(tmp_path.rglob("*-cache"))


def test_each_kind_of_cpu_has_a_folder_of_its_own(tmp_path):
    first, same, other = (tmp_path / name for name in ("first", "same", "other"))
    first.write_text("processor\t: 0\nmodel name\t: A\nflags\t\t: avx2 sse2\n\nprocessor\t: 1\n")
    same.write_text("processor\t: 0\ncpu MHz\t: 3\nmodel name\t: A\nflags\t\t: sse2 avx2\n")
    other.write_text("processor\t: 0\nmodel name\t: A\nflags\t\t: sse2 avx2 avx512f\n")
    assert kind_of_cpu(first) == kind_of_cpu(same) != kind_of_cpu(other)
    assert kind_of_cpu(tmp_path / "absent") != kind_of_cpu(first)


def test_what_was_chosen_is_not_warned_of():
    assert cache_warning(Kept(None, "switched off in JAX")) is None
    assert cache_warning(Kept("/folder", "chosen in JAX")) is None
