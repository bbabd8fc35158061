"""What a run shows while it lasts: a bar on a terminal, plain lines elsewhere, or nothing."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from typing import Any, Literal, Protocol, TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from tunekit.distributed import is_first, own_log

_SHOWN = ("accuracy", "perplexity", "f1", "exact_match", "spearman", "recall_at_1")
"""The validation metrics of a line, where there are some; all are in the history."""


class Reporter(Protocol):
    """Told of a run's course."""

    def start(self, *, steps: int, done: int) -> None:
        """A run of `steps` optimizer steps begins, `done` of them done earlier."""
        ...

    def phase(self, text: str) -> None:
        """A phase begins, described by `text`."""
        ...

    def note(self, text: str) -> None:
        """Something is worth a line."""
        ...

    def step(self, *, loss: float, learning_rate: float, examples: int) -> None:
        """A step is done."""
        ...

    def row(self, row: Mapping[str, Any]) -> None:
        """A pass over the data is done, with this row of the history."""
        ...

    def close(self) -> None:
        """The run ended, well or not."""
        ...


def reporter(
    kind: Literal["auto", "rich", "plain", "none"], stream: TextIO | None = None
) -> Reporter:
    """Returns the reporter of a kind; ``auto`` is a bar on a terminal and plain lines elsewhere.

    Of several processes the first speaks for all; the others write plain lines to their log, where
    they have one.
    """
    if not is_first():
        log = own_log()
        return SilentReporter() if log is None or kind == "none" else PlainReporter(log)
    to: TextIO = stream or sys.stderr
    if kind == "auto":
        kind = "rich" if to.isatty() else "plain"
    if kind == "rich":
        return RichReporter(to)
    return PlainReporter(to) if kind == "plain" else SilentReporter()


class SilentReporter:
    """Shows nothing."""

    def start(self, *, steps: int, done: int) -> None:
        """Shows nothing."""

    def phase(self, text: str) -> None:
        """Shows nothing."""

    def note(self, text: str) -> None:
        """Shows nothing."""

    def step(self, *, loss: float, learning_rate: float, examples: int) -> None:
        """Shows nothing."""

    def row(self, row: Mapping[str, Any]) -> None:
        """Shows nothing."""

    def close(self) -> None:
        """Shows nothing."""


class PlainReporter(SilentReporter):
    """One line a phase and a pass, and some within a long pass: for logs and notebooks."""

    def __init__(self, stream: TextIO, every_seconds: float = 30.0) -> None:
        """Prints to `stream`; within a pass a line after so many seconds without one."""
        self._stream = stream
        self._every = every_seconds
        self._said = time.perf_counter()
        self._steps = self._done = 0

    def start(self, *, steps: int, done: int) -> None:
        """Remembers how long the run is."""
        self._steps, self._done = steps, done

    def step(self, *, loss: float, learning_rate: float, examples: int) -> None:
        """Prints the step where nothing has been printed for a while."""
        self._done += 1
        if time.perf_counter() - self._said >= self._every:
            self.note(f"  step {self._done}/{self._steps}  loss {loss:.4f}")

    def phase(self, text: str) -> None:
        """Prints the phase."""
        self.note(text)

    def note(self, text: str) -> None:
        """Prints the line."""
        print(text, file=self._stream, flush=True)
        self._said = time.perf_counter()

    def row(self, row: Mapping[str, Any]) -> None:
        """Prints the row."""
        self.note(row_text(row))


class RichReporter(SilentReporter):
    """A bar of the whole run with loss, rate, throughput and time left; rows stay above it."""

    def __init__(self, stream: TextIO) -> None:
        """Draws on `stream`."""
        self._bar = Bar(
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TextColumn("{task.fields[figures]}"),
            TimeRemainingColumn(),
            console=Console(file=stream),
        )
        self._task = self._bar.add_task("compiling", figures="", start=False)
        self._since = time.perf_counter()
        self._examples = 0

    def start(self, *, steps: int, done: int) -> None:
        """Shows the bar."""
        self._bar.update(self._task, total=steps, completed=done)
        self._bar.start()

    def phase(self, text: str) -> None:
        """Prints the phase above the bar and measures the throughput anew."""
        self.note(text)
        self._bar.start_task(self._task)
        self._bar.update(self._task, description="training")
        self._since, self._examples = time.perf_counter(), 0

    def note(self, text: str) -> None:
        """Prints the line above the bar."""
        self._bar.console.print(text, highlight=False, markup=False)

    def step(self, *, loss: float, learning_rate: float, examples: int) -> None:
        """Moves the bar."""
        self._examples += examples
        throughput = self._examples / max(time.perf_counter() - self._since, 1e-9)
        figures = f"loss {loss:.4f}  rate {learning_rate:.1e}  {throughput:.0f} examples/s"
        self._bar.update(self._task, advance=1, figures=figures)

    def row(self, row: Mapping[str, Any]) -> None:
        """Prints the row above the bar."""
        self._bar.console.print(row_text(row), highlight=False, markup=False)

    def close(self) -> None:
        """Leaves the bar as it stands."""
        self._bar.stop()


def row_text(row: Mapping[str, Any]) -> str:
    """Returns a row of the history as one line.

    Example:
        >>> row_text({"epoch": 1, "phase": 0, "loss": 0.5, "val_accuracy": 0.9, "seconds": 2.0})
        'epoch 1  loss 0.5000  val_accuracy 0.9000  2.0 s'
    """
    shown = ("loss", "val_loss", *(f"val_{name}" for name in _SHOWN))
    parts = [f"epoch {row['epoch']}"]
    parts += [f"{name} {row[name]:.4f}" for name in shown if row.get(name) is not None]
    if "examples_per_second" in row:
        parts.append(f"{row['examples_per_second']:.0f} examples/s")
    return "  ".join([*parts, f"{row['seconds']:.1f} s"])
