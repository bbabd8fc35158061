"""Freed memory stays with the process, where that is asked for and possible."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tunekit.models.cpu_memory import OPT_OUT

# A program with some 200 MB of buffers, run ten times; prints the pages that the last nine took.
PROGRAM = """
import resource
from tunekit.models.cpu_memory import keep_freed_memory
keep_freed_memory()
import jax, jax.numpy as jnp
w = jnp.eye(64)
program = jax.jit(lambda x: (jnp.tanh(jnp.tanh(x @ w) @ w) @ w).sum())
x = jnp.ones((250_000, 64))
program(x).block_until_ready()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(9):
    program(x).block_until_ready()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def pages(**environment: str) -> int:
    """Pages of memory that the program takes anew in nine runs."""
    whole = {k: v for k, v in os.environ.items() if k != OPT_OUT} | environment
    found = subprocess.run(
        [sys.executable, "-c", PROGRAM], env=whole, capture_output=True, text=True, check=True
    )
    return int(found.stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's malloc alone has the options")
def test_a_program_runs_again_in_the_memory_of_its_last_run():
    assert pages(JAX_PLATFORMS="cpu") * 2 < pages(JAX_PLATFORMS="cpu", **{OPT_OUT: "1"})


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
