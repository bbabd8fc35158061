"""The kind of device that a trace is for: this process' own, or another that it is compiled for.

What a layer computes may differ by device: forms that XLA compiles well for a CPU, chunks that fit
its caches. A program for a TPU or GPU can be traced on a machine that has neither.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Literal, cast

Platform = Literal["cpu", "gpu", "tpu"]

_TRACED: ContextVar[Platform | None] = ContextVar("traced_platform", default=None)


def traced_platform() -> Platform:
    """Returns the kind of device that what is traced now will run on."""
    told = _TRACED.get()
    if told is not None:
        return told
    import jax

    return cast(Platform, jax.default_backend())


@contextmanager
def tracing_for(platform: Platform) -> Iterator[None]:
    """Within the block programs are traced for devices of this kind, whatever this machine has.

    To be lowered in the block, and not called: a program traced for another device computes the
    same here, but XLA may do it badly.
    """
    token = _TRACED.set(platform)
    try:
        yield
    finally:
        _TRACED.reset(token)
