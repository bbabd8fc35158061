"""What a phase holds in memory: array sizes, and what XLA says of the compiled step."""

from __future__ import annotations

import math
from typing import Any

import jax

from tunekit.data.memory import available_memory
from tunekit.models.cpu_memory import memory_given_back
from tunekit.training.step import Carried, Values

Memory = dict[str, int | None]
"""Bytes by what they hold: "frozen" and "trained" weights, "optimizer", "activations"."""


def temporary_bytes(program: jax.stages.Compiled) -> int | None:
    """Returns what a compiled step needs besides its inputs and outputs, gradients among it.

    `None` where XLA does not say. To be asked once: it reads the whole program from the executable.
    """
    with memory_given_back():
        analysis = program.memory_analysis()
    return None if analysis is None else int(analysis.temp_size_in_bytes)


def step_memory(carried: Carried, frozen: Values, temporary: int | None) -> Memory:
    """Returns the bytes that training by a step holds, on each of the devices.

    "optimizer" is moments and moving averages; "activations" is `temporary`.

    Args:
        carried: the part of the state that the step gives back.
        frozen: the values that it reads.
        temporary: of `temporary_bytes`.
    """
    return {
        "frozen": _bytes((frozen, carried.mutable)),
        "trained": _bytes(carried.trainable),
        "optimizer": _bytes((carried.optimizer, carried.ema)),
        "activations": temporary,
    }


def device_memory(held: int = 0) -> int:
    """Returns the bytes that a program may take on each device of this process.

    Args:
        held: of its arguments, which are there already.
    """
    devices = jax.local_devices()
    limits = [(device.memory_stats() or {}).get("bytes_limit") or 0 for device in devices]
    # Virtual devices of a CPU, which have no limit of their own, share the machine's memory.
    return min(limits) or (available_memory() + held) // len(devices)


def memory_text(memory: Memory) -> str:
    """Returns the bytes as one line, frozen and trained weights as one.

    Example:
        >>> memory_text({"frozen": 85_000_000, "trained": 600_000, "optimizer": 0,
        ...     "activations": 410_000_000})
        'weights 86 MB, optimizer 0 kB, activations 410 MB'
    """
    weights = (memory["frozen"] or 0) + (memory["trained"] or 0)
    shown = {"weights": weights, **{n: memory[n] for n in ("optimizer", "activations")}}
    return ", ".join(f"{name} {_size(n)}" for name, n in shown.items() if n is not None)


def _bytes(tree: Any) -> int:
    return sum(_bytes_each(leaf) for leaf in jax.tree.leaves(tree))


def _bytes_each(leaf: Any) -> int:
    """Of an array's part on one device."""
    return math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize


def _size(count: int) -> str:
    if count < 1e5:
        return f"{count / 1e3:.0f} kB"
    return f"{count / 1e6:,.{1 if count < 1e7 else 0}f} MB"
