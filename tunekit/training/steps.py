"""The steps of a run, one after another; what each measures is read when the next is under way."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np

from tunekit.errors import TrainingError
from tunekit.plans.resolve import ResolvedPhase
from tunekit.training.loss_scale import MOST_SKIPPED
from tunekit.training.memory import memory_text, step_memory
from tunekit.training.profiling import Unprofiled
from tunekit.training.programs import Program, Programs
from tunekit.training.progress import Reporter
from tunekit.training.state import Progress, State
from tunekit.training.step import Measured


@dataclass(eq=False)
class Steps:
    """Does the steps of a run, each by the program of its phase and of its batch's shape."""

    programs: Programs
    seed: int
    """Of all that is random in the steps."""
    reporter: Reporter
    profile: Unprofiled
    _last_program: Program | None = field(default=None, init=False, repr=False)
    _skipped_in_a_row: int = field(default=0, init=False, repr=False)

    def take(
        self, state: State, phase: ResolvedPhase, batch: Mapping[str, Any], rate: float
    ) -> Measured:
        """Does one optimizer step, and returns what it measures, which may not be there yet.

        Args:
            state: what the step consumes and gives back is replaced in it.
            phase: that the state is in.
            batch: columns of the task.
            rate: learning rate before the phase's multipliers.
        """
        index = state.progress.phase
        key = jax.random.fold_in(jax.random.key(self.seed), state.progress.step)
        rates = np.float32(rate) * ordered_multipliers(phase)
        anchors = self.programs.anchors_of(index)
        if self.programs.layout is not None:
            batch, key = self.programs.layout.batch(batch), self.programs.layout.shared(key)
        arguments = (state.frozen, anchors, dict(batch), rates, key)
        program = self._program(state, arguments)
        self.profile.before_step()
        with self.profile.part("step"):
            state.carried, measured = program(state.carried, *arguments)
        self.profile.after_step(measured.loss, self.programs.operations_of(index, arguments[2]))
        # The device is busy with the step: time to trace what comes next.
        with self.profile.part("compile"):
            self.programs.prepare(index + 1)
        return measured

    def _program(self, state: State, arguments: tuple[Any, ...]) -> Program:
        """The compiled step for `arguments`; one that nobody expected is told of."""
        known, progress = len(self.programs.unexpected), state.progress
        with self.profile.part("compile"):
            program = self.programs.of(
                progress.phase, progress.phase_step, state.carried, *arguments
            )
        for unexpected in self.programs.unexpected[known:]:
            self.reporter.note(unexpected.line())
        self._note_memory(state, program)
        return program

    def _note_memory(self, state: State, program: Program) -> None:
        """Keeps the memory of the program that needs most: one for each shape of a batch."""
        if program is self._last_program:
            return
        self._last_program = program
        known = state.progress.memory
        memory = step_memory(state.carried, state.frozen, program.temporary_bytes)
        if not known or (memory["activations"] or 0) > (known["activations"] or 0):
            state.progress.memory = memory
            self.reporter.note(memory_text(memory))

    def read(self, state: State, pending: tuple[Measured, float, float] | None) -> None:
        """Waits for a step, and adds what it measured to the progress.

        Args:
            state: of the run.
            pending: of a step, what it measures, its examples and its rate; `None` is none.

        Raises:
            TrainingError: the loss is not finite, or too many steps in a row changed nothing.
        """
        if pending is None:
            return
        measured, examples, rate = pending
        with self.profile.part("step"):
            loss = float(measured.loss)
        if not math.isfinite(loss):
            raise TrainingError(
                f"the loss is {loss} at step {state.progress.step} (learning rate {rate:.1e}). "
                "Lower the learning rate, lengthen the warmup, or set optimizer.clip_norm; the "
                "model is as it was before training."
            )
        self._count_skipped(state.progress, bool(measured.skipped))
        weight = float(measured.weight)
        state.progress.loss_sum += loss * weight
        state.progress.loss_weight += weight
        self.reporter.step(loss=loss, learning_rate=rate, examples=round(examples))

    def _count_skipped(self, progress: Progress, skipped: bool) -> None:
        """Counts a step that changed nothing; of too many in a row none will."""
        progress.skipped += skipped
        self._skipped_in_a_row = self._skipped_in_a_row + 1 if skipped else 0
        if self._skipped_in_a_row > MOST_SKIPPED:
            raise TrainingError(
                f"the gradients of {self._skipped_in_a_row} steps in a row, up to step "
                f"{progress.step}, are not finite in float16, however little the loss is scaled. "
                "Lower the learning rate, or choose a backbone.dtype of 'mixed_bfloat16' or "
                "'float32'; the model is as it was before training."
            )


def ordered_multipliers(phase: ResolvedPhase) -> np.ndarray:
    """Returns the multipliers of what trains, float32, in the order in which a step takes rates."""
    return np.array([phase.multipliers[name] for name in sorted(phase.trainable)], np.float32)
