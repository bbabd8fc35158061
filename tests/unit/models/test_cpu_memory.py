"""Freed memory stays with the process, where that is asked for and possible."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tunekit.models.cpu_memory import OPT_OUT

# A program of more than 100 MB of buffers, as a sort needs on any CPU; prints what malloc keeps
# of them when it has run.
PROGRAM = """
import ctypes, time
from tunekit.models.cpu_memory import keep_freed_memory
keep_freed_memory()
import jax, jax.numpy as jnp
x = jnp.ones((250_000, 64))
program = jax.jit(lambda x: (jnp.sort(x * 2) * jnp.sort(x, axis=0)).sum()).lower(x).compile()
assert program.memory_analysis().temp_size_in_bytes > 100e6
NAMES = "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost".split()
class Mallinfo(ctypes.Structure): _fields_ = [(name, ctypes.c_size_t) for name in NAMES]
library = ctypes.CDLL("libc.so.6")
library.mallinfo2.restype = Mallinfo
def in_use():
    told = library.mallinfo2()
    return told.uordblks + told.hblkhd
before = in_use()
program(x).block_until_ready()
until = time.monotonic() + 60
# A result is ready before its program has let go of its buffers.
while in_use() - before > 20e6 and time.monotonic() < until:
    time.sleep(0.01)
print(library.mallinfo2().fordblks)
"""

# Takes and lets go of 200 MB in pieces, before one that stays; prints what went back of them.
GIVEN_BACK = """
from tunekit.models.cpu_memory import _resident_bytes, keep_freed_memory, memory_given_back
keep_freed_memory()
def work():
    pieces = [bytearray(2000) for _ in range(100_000)]
    held = _resident_bytes()
    kept = bytearray(2000)
    del pieces
    return held, kept
if GIVES:
    with memory_given_back():
        held, kept = work()
else:
    held, kept = work()
print(held - _resident_bytes())
"""


def printed(program: str, **environment: str) -> int:
    """The number that a process prints."""
    whole = {k: v for k, v in os.environ.items() if k != OPT_OUT} | environment
    found = subprocess.run(
        [sys.executable, "-c", program], env=whole, capture_output=True, text=True, check=True
    )
    return int(found.stdout)


on_linux = pytest.mark.skipif(
    sys.platform != "linux", reason="glibc's malloc alone has the options"
)


@on_linux
def test_the_memory_of_a_program_is_kept_for_its_next_run():
    kept, not_kept = (
        printed(PROGRAM, JAX_PLATFORMS="cpu", **opt_out) for opt_out in ({}, {OPT_OUT: "1"})
    )
    assert kept > 100e6 > not_kept


@on_linux
def test_what_a_block_lets_go_goes_back_to_the_system():
    given, not_given = (
        printed(f"GIVES = {gives}\n{GIVEN_BACK}", JAX_PLATFORMS="cpu") for gives in (True, False)
    )
    assert given > 100e6 > not_given


def test_where_jax_may_take_an_accelerator_nothing_is_changed():
    code = """
import ctypes, jax
calls = []
class Library:
    def mallopt(self, *options): calls.append(options)
ctypes.CDLL = lambda name: Library()
from tunekit.models.cpu_memory import keep_freed_memory
keep_freed_memory()
print(len(calls))
"""
    for platforms, count in (("cpu", "3"), ("cuda,cpu", "0")):
        environment = {k: v for k, v in os.environ.items() if k != OPT_OUT}
        found = subprocess.run(
            [sys.executable, "-c", code],
            env=environment | {"JAX_PLATFORMS": platforms},
            capture_output=True,
            text=True,
            check=True,
        )
        if sys.platform == "linux":
            assert found.stdout.strip() == count
