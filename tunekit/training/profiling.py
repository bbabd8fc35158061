"""What a run's time went to, and what the devices made of it; a trace of a few steps."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import jax

from tunekit.distributed import is_first
from tunekit.training.device_peak import device_peak
from tunekit.training.timeline import Part, Timeline

T = TypeVar("T")

MOST_WAITING = 0.2
"""Share of the time of steps and of waiting for batches, beyond which a run is input-bound."""
FIRST_TRACED, TRACED = 5, 3
"""Where nothing is said: from the sixth step on, three."""


class Unprofiled:
    """Measures nothing."""

    measures = False
    """Whether it takes the operations of steps."""

    def part(self, part: Part) -> AbstractContextManager[None]:
        """Does nothing."""
        return nullcontext()

    def waiting(self, batches: Iterable[T]) -> Iterable[T]:
        """Returns the batches."""
        return batches

    def before_step(self) -> None:
        """Does nothing."""

    def after_step(self, result: jax.Array, operations: float) -> None:
        """Does nothing."""

    def seen(self, batch: Mapping[str, Any], *, examples: float) -> None:
        """Does nothing."""

    def close(self) -> None:
        """Does nothing."""

    def summary(self) -> dict[str, Any] | None:
        """Returns `None`."""
        return None


@dataclass(eq=False)
class Profile(Unprofiled):
    """Measures a run from now to `close`, without waiting for the device but around traced steps.

    Example:
        >>> profile = Profile(folder=Path("out/profile"))
        >>> trainer = Trainer(..., profile=profile)
        >>> trainer.fit().profile["bound"]
        'compute'
    """

    folder: Path | None = None
    """Gets the trace and the summary; `None` writes neither."""
    traced: range = range(FIRST_TRACED, FIRST_TRACED + TRACED)
    """The steps of a trace, counted from 0; those after the last are not there."""
    dtype: str = "float32"
    """In which products are computed: the peak is of it."""
    _timeline: Timeline = field(default_factory=Timeline, init=False)
    _steps: int = field(default=0, init=False)
    _operations: float = field(default=0.0, init=False)
    _examples: float = field(default=0.0, init=False)
    _first_step: float | None = field(default=None, init=False)
    _tracing: bool = field(default=False, init=False)
    _last: jax.Array | None = field(default=None, init=False)
    _tokens: float = field(default=0.0, init=False)
    _seconds: dict[Part, float] | None = field(default=None, init=False)
    measures = True

    def part(self, part: Part) -> AbstractContextManager[None]:
        """Within the block the host's time is the part's."""
        return self._timeline.part(part)

    def waiting(self, batches: Iterable[T]) -> Iterator[T]:
        """Yields the batches; the time until each is there is "input"."""
        iterator = iter(batches)
        while True:
            with self.part("input"):
                try:
                    batch = next(iterator)
                except StopIteration:
                    return
            yield batch

    def before_step(self) -> None:
        """Begins the trace where it is to begin with the step that comes."""
        if self.folder is None or self._tracing or self._steps != self.traced.start:
            return
        if not len(self.traced) or not is_first():
            return
        self._wait()
        options = jax.profiler.ProfileOptions()
        # Every call in Python would be an event: ten times the time, and the size.
        options.python_tracer_level = 0
        jax.profiler.start_trace(str(self.folder), profiler_options=options)
        self._tracing = True

    def after_step(self, result: jax.Array, operations: float) -> None:
        """Counts a step that has been given to the device, and ends the trace after its last.

        Args:
            result: an array that is there when the step has ended.
            operations: of the step, on all devices together.
        """
        self._timeline.step(result)
        self._steps += 1
        self._operations += operations
        self._last = result
        if self._first_step is None:
            self._wait()
            self._first_step = self._timeline.elapsed()
        if self._tracing and self._steps == self.traced.stop:
            self._wait()
            self._stop_trace()

    def seen(self, batch: Mapping[str, Any], *, examples: float) -> None:
        """Counts what a step has learned from."""
        self._examples += examples
        if "padding_mask" in batch:
            self._tokens += float(batch["padding_mask"].sum())

    def close(self) -> None:
        """Ends the measurement, and a trace that is not complete; the first time it is called."""
        if self._seconds is not None:
            return
        if self._tracing:
            self._stop_trace()
        self._seconds = self._timeline.seconds()
        self._timeline.close()

    def summary(self) -> dict[str, Any]:
        """Returns what was measured until `close`, as plain values; it is written too."""
        self.close()
        assert self._seconds is not None
        found = self._summary(self._seconds)
        if self.folder is not None and is_first():
            self.folder.mkdir(parents=True, exist_ok=True)
            text = json.dumps(found, indent=2)
            (self.folder / "summary.json").write_text(text, encoding="utf-8")
        return found

    def _wait(self) -> None:
        if self._last is not None:
            with self.part("step"):
                self._last.block_until_ready()

    def _stop_trace(self) -> None:
        jax.profiler.stop_trace()
        self._tracing = False

    def _summary(self, seconds: dict[Part, float]) -> dict[str, Any]:
        moving = seconds["step"] + seconds["input"]
        waiting = seconds["input"] / max(moving, 1e-9)
        reached = self._operations / max(seconds["step"], 1e-9)
        peak = _peak_flops(self.dtype) if self._operations else math.nan
        stop = min(self.traced.stop, self._steps)
        was_traced = self.folder is not None and stop > self.traced.start
        return {
            "seconds": {**seconds, "total": sum(seconds.values())},
            "first_step_seconds": self._first_step,
            "steps": self._steps,
            "examples_per_second": self._examples / max(moving, 1e-9),
            "tokens_per_second": self._tokens / max(moving, 1e-9) if self._tokens else None,
            "operations_per_step": self._operations / max(self._steps, 1),
            "operations_per_second": reached,
            "peak_operations_per_second": None if math.isnan(peak) else peak,
            "share_of_peak": None if math.isnan(peak) else reached / peak,
            "dtype": self.dtype,
            "waiting_share": waiting,
            "bound": "input" if waiting > MOST_WAITING else "compute",
            "trace": str(self.folder) if was_traced else None,
            "traced_steps": [self.traced.start, stop] if was_traced else None,
        }


def _peak_flops(dtype: str) -> float:
    """Operations a second of all devices; those of a CPU are its one."""
    peak = device_peak().flops
    count = jax.process_count() if jax.default_backend() == "cpu" else jax.device_count()
    # Products of both formats of 16 bits are as fast on what computes either.
    return count * peak["float32" if dtype == "float32" else "bfloat16"]
