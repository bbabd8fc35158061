"""Memory that XLA frees on a CPU stays with the process, to be used by its next program.

Every program of XLA's CPU backend takes its buffers from ``malloc`` and gives them back when it
ends. glibc returns blocks of that size to the kernel, which must then find, map and clear as many
pages for the next step: a fifth of the time of a training step (``benchmarks/frozen_prefix.py``).
"""

from __future__ import annotations

import ctypes
import functools
import importlib.metadata
import importlib.util
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import jax

# <malloc.h> of glibc; other C libraries have no such options.
_M_TRIM_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -4, -8
_KEPT_BYTES = 2**31 - 1
"""Free memory at the top of the heap that is kept; beyond it goes back to the kernel."""
_MMAP_MAX, _TRIM_THRESHOLD = 65536, 128 * 1024
"""What glibc begins with."""

LARGEST_KEPT_BYTES = 2**31
"""Buffers of one program beyond which freed memory goes back after all."""

MUCH_BYTES = 2**26
"""What a block must have taken for its memory to be given back."""

OPT_OUT = "TUNEKIT_RETURN_FREED_MEMORY"
"""Environment variable that, where it is set, leaves the allocator alone."""


@functools.cache
def keep_freed_memory() -> None:
    """Has ``malloc`` keep what is freed, on Linux with glibc and where JAX will run on the CPU.

    For the whole process, once, and before JAX makes its threads. All threads share one heap: of
    the heaps that they have by default, what is freed goes back at once whatever the threshold.
    """
    if OPT_OUT in os.environ or sys.platform != "linux" or _may_have_accelerator():
        return
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):  # musl, for one, has neither this name nor the function.
        return
    mallopt(_M_ARENA_MAX, 1)
    mallopt(_M_MMAP_MAX, 0)
    mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES)
    _kept.append(mallopt)


def return_freed_memory() -> None:
    """Has ``malloc`` give freed memory back again, for the rest of the process.

    A program takes its buffers as one block. One of several gigabytes no longer fits where it was
    once small arrays lie in the gap, and the heap grows by another: LoRA steps on SmolLM2-135M
    peaked at twice what they need.
    """
    while _kept:
        mallopt = _kept.pop()
        mallopt(_M_MMAP_MAX, _MMAP_MAX)
        mallopt(_M_TRIM_THRESHOLD, _TRIM_THRESHOLD)


@contextmanager
def memory_given_back() -> Iterator[None]:
    """What the block took for itself and let go goes back to the system, where it is much.

    Loading a model, and compiling or loading a program, takes some times what stays of it; kept by
    ``malloc``, it would lie beside the buffers of training. SmolLM2-135M's LoRA steps peaked 1.5 GB
    higher (``benchmarks/plan_memory.py``).
    """
    before = _resident_bytes()
    yield
    if before is not None and (_resident_bytes() or 0) - before > MUCH_BYTES:
        with suppress(OSError, AttributeError):  # musl, for one, has neither.
            ctypes.CDLL("libc.so.6").malloc_trim(0)


def _resident_bytes() -> int | None:
    """Bytes of memory that this process holds; `None` on a system that is not Linux."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        return None
    return pages * os.sysconf("SC_PAGESIZE")


_kept: list[Any] = []
"""The allocator's door, while it keeps what is freed."""


def _may_have_accelerator() -> bool:
    """Whether JAX may choose something else than the CPU; asking JAX itself starts its threads."""
    if platforms := jax.config.jax_platforms:  # pyright: ignore[reportAttributeAccessIssue]
        return platforms.split(",")[0] != "cpu"
    plugins = importlib.metadata.entry_points(group="jax_plugins")
    return bool(plugins) or importlib.util.find_spec("libtpu") is not None
