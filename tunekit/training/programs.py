"""Compiled steps: each program once, the next one compiled while the present one runs."""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import jax
import numpy as np

from tunekit.models.cpu_memory import LARGEST_KEPT_BYTES, return_freed_memory
from tunekit.models.forward import Forward
from tunekit.plans.optimizer import OptimizerSpec
from tunekit.plans.resolve import ResolvedPhase
from tunekit.training.feed import Feed
from tunekit.training.forgetting import anchor_names
from tunekit.training.layout import Layout
from tunekit.training.operations import operations
from tunekit.training.recompiles import Unexpected, changes
from tunekit.training.state import partition
from tunekit.training.step import Carried, Measured, Step, Values

Program = Callable[..., tuple[Carried, Measured]]


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
    _futures: dict[Hashable, Future[Program]] = field(default_factory=dict, init=False)
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
        if key in self._futures:
            return self._futures[key].result()
        since, feed = time.perf_counter(), self.feeds[index]
        self._begin(key, self._traced(index, carried, *arguments))
        program = self._futures[key].result()
        if found := changes(batch, [feed.columns, *feed.other_columns]):
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
        if (key := (self.keys[index], _shapes(columns))) in self._futures:
            return
        self._begin(key, self._traced(index, *self.arguments(index)))

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

    def _begin(self, key: Hashable, traced: jax.stages.Traced) -> None:
        """Hands a program to XLA; it was traced in this thread, for tracing patches layers."""
        if self.counts_operations:
            self._operations[key] = operations(traced.jaxpr.jaxpr)
        self._futures[key] = self._thread.submit(self._compile, traced.lower())

    def _compile(self, lowered: jax.stages.Lowered) -> Program:
        since = time.perf_counter()
        program = lowered.compile()
        self.seconds += time.perf_counter() - since
        memory = program.memory_analysis()
        if memory is not None and memory.temp_size_in_bytes > LARGEST_KEPT_BYTES:
            return_freed_memory()
        return program


def _shapes_of(variables: Mapping[str, Any]) -> dict[str, jax.ShapeDtypeStruct]:
    return {n: jax.ShapeDtypeStruct(tuple(v.shape), v.dtype) for n, v in variables.items()}


def _shapes(columns: Mapping[str, Any]) -> Hashable:
    """Shape and dtype of each column of a batch."""
    return tuple((name, tuple(c.shape), str(c.dtype)) for name, c in sorted(columns.items()))
