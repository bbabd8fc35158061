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


_kept: list[Any] = []
"""The allocator's door, while it keeps what is freed."""


def _may_have_accelerator() -> bool:
    """Whether JAX may choose something else than the CPU; asking JAX itself starts its threads."""
    if platforms := jax.config.jax_platforms:  # pyright: ignore[reportAttributeAccessIssue]
        return platforms.split(",")[0] != "cpu"
    plugins = importlib.metadata.entry_points(group="jax_plugins")
    return bool(plugins) or importlib.util.find_spec("libtpu") is not None
