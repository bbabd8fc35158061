"""How many micro-batches an optimizer step needs, by what fits the device."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from tunekit.training.memory import device_memory

SHARE = 0.9
"""Of the memory there is, what a step may take: XLA's account leaves small things out."""


def micro_batch_counts(size: int, shards: int = 1) -> list[int]:
    """Returns the numbers of micro-batches that a batch can be computed in, the fewest first.

    Args:
        size: examples of an optimizer step.
        shards: devices that share a micro-batch equally.

    Example:
        >>> micro_batch_counts(12, shards=2)
        [1, 2, 3, 6]
    """
    return [count for count in range(1, size + 1) if size % (count * shards) == 0]


def fewest(counts: Sequence[int], fits: Callable[[int], bool]) -> int | None:
    """Returns the first of `counts` that fits; `None` where the last does not.

    More micro-batches need no more memory than fewer, so that few are tried: asking may mean to
    compile a step.

    Args:
        counts: of micro-batches, ascending.
        fits: whether a step in so many fits.

    Example:
        >>> fewest([1, 2, 4, 8], lambda count: 32 / count <= 10)
        4
    """
    if not counts:
        return None
    if fits(counts[0]):
        return counts[0]
    low, high = 1, len(counts)
    while low < high:
        middle = (low + high) // 2
        if fits(counts[middle]):
            high = middle
        else:
            low = middle + 1
    return counts[low] if low < len(counts) else None


def step_bytes(program: Any) -> int | None:
    """Returns what a compiled step holds on each device while it runs: its arguments among it.

    `None` where XLA does not say.
    """
    found = program.memory_analysis()
    if found is None:
        return None
    results = found.output_size_in_bytes - found.alias_size_in_bytes
    return int(found.argument_size_in_bytes + found.temp_size_in_bytes + max(results, 0))


def device_bytes(held: int) -> int:
    """Returns what a step may take of the memory of each of this process' devices.

    Args:
        held: bytes of its arguments that are in memory already.
    """
    return int(SHARE * device_memory(held))
