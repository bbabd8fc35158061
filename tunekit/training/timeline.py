"""Where the time of a run goes, though the device computes while the host does something else."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, Literal, get_args

Part = Literal["compile", "features", "input", "step", "evaluation", "checkpoint", "other"]
PARTS: tuple[Part, ...] = get_args(Part)
"""In the order of a report. "step" is a device at work on steps; the others are what the host did
while no step ran: tracing and XLA, the outputs of the frozen part, waiting for a batch, judging,
writing."""


class Timeline:
    """Seconds by part. They add up to the time since the beginning: each moment counts once.

    A moment in which a step runs counts as "step", whatever the host does meanwhile: a batch that
    is waited for while the device is busy costs nothing.
    """

    def __init__(self) -> None:
        """Begins, with "other"."""
        self.began = self._since = time.perf_counter()
        self._part: Part = "other"
        self._spans: list[tuple[Part, float, float]] = []
        self._busy: list[tuple[float, float]] = []
        self._seconds: dict[Part, float] = dict.fromkeys(PARTS, 0.0)
        self._steps: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._left = threading.Semaphore(0)
        self._watched = 0
        self._watcher = threading.Thread(target=self._watch, name="steps", daemon=True)
        self._watcher.start()

    @contextmanager
    def part(self, part: Part) -> Iterator[None]:
        """Within the block the host's time is the part's; a block within it has its own."""
        before = self._part
        self._turn(part)
        try:
            yield
        finally:
            self._turn(before)

    def step(self, result: Any) -> None:
        """A step has been given to the device, which ends when `result`, an array, is there.

        A thread waits for it: asking for it here would keep the next step from being prepared.
        """
        self._watched += 1
        self._steps.put((time.perf_counter(), result))

    def elapsed(self) -> float:
        """Returns the seconds since the beginning."""
        return time.perf_counter() - self.began

    def seconds(self) -> dict[Part, float]:
        """Returns the seconds of each part so far; waits for the steps that are under way."""
        for _ in range(self._watched):
            self._left.acquire()
        self._watched = 0
        self._turn(self._part)
        for part, own, busy in _shares(self._spans, self._busy):
            self._seconds[part] += own
            self._seconds["step"] += busy
        self._spans.clear()
        self._busy.clear()
        return dict(self._seconds)

    def close(self) -> None:
        """Ends the thread."""
        self._steps.put(None)
        self._watcher.join()

    def _turn(self, part: Part) -> None:
        now = time.perf_counter()
        self._spans.append((self._part, self._since, now))
        self._part, self._since = part, now

    def _watch(self) -> None:
        free = 0.0
        while (step := self._steps.get()) is not None:
            given, result = step
            # A failed step is the trainer's to tell of.
            with suppress(Exception):
                result.block_until_ready()
            done = time.perf_counter()
            self._busy.append((max(given, free), done))
            free = done
            self._left.release()


def _shares(
    spans: list[tuple[Part, float, float]], busy: list[tuple[float, float]]
) -> Iterator[tuple[Part, float, float]]:
    """Yields the part of each span, its seconds in which no step ran, and those in which one did.

    Args:
        spans: of the host, in order.
        busy: of the device, in order, none within another.
    """
    first = 0
    for part, since, until in spans:
        while first < len(busy) and busy[first][1] <= since:
            first += 1
        shared, place = 0.0, first
        while place < len(busy) and busy[place][0] < until:
            begin, end = busy[place]
            shared += min(end, until) - max(begin, since)
            place += 1
        yield part, until - since - shared, shared
