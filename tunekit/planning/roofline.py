"""From what a step does to how long it takes: a range, by what the machine can do at most.

The roofline (Williams, Waterman and Patterson 2009, https://doi.org/10.1145/1498765.1498785):
arithmetic, memory traffic and messages between devices overlap at best, so that a step is no
faster than the slowest of the three at its peak.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

Bound = Literal["compute", "memory", "links"]

SLOWER = 2.0
"""How many times the roofline of what was compiled the upper end is: what well-written steps reach
of a roofline, be it of arithmetic or of memory traffic, is about half."""

_MOVED = {
    "all-reduce": lambda n: 2 * (n - 1) / n,
    "all-gather": lambda n: (n - 1) / n,
    "reduce-scatter": lambda n: (n - 1) / n,
    "all-to-all": lambda n: (n - 1) / n,
    "collective-permute": lambda n: 1.0,
}
"""Bytes that a device sends for each byte of the whole array, by the best known algorithms: a ring
or a torus (Patarasuk and Yuan 2009, https://doi.org/10.1016/j.jpdc.2008.09.002)."""


@dataclass(frozen=True)
class Speeds:
    """What one device can do at most."""

    flops: float
    """Operations a second, in the dtype that the model computes in."""
    bandwidth: float
    """Bytes a second to and from its memory."""
    link_bandwidth: float | None = None
    """Bytes a second to its neighbours; `None` alone."""


@dataclass(frozen=True)
class StepTime:
    """How long a step takes, in seconds: not under `lower`, hardly over `upper`."""

    compute: float
    """All arithmetic at the peak rate."""
    memory: float
    """What must be read and written once, arguments and results, at the full bandwidth."""
    links: float
    """All messages at the full speed of the links; 0 where there are none."""
    upper: float
    """`SLOWER` times the roofline with the traffic that the compiler counts, all of it to memory
    and none to a cache."""

    @property
    def lower(self) -> float:
        """The slowest of the three."""
        return max(self.compute, self.memory, self.links)

    @property
    def bound(self) -> Bound:
        """Which of the three that is."""
        times: dict[Bound, float] = {
            "compute": self.compute,
            "memory": self.memory,
            "links": self.links,
        }
        return max(times, key=times.__getitem__)


def step_time(
    *,
    flops: float,
    least_bytes: float,
    bytes_accessed: float | None,
    collectives: Sequence[Mapping[str, Any]],
    devices: int,
    speeds: Speeds,
) -> StepTime:
    """Returns how long a step takes.

    Args:
        flops: of the whole step, all devices together.
        least_bytes: of arguments and results of one device, which are read or written once.
        bytes_accessed: that one device reads and writes, as its compiler counts; `None` where it
            does not.
        collectives: "kind" and "bytes", those of the whole result of one device.
        devices: that share the step.
        speeds: of one of them.
    """
    compute = flops / devices / speeds.flops
    memory = least_bytes / speeds.bandwidth
    links = 0.0
    if speeds.link_bandwidth:
        links = sent_bytes(collectives, devices) / speeds.link_bandwidth
    counted = max(bytes_accessed or 0.0, least_bytes) / speeds.bandwidth
    return StepTime(compute, memory, links, SLOWER * max(compute, counted, links))


def sent_bytes(collectives: Sequence[Mapping[str, Any]], devices: int) -> float:
    """Returns the bytes that one device sends for these collectives, over all `devices`."""
    if devices == 1:
        return 0.0
    whole = lambda n: 1.0  # noqa: E731
    return sum(_MOVED.get(each["kind"], whole)(devices) * each["bytes"] for each in collectives)
