"""Compiled steps on the disk, found before anything is traced.

The cache of XLA's programs (``tunekit.compilation_cache``) is asked with the program written out:
a second start still walks every layer in Python, and that is most of what it waits for. Here a step
is found by what it is made from. Whoever opens a folder says all of that in `KeptSteps.run`; names
and shapes of what the step takes are added here.

Of a step there are two files: the executable, by the program that it was compiled from, and for
each run that has this program a file that names it. A run that differs in what no program depends
on, such as its rates, compiles nothing and has its own name for the same executable.

A name begins with its recipe's, so that a start can load the step that the last one began with
while it still loads the model (`ExpectedStep`); what it is made from is asked afterwards all the
same.

An executable is no safer to load than a program is to run: the folder is its user's alone.
"""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import tempfile
import zlib
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import serialize_executable

from tunekit.models.cpu_memory import memory_given_back

LARGEST_BYTES = 2**30
"""Of a folder; beyond it what was not used for longest goes."""


class ExpectedStep:
    """The step that the last start of a recipe began with, on its way in a thread.

    Args:
        folder: of the steps.
        recipe: as in `KeptSteps`.
    """

    def __init__(self, folder: Path, recipe: str) -> None:
        """Begins to load it, if there is one."""
        self._executable: Path | None = None
        self._loading: Future[jax.stages.Compiled | None] | None = None
        with suppress(OSError):
            names = folder.glob(f"{recipe}-0-*.name")
            newest = max(names, key=lambda name: name.stat().st_mtime, default=None)
            if newest is None or (executable := _executable(newest)) is None:
                return
            self._executable = executable
            thread = ThreadPoolExecutor(1, "expected-step")
            self._loading = thread.submit(_load, executable, jax.devices()[:1])
            thread.shutdown(wait=False)

    def taken(self, executable: Path) -> Future[jax.stages.Compiled | None] | None:
        """Returns the step if it is that of `executable`, once; another is let go."""
        loading, self._loading = self._loading, None
        return loading if executable == self._executable else None


@dataclass(frozen=True)
class KeptSteps:
    """The steps of one run that earlier starts of it have compiled, on one device."""

    folder: Path
    """Made with the first step that is kept."""
    run: str
    """All that the steps are made from but the shapes of what they take, as a hash."""
    machine: str
    """All that compiling depends on but the program, as a hash."""
    recipe: str
    """The recipe alone, as a hash."""
    expected: ExpectedStep | None = field(default=None, compare=False)
    """Loaded since before the model was."""

    def name_of(self, index: int, arguments: Sequence[Any]) -> Path:
        """Returns the file that names the executable of a phase's step, or would.

        Args:
            index: of the phase.
            arguments: of the step, or their shapes.
        """
        leaves, _ = jax.tree_util.tree_flatten_with_path(tuple(arguments))
        taken = [(jax.tree_util.keystr(path), np.shape(x), str(x.dtype)) for path, x in leaves]
        return self.folder / f"{self.recipe}-{index}-{_hash(self.run, taken)}.name"

    def named(self, name: Path) -> Path | None:
        """Returns the executable that is there under a name; else `None`."""
        if (executable := _executable(name)) is not None:
            with suppress(OSError):
                os.utime(name)
        return executable

    def executable_of(self, lowered: jax.stages.Lowered) -> Path:
        """Returns the file of the executable of a program, which may not be there."""
        trees = str(lowered.in_tree), str(lowered.out_tree)
        return self.folder / f"{_hash(self.machine, trees, lowered.as_text())}.step"

    def load(self, executable: Path) -> jax.stages.Compiled | None:
        """Returns the step in a file; `None` where it cannot be read, and then it is deleted."""
        if self.expected is not None and (loading := self.expected.taken(executable)) is not None:
            return loading.result()
        return _load(executable, jax.devices()[:1])

    def keep(self, name: Path, executable: Path, step: jax.stages.Compiled | None) -> None:
        """Writes a step and its name; what cannot be kept or written is left.

        Args:
            name: of `name_of`.
            executable: of `executable_of`.
            step: just compiled, for XLA writes no whole executable from one that it has read
                (jaxlib 0.10.2: "Function … not found" when it runs); `None`: it is there already.
        """
        try:
            kept = step and pickle.dumps(serialize_executable.serialize(step))
        except (ValueError, NotImplementedError):  # A backend without, or constants taken along.
            return
        with suppress(OSError):
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            if kept:
                self._write(executable, zlib.compress(kept, level=1))
            self._write(name, executable.name.encode("ascii"))
            self._make_room()

    def _write(self, file: Path, content: bytes) -> None:
        """Whole, or not at all: nothing is left of what a full disk has cut off."""
        unfinished = tempfile.NamedTemporaryFile(dir=self.folder, delete=False)
        try:
            with unfinished:
                unfinished.write(content)
            os.replace(unfinished.name, file)
        except OSError:
            Path(unfinished.name).unlink(missing_ok=True)
            raise

    def _make_room(self) -> None:
        """Deletes the oldest files beyond `LARGEST_BYTES`, and what killed processes left."""
        found = [(entry.stat(), entry) for entry in self.folder.iterdir()]
        found.sort(key=lambda pair: pair[0].st_mtime, reverse=True)
        held = 0
        for facts, entry in found:
            held += facts.st_size
            # The newest may be another process' that is still writing.
            if held > LARGEST_BYTES and entry is not found[0][1]:
                entry.unlink(missing_ok=True)


def _executable(name: Path) -> Path | None:
    """The executable that a file names, if it is there."""
    with suppress(OSError):
        executable = name.with_name(name.read_text(encoding="ascii"))
        return executable if executable.is_file() else None
    return None


def _load(executable: Path, devices: Sequence[Any]) -> jax.stages.Compiled | None:
    """The step in a file, for devices that are there: only what is wrong with the file counts."""
    if not executable.is_file():
        return None
    try:
        kept = pickle.loads(zlib.decompress(executable.read_bytes()))
        with memory_given_back():
            step = serialize_executable.deserialize_and_load(*kept, execution_devices=devices)
    except Exception:  # Of many kinds, from several libraries; the step is compiled again.
        with suppress(OSError):
            executable.unlink()
        return None
    with suppress(OSError):
        os.utime(executable)
    return step


def _hash(*parts: Any) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()
