"""Programs that XLA has compiled are kept on the disk: a second start compiles nothing anew.

JAX keeps them by what was traced, its version, XLA's flags and the kind of device, in
``$XDG_CACHE_HOME/tunekit/programs`` or ``~/.cache/tunekit/programs``. To clear the cache, delete
that folder, whenever. Beyond `LARGEST_BYTES` the programs not used for longest go. In its folder
``steps`` are the training steps of whole runs, which a second start finds without tracing them.

What JAX leaves to its user is seen to here (read in JAX 0.10):

- by default only what took a second to compile is kept, which few programs do;
- a program for one kind of CPU may stop another one dead (SIGILL), and a home may be shared: each
  kind has a folder of its own;
- without a bound the folder grows, and with one, an entry whose writer was killed would keep every
  later one from being written (`_delete_unfinished`).
"""

from __future__ import annotations

import functools
import hashlib
import os
import platform
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

OPT_OUT = "TUNEKIT_COMPILATION_CACHE"
"""Environment variable that, set to "off", leaves JAX' own settings alone."""
LARGEST_BYTES = 2 * 2**30
"""Of the programs for one kind of CPU."""
_CPU_INFO = Path("/proc/cpuinfo")
_SAID = ("vendor_id", "cpu family", "model", "model name", "flags")
_SAID_BY_ARM = ("CPU implementer", "CPU architecture", "CPU variant", "CPU part", "Features")


@dataclass(frozen=True)
class Kept:
    """Where this process keeps its programs."""

    folder: str | None
    """`None`: nowhere."""
    reason: str = ""
    """Why nowhere, or who chose the folder; "" where it is tunekit's own."""


def keep_programs() -> Kept:
    """Programs compiled from now on are kept on the disk, and read from there.

    For the whole process, once. A folder that the user has given JAX is used as it is, with the
    user's own thresholds; a folder that cannot be written to is no reason to stop.
    """
    import jax

    if not jax.config.jax_enable_compilation_cache:  # pyright: ignore[reportAttributeAccessIssue]
        return Kept(None, "switched off in JAX")
    present = jax.config.jax_compilation_cache_dir  # pyright: ignore[reportAttributeAccessIssue]
    folder = default_folder() / kind_of_cpu()
    if present == str(folder):
        return Kept(present)
    if present is not None:
        return Kept(present, "chosen in JAX")
    if os.environ.get(OPT_OUT, "").lower() in ("off", "0", "false"):
        return Kept(None, f"switched off by {OPT_OUT}")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        return Kept(None, f"cannot write to {folder}: {error.strerror or error}")
    _delete_unfinished(folder)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    jax.config.update("jax_compilation_cache_max_size", LARGEST_BYTES)
    jax.config.update("jax_compilation_cache_dir", str(folder))
    return Kept(str(folder))


def cache_warning(kept: Kept) -> str | None:
    """Returns the line for a run whose programs nobody chose not to keep; else `None`."""
    if kept.folder is not None or not kept.reason.startswith("cannot"):
        return None
    return (
        f"compiled programs are not kept, so the next start compiles them again: {kept.reason}. "
        f"Name a folder by JAX_COMPILATION_CACHE_DIR, or set {OPT_OUT}=off."
    )


@contextmanager
def watched() -> Iterator[Callable[[], bool]]:
    """Yields what tells whether this thread has compiled in the block, or found all programs.

    It says so of programs that JAX has written to the disk, too.
    """
    _listen()
    before = getattr(_WRITTEN, "count", 0)
    yield lambda: getattr(_WRITTEN, "count", 0) > before


_WRITTEN = threading.local()
"""How many programs a thread has compiled and written."""


@functools.cache
def _listen() -> None:
    import jax

    def heard(event: str, **_: Any) -> None:
        # JAX tells of it in the thread that compiles.
        if event == "/jax/compilation_cache/cache_misses":
            _WRITTEN.count = getattr(_WRITTEN, "count", 0) + 1

    jax.monitoring.register_event_listener(heard)


def kept_steps_folder() -> Path | None:
    """Returns where whole steps are kept (``training.kept_steps``): within tunekit's own folder.

    `None` where the user has chosen another folder, or none.
    """
    kept = keep_programs()
    return None if kept.folder is None or kept.reason else Path(kept.folder) / "steps"


def default_folder() -> Path:
    """Returns the folder of the programs, for all kinds of CPU."""
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "tunekit" / "programs"


def kind_of_cpu(cpu_info: Path = _CPU_INFO) -> str:
    """Returns a name that is equal for CPUs of one model with the same instructions.

    Args:
        cpu_info: Linux' account of the CPUs; elsewhere the platform's own words are taken.
    """
    machine = platform.machine() or "cpu"
    try:
        rows = cpu_info.read_text(encoding="utf-8", errors="replace").split("\n\n")[0].splitlines()
    except OSError:
        said = [platform.system(), platform.processor()]
    else:
        fields = {name.strip(): value for name, _, value in (row.partition(":") for row in rows)}
        said = [
            " ".join(sorted(fields[name].split()))
            for name in (*_SAID, *_SAID_BY_ARM)
            if name in fields
        ]
    return f"{machine}-{hashlib.sha256(repr(said).encode()).hexdigest()[:12]}"


def _delete_unfinished(folder: Path) -> None:
    """Deletes the entries whose writer died, unless another process is writing right now.

    JAX writes an entry and then the time of its use; it looks for the latter of each entry when it
    makes room, and gives up where there is none.
    """
    from filelock import FileLock, Timeout

    try:
        with FileLock(folder / ".lockfile", timeout=0):
            for entry in folder.glob("*-cache"):
                used = entry.with_name(f"{entry.name.removesuffix('-cache')}-atime")
                if not used.exists():
                    entry.unlink(missing_ok=True)
    except (Timeout, OSError):
        return
