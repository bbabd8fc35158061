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
    _futures: dict[Hashable, Future[Program]] = field(default_factory=dict, init=False)
    _thread: ThreadPoolExecutor = field(init=False)
    seconds: float = field(default=0.0, init=False)
    """XLA's time so far, also where training went on meanwhile."""

    def __post_init__(self) -> None:
        """Makes the thread in which XLA compiles; it begins with the first program."""
        self._thread = ThreadPoolExecutor(1, "compile")

    @cached_property
    def anchors(self) -> Values:
        """Every value before training: the model's own, which is written to at the end alone."""
        return self.forward.values()

    def of(self, index: int, carried: Carried, *arguments: Any) -> Program:
        """Returns the step of a phase, having waited for it; compiled for these arguments."""
        key = (self.keys[index], _shapes(arguments[2]))
        if key not in self._futures:
            self._begin(key, self.step(index).lowered(carried, *arguments))
        return self._futures[key].result()

    def prepare(self, index: int) -> None:
        """Begins to compile the step of a phase that has not begun, from its shapes alone."""
        if index == len(self.phases):
            return
        phase, columns = self.phases[index], self.feeds[index].columns
        if (key := (self.keys[index], _shapes(columns))) in self._futures:
            return
        carried, frozen = jax.eval_shape(
            lambda values: partition(self.forward, phase, values, self.optimizer_of(index)),
            self.forward.values(),
        )
        rates = jax.ShapeDtypeStruct((len(phase.trainable),), np.float32)
        seed_key = jax.eval_shape(lambda: jax.random.key(0))
        arguments = (frozen, self.anchors_of(index), dict(columns), rates, seed_key)
        self._begin(key, self.step(index).lowered(carried, *arguments))

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
        """Returns the values before training that a phase's step needs."""
        phase = self.phases[index]
        if not phase.spec.l2_sp and not phase.spec.mixout:
            return {}
        return {name: self.anchors[name] for name in anchor_names(phase.trainable)}

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
            forward=feed.forward,
            objective=feed.objective,
            optimizer=self.optimizer_of(index),
            trainable=phase.trainable,
            seeds={name: (tuple(v.shape), v.dtype) for name, v in variables.items()},
            accumulate=feed.accumulate,
            l2_sp=phase.spec.l2_sp,
            mixout=phase.spec.mixout,
        )

    def _begin(self, key: Hashable, lowered: jax.stages.Lowered) -> None:
        """Hands a program to XLA; it was traced in this thread, for tracing patches layers."""
        self._futures[key] = self._thread.submit(self._compile, lowered)

    def _compile(self, lowered: jax.stages.Lowered) -> Program:
        since = time.perf_counter()
        program = lowered.compile()
        self.seconds += time.perf_counter() - since
        memory = program.memory_analysis()
        if memory is not None and memory.temp_size_in_bytes > LARGEST_KEPT_BYTES:
            return_freed_memory()
        return program


def _shapes(columns: Mapping[str, Any]) -> Hashable:
    """Shape and dtype of each column of a batch."""
    return tuple((name, tuple(c.shape), str(c.dtype)) for name, c in sorted(columns.items()))
