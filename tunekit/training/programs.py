"""Compiled steps: each program once, the next one compiled while the present one runs."""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
import numpy as np

from tunekit.compilation_cache import watched
from tunekit.models.cpu_memory import (
    LARGEST_KEPT_BYTES,
    memory_given_back,
    return_freed_memory,
)
from tunekit.models.forward import Forward
from tunekit.plans.optimizer import OptimizerSpec
from tunekit.plans.resolve import ResolvedPhase
from tunekit.training.feed import Feed
from tunekit.training.forgetting import anchor_names
from tunekit.training.kept_steps import KeptSteps
from tunekit.training.layout import Layout
from tunekit.training.memory import temporary_bytes
from tunekit.training.operations import operations
from tunekit.training.recompiles import Unexpected, changes
from tunekit.training.state import partition
from tunekit.training.step import Carried, Measured, Step, Values


@dataclass(frozen=True, eq=False)
class Program:
    """A compiled step."""

    run: Callable[..., tuple[Carried, Measured]]
    temporary_bytes: int | None
    """Needed besides inputs and outputs; `None` where XLA does not say."""

    def __call__(self, carried: Carried, *arguments: Any) -> tuple[Carried, Measured]:
        """Returns the state after one step, as `Step` does."""
        return self.run(carried, *arguments)


@dataclass(eq=False)
class Programs:
    """The compiled steps of every phase, one for each shape that its batches have.

    Phases of one partition and one kind of data share them.
    """

    forward: Forward
    phases: Sequence[ResolvedPhase]
    feeds: Sequence[Feed]
    optimizer: OptimizerSpec
    """Of every phase that has none of its own."""
    layout: Layout | None = None
    """Where arrays lie, and the step's results; `None` is one device."""
    kept: KeptSteps | None = None
    """Steps that earlier starts have left, and where this one leaves its own."""
    _futures: dict[Hashable, Future[Program | None]] = field(default_factory=dict, init=False)
    _placed_anchors: dict[int, Values] = field(default_factory=dict, init=False)
    _thread: ThreadPoolExecutor = field(init=False)
    seconds: float = field(default=0.0, init=False)
    """XLA's time so far, also where training went on meanwhile."""
    unexpected: list[Unexpected] = field(default_factory=list, init=False)
    """Programs for batches of shapes that no feed was said to have."""
    counts_operations: bool = False
    """Whether `operations_of` can be asked."""
    _operations: dict[Hashable, float] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        """Makes the thread in which XLA compiles; it begins with the first program."""
        self._thread = ThreadPoolExecutor(1, "compile")

    @cached_property
    def anchors(self) -> Values:
        """Every value before training: the model's own, which is written to at the end alone."""
        return self.forward.values()

    def of(self, index: int, step: int, carried: Carried, *arguments: Any) -> Program:
        """Returns the step of a phase, having waited for it; compiled for these arguments.

        Args:
            index: of the phase.
            step: of the phase, counted from 0; for what is said of a program not expected.
            carried: as the step takes it.
            *arguments: the others that it takes.
        """
        batch = arguments[2]
        key = (self.keys[index], _shapes(batch))
        since, feed = time.perf_counter(), self.feeds[index]
        if is_new := key not in self._futures:
            self._begin(key, index, carried, *arguments)
        program = self._futures[key].result()
        if program is None:  # A step that was kept could not be read.
            self._begin(key, index, carried, *arguments, anew=True)
            program = self._futures[key].result()
            assert program is not None
        if is_new and (found := changes(batch, [feed.columns, *feed.other_columns])):
            seconds = time.perf_counter() - since
            self.unexpected.append(Unexpected(index, step, found, seconds))
        return program

    def operations_of(self, index: int, batch: Mapping[str, Any]) -> float:
        """Returns the operations of a step on `batch`, on all devices; 0 where none are counted."""
        return self._operations.get((self.keys[index], _shapes(batch)), 0.0)

    def lowered(self, index: int) -> jax.stages.Lowered:
        """Returns the step of a phase, lowered from shapes alone.

        The model's variables may hold shapes in place of values, and the layout's devices may be
        those of a topology that this machine does not have.
        """
        return self._traced(index, *self.arguments(index)).lower()

    def arguments(self, index: int) -> tuple[Any, ...]:
        """Returns the shapes of what the step of a phase is called with, as they lie."""
        phase, columns = self.phases[index], self.feeds[index].columns
        carried, frozen = jax.eval_shape(
            lambda values: partition(self.forward, phase, values, self.optimizer_of(index)),
            _shapes_of(self.forward.variables),
        )
        anchors = _shapes_of({n: self.forward.variables[n] for n in self._anchored(index)})
        arguments: Any = (carried, frozen, anchors, dict(columns))
        if self.layout is not None:
            arguments = self.layout.shapes(*arguments)
        rates = jax.ShapeDtypeStruct((len(phase.trainable),), np.float32)
        seed_key = jax.eval_shape(lambda: jax.random.key(0))
        return (*arguments, rates, seed_key)

    def _traced(self, index: int, carried: Carried, *arguments: Any) -> jax.stages.Traced:
        step, results = self.step(index), None
        if self.layout is not None:
            measured: Any = [self.layout.everywhere] * len(Measured._fields)
            results = self.layout.shardings(carried), Measured(*measured)
        return step.traced(carried, *arguments, results=results)

    def prepare(self, index: int) -> None:
        """Begins to compile the step of a phase that has not begun, from its shapes alone."""
        if index == len(self.phases):
            return
        columns = self.feeds[index].columns
        if (key := (self.keys[index], _shapes(columns))) not in self._futures:
            self._begin(key, index, *self.arguments(index))

    def close(self) -> None:
        """Gives up what is not begun; what XLA has begun ends by itself."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    def __len__(self) -> int:
        """Returns the number of programs."""
        return len(self._futures)

    def optimizer_of(self, index: int) -> OptimizerSpec:
        """Returns the optimizer of a phase."""
        return self.phases[index].spec.optimizer or self.optimizer

    def anchors_of(self, index: int) -> Values:
        """Returns the values before training that a phase's step needs, as they lie."""
        if index not in self._placed_anchors:
            values = {name: self.anchors[name] for name in self._anchored(index)}
            placed = values if self.layout is None else self.layout.values(values)
            self._placed_anchors[index] = placed
        return self._placed_anchors[index]

    def _anchored(self, index: int) -> list[str]:
        phase = self.phases[index]
        holds = phase.spec.l2_sp or phase.spec.mixout
        return anchor_names(phase.trainable) if holds else []

    @cached_property
    def keys(self) -> list[Hashable]:
        """Equal for phases of one program: all that is traced but shapes, rates not among it."""
        keys: list[Hashable] = []
        for index, (phase, feed) in enumerate(zip(self.phases, self.feeds, strict=True)):
            spec = phase.spec
            modes = (spec.batch_norm, spec.frozen_dropout, spec.l2_sp, spec.mixout)
            of_feed = (feed.start, feed.accumulate, feed.program)
            keys.append((phase.trainable, self.optimizer_of(index), modes, of_feed))
        return keys

    def step(self, index: int) -> Step:
        """Returns the step of a phase, to be compiled."""
        phase, feed = self.phases[index], self.feeds[index]
        variables = {name: self.forward.variables[name] for name in self.forward.names("seed")}
        return Step(
            forward=self.layout.divided(feed.forward) if self.layout else feed.forward,
            objective=feed.objective,
            optimizer=self.optimizer_of(index),
            trainable=phase.trainable,
            seeds={name: (tuple(v.shape), v.dtype) for name, v in variables.items()},
            accumulate=feed.accumulate,
            l2_sp=phase.spec.l2_sp,
            mixout=phase.spec.mixout,
        )

    def _begin(self, key: Hashable, index: int, *arguments: Any, anew: bool = False) -> None:
        """Has a step loaded where it was kept, else compiled; in the background.

        Args:
            key: of its program.
            index: of the phase.
            *arguments: of the step, or their shapes.
            anew: compiles it also where it was kept.
        """
        name = None if self.kept is None else self.kept.name_of(index, arguments)
        # Whoever counts operations has to trace the step.
        if self.kept is not None and name is not None and not (anew or self.counts_operations):
            if (executable := self.kept.named(name)) is not None:
                self._futures[key] = self._thread.submit(self._loaded, self.kept, executable)
                return
        # Traced in this thread, for tracing patches layers.
        traced = self._traced(index, *arguments)
        if self.counts_operations:
            self._operations[key] = operations(traced.jaxpr.jaxpr)
        self._futures[key] = self._thread.submit(self._compiled, traced.lower(), name)

    def _loaded(self, kept: KeptSteps, executable: Path) -> Program | None:
        since = time.perf_counter()
        program = kept.load(executable)
        return None if program is None else self._ready(program, since)

    def _compiled(self, lowered: jax.stages.Lowered, name: Path | None) -> Program:
        since, kept = time.perf_counter(), self.kept
        if kept is None or name is None:
            with memory_given_back():
                return self._ready(lowered.compile(), since)
        executable = kept.executable_of(lowered)
        with memory_given_back(), watched() as is_new:
            if (program := kept.load(executable)) is not None:
                kept.keep(name, executable, None)
                return self._ready(program, since)
            program = lowered.compile()
            if is_new():
                # After the step is handed out, which must not wait for the disk.
                self._thread.submit(kept.keep, name, executable, program)
        return self._ready(program, since)

    def _ready(self, compiled: jax.stages.Compiled, since: float) -> Program:
        self.seconds += time.perf_counter() - since
        temporary = temporary_bytes(compiled)
        if (temporary or 0) > LARGEST_KEPT_BYTES:
            return_freed_memory()
        return Program(compiled, temporary)


def _shapes_of(variables: Mapping[str, Any]) -> dict[str, jax.ShapeDtypeStruct]:
    return {n: jax.ShapeDtypeStruct(tuple(v.shape), v.dtype) for n, v in variables.items()}


def _shapes(columns: Mapping[str, Any]) -> Hashable:
    """Shape and dtype of each column of a batch."""
    return tuple((name, tuple(c.shape), str(c.dtype)) for name, c in sorted(columns.items()))
