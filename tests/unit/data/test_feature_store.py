"""Kept features: whole and right or absent, whoever writes, dies, or runs out of room."""

from __future__ import annotations

import hashlib
import os
import random
import resource
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from tunekit.data.feature_store import FeatureStore, default_folder
from tunekit.data.memory import available_memory
from tunekit.data.spec import CacheSpec
from tunekit.errors import DataError

SHAPE = (1, 64, 256)


def key(name: object) -> str:
    return hashlib.sha256(str(name).encode()).hexdigest()


def content(name: object) -> np.ndarray:
    return np.random.default_rng(list(str(name).encode())).random(SHAPE).astype(np.float32)


class Filling:
    """Writes the content of one name, and counts."""

    def __init__(self, name: object = 0) -> None:
        self.name, self.times = name, 0

    def __call__(self, out: np.ndarray) -> None:
        self.times += 1
        out[:] = content(self.name)


def store(folder: Path, kind: str = "disk", **fields: Any) -> FeatureStore:
    spec: Any = {"store": kind, "folder": str(folder), **fields}
    return FeatureStore(CacheSpec(**spec))


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("kind", ["ram", "disk", "auto"])
def test_an_array_is_computed_once_and_not_to_be_written_to(tmp_path, kind):
    features, fill = store(tmp_path, kind), Filling()
    for _ in range(2):
        array = features.get(key(0), SHAPE, fill)
        np.testing.assert_array_equal(array, content(0))
        assert array.dtype == np.float32
    assert fill.times == 1
    with pytest.raises(ValueError, match="read-only"):
        array[:] = 0


def test_files_serve_a_later_run_and_memory_does_not(tmp_path):
    store(tmp_path, "ram").get(key(0), SHAPE, Filling())
    assert names(tmp_path) == []
    store(tmp_path, "disk").get(key(0), SHAPE, Filling())
    assert names(tmp_path) == [f"{key(0)}.npy"]
    for kind in ("disk", "auto"):
        again = Filling()
        array = store(tmp_path, kind).get(key(0), SHAPE, again)
        np.testing.assert_array_equal(array, content(0))
        assert again.times == 0


@pytest.mark.parametrize("kind", ["ram", "disk"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_features_are_kept_in_the_precision_asked_for(tmp_path, kind, dtype):
    expected = content(0).astype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)
    for _ in range(2):
        array = store(tmp_path, kind, dtype=dtype).get(key(0), SHAPE, Filling())
        assert array.dtype == expected.dtype
        np.testing.assert_array_equal(array.view(np.uint8), expected.view(np.uint8))
    if kind == "disk":
        on_disk = np.load(tmp_path / f"{key(0)}.npy")
        assert on_disk.dtype == ("uint16" if dtype == "bfloat16" else dtype)


def test_a_file_of_another_shape_or_precision_or_cut_short_is_made_anew(tmp_path):
    path = tmp_path / f"{key(0)}.npy"
    store(tmp_path).get(key(0), SHAPE, Filling())
    other = Filling()
    store(tmp_path, dtype="float16").get(key(0), SHAPE, other)
    assert other.times == 1 and np.load(path).dtype == np.float16
    small = store(tmp_path).get(key(0), (1, 2, 3), lambda out: out.fill(7))
    assert np.all(small == 7) and small.shape == (1, 2, 3)
    store(tmp_path).get(key(0), SHAPE, Filling())
    os.truncate(path, 1000)
    array = store(tmp_path).get(key(0), SHAPE, again := Filling())
    assert again.times == 1
    np.testing.assert_array_equal(array, content(0))


@pytest.mark.parametrize("kind", ["ram", "disk"])
def test_a_fill_that_fails_leaves_nothing(tmp_path, kind):
    def fail(out: np.ndarray) -> None:
        out[:] = 1
        raise KeyboardInterrupt

    features = store(tmp_path, kind)
    with pytest.raises(KeyboardInterrupt):
        features.get(key(0), SHAPE, fail)
    assert names(tmp_path) == []
    np.testing.assert_array_equal(features.get(key(0), SHAPE, Filling()), content(0))


_WRITER = """
import sys, time
from pathlib import Path
sys.path.insert(0, ".")
from tests.unit.data.test_feature_store import SHAPE, content, key, store
folder, start = Path(sys.argv[1]), int(sys.argv[2])
features = store(folder)
def fill(out):
    for row, values in enumerate(content(name)[0]):
        out[0, row] = values
        time.sleep(0.0002)
for name in range(start, start + 200):
    features.get(key(name), SHAPE, fill)
    print("written", flush=True)
"""


def writer(folder: Path, start: int) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", _WRITER, str(folder), str(start)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stdout.readline() == "written\n"
    return process


def test_a_process_killed_at_any_of_twenty_moments_leaves_no_wrong_or_half_array(tmp_path):
    moments = random.Random(0)
    whole = halves = 0
    for _ in range(20):
        process = writer(tmp_path, whole)
        time.sleep(moments.uniform(0, 0.1))
        process.kill()
        process.communicate()
        files = list(tmp_path.glob("*.npy"))
        halves += len(list(tmp_path.glob("*.partial")))
        right = {f"{key(name)}.npy": name for name in range(len(files))}
        for path in files:
            np.testing.assert_array_equal(np.load(path), content(right[path.name]))
        whole = len(files)
    assert whole >= 20 and halves > 0, "none was killed within a file"
    # The next to write, another key even, clears the table.
    store(tmp_path).get(key("next"), SHAPE, Filling("next"))
    assert len(names(tmp_path)) == whole + 1
    for name in range(whole + 1):
        array = store(tmp_path).get(key(name), SHAPE, Filling(name))
        np.testing.assert_array_equal(array, content(name))


_ONCE = """
import sys, time
from pathlib import Path
sys.path.insert(0, ".")
from tests.unit.data.test_feature_store import SHAPE, content, key, store
def fill(out):
    print("filling", flush=True)
    time.sleep(0.5)
    out[:] = content(0)
array = store(Path(sys.argv[1])).get(key(0), SHAPE, fill)
assert (array == content(0)).all()
"""


def test_of_two_processes_that_want_the_same_at_once_one_computes_it(tmp_path):
    command = [sys.executable, "-c", _ONCE, str(tmp_path)]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    printed = [process.communicate()[0] for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert "".join(printed) == "filling\n"
    assert names(tmp_path) == [f"{key(0)}.npy"]


def test_a_waiting_process_computes_what_a_killed_one_did_not_finish(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-c", _ONCE, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stdout.readline() == "filling\n"
    fill, arrays = Filling(), []
    waiting = threading.Thread(
        target=lambda: arrays.append(store(tmp_path).get(key(0), SHAPE, fill))
    )
    waiting.start()
    assert fill.times == 0
    process.kill()
    process.communicate()
    waiting.join(30)
    assert fill.times == 1
    np.testing.assert_array_equal(arrays[0], content(0))
    assert names(tmp_path) == [f"{key(0)}.npy"]


def test_what_is_not_the_caches_own_is_left_alone(tmp_path):
    for name in ("mine.npy", "mine.partial", "notes.txt"):
        (tmp_path / name).write_text("mine")
    small = store(tmp_path)
    small._disk_limit = lambda: 0  # Every file would have to go.
    with pytest.raises(DataError):
        small.get(key(0), SHAPE, Filling())
    store(tmp_path).get(key(0), SHAPE, Filling())
    assert names(tmp_path) == sorted([f"{key(0)}.npy", "mine.npy", "mine.partial", "notes.txt"])


def test_files_not_used_for_longest_make_room(tmp_path):
    size = int(np.prod(SHAPE)) * 4
    features = store(tmp_path)
    for age, name in ((30, "oldest"), (20, "old"), (10, "young")):
        features.get(key(name), SHAPE, Filling(name))
        os.utime(tmp_path / f"{key(name)}.npy", (time.time() - age,) * 2)
    held = features.get(key("oldest"), SHAPE, Filling())  # Used again, and so the youngest.
    features._disk_limit = lambda: 3 * size + 3 * 4096
    features.get(key("new"), SHAPE, Filling("new"))
    kept = {f"{key(name)}.npy" for name in ("oldest", "young", "new")}
    assert set(names(tmp_path)) == kept
    np.testing.assert_array_equal(held, content("oldest"))


def test_arrays_in_memory_not_used_for_longest_make_room(tmp_path):
    features = store(tmp_path, "ram")
    features._memory_limit = 2 * int(np.prod(SHAPE)) * 4
    fills = {name: Filling(name) for name in "abc"}
    for name in "abacab":
        np.testing.assert_array_equal(
            features.get(key(name), SHAPE, fills[name]), content(name), err_msg=name
        )
    assert {name: fill.times for name, fill in fills.items()} == {"a": 1, "b": 2, "c": 1}


def test_the_place_is_memory_then_disk_then_none(tmp_path):
    features = store(tmp_path, "auto")
    features._memory_limit = 1000
    assert features.plan(1000) == "ram"
    assert features.plan(1001) == "disk"
    assert features.plan(1 << 60) == "off"
    assert store(tmp_path, "off").plan(1) == "off"
    unwritable = tmp_path / "file"
    unwritable.write_text("")
    nowhere = store(unwritable, "auto")
    nowhere._memory_limit = 1000
    assert nowhere.plan(1001) == "off"
    with pytest.raises(DataError, match=r"1e\+06 GB of features have no place; leave it off"):
        features.get(key(0), (int(1e15) // 4,), Filling())


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("ram", r"'ram': the features take 1e\+06 GB, and memory has room for .*Choose 'disk'"),
        ("disk", r"'disk': the features take 1e\+06 GB, and .*features has room .*Choose 'ram'"),
    ],
)
def test_a_named_place_that_is_too_small_is_an_error_with_sizes(tmp_path, kind, message):
    with pytest.raises(DataError, match=message):
        store(tmp_path / "features", kind).plan(int(1e15))


def test_a_folder_that_cannot_be_written_to_is_an_error_with_its_name(tmp_path):
    (tmp_path / "file").write_text("")
    fill = Filling()
    with pytest.raises(DataError, match=r"cannot write to .*file/below: .*Name another folder"):
        store(tmp_path / "file" / "below").get(key(0), SHAPE, fill)
    assert fill.times == 0


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """Within the block the system refuses larger files, as a full disk does."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_disk_that_has_no_room_says_so_before_anything_is_computed(tmp_path):
    fill = Filling()
    with largest_file(10_000), pytest.raises(DataError, match="cannot write .*make room, or"):
        store(tmp_path).get(key(0), SHAPE, fill)
    assert fill.times == 0
    assert names(tmp_path) == []


def test_files_lie_in_the_users_cache_folder_where_none_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert FeatureStore(CacheSpec()).folder == tmp_path / "tunekit" / "features"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert default_folder() == tmp_path / ".cache" / "tunekit" / "features"


def test_free_memory_is_the_machines_within_the_containers_limit(tmp_path):
    machine = tmp_path / "meminfo"
    machine.write_text("MemTotal: 9000 kB\nMemAvailable:    4000 kB\n")
    assert available_memory(machine, tmp_path) == 4_096_000
    (tmp_path / "memory.max").write_text("max\n")
    assert available_memory(machine, tmp_path) == 4_096_000
    (tmp_path / "memory.max").write_text("1000000\n")
    (tmp_path / "memory.current").write_text("900000\n")
    (tmp_path / "memory.stat").write_text("anon 1\ninactive_file 300000\n")
    assert available_memory(machine, tmp_path) == 400_000
    assert available_memory(tmp_path / "none", tmp_path / "none") > 1e6
    assert available_memory() > 1e6
