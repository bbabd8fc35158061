"""The loop: phases, passes, evaluation, the best weights, stopping, checkpoints."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import jax
import numpy as np

from tunekit.durations import Duration
from tunekit.errors import TrainingError
from tunekit.models.forward import Forward
from tunekit.plans.optimizer import OptimizerSpec
from tunekit.plans.resolve import ResolvedPhase
from tunekit.training.checkpoints import Checkpoints
from tunekit.training.progress import Reporter, SilentReporter
from tunekit.training.spec import RuntimeSpec
from tunekit.training.state import NO_SCORE, Progress, State, enter_phase
from tunekit.training.step import Measured, Objective, Step, Values

Evaluate = Callable[[Values], Mapping[str, Any]]


class TrainingBatches(Protocol):
    """Batches of one static shape, the same for the same epoch and step (``data.pipeline``)."""

    @property
    def steps_per_epoch(self) -> int:
        """Batches of one pass."""
        ...

    def epoch(self, epoch: int, start_step: int = 0) -> Iterator[dict[str, np.ndarray]]:
        """Returns the batches of a pass from `start_step` on."""
        ...


@dataclass(frozen=True)
class Trained:
    """What a run leaves beside the trained model."""

    history: list[dict[str, Any]]
    """One row a pass over the data."""
    compiles: int
    """Programs compiled for training steps."""
    compile_seconds: float
    steps: int
    """Optimizer steps done in all, earlier runs that this one resumed included."""


@dataclass(eq=False)
class Trainer:
    """Trains a model through its phases; `fit` writes the model's variables once, at the end.

    An error leaves the model as it was. Ctrl-C leaves it as the last whole step made it.
    """

    forward: Forward
    objective: Objective
    batches: TrainingBatches
    phases: Sequence[ResolvedPhase]
    optimizer: OptimizerSpec
    runtime: RuntimeSpec
    seed: int
    accumulate: int = 1
    """Micro-batches of an optimizer step."""
    evaluate: Evaluate | None = None
    """From every value of the model to validation metrics; `None` without validation data."""
    checkpoints: Checkpoints | None = None
    reporter: Reporter = field(default_factory=SilentReporter)
    _compiled: dict[frozenset[str], Callable[..., Any]] = field(default_factory=dict, init=False)
    _compile_seconds: float = field(default=0.0, init=False)
    _state: State | None = field(default=None, init=False)

    def fit(self) -> Trained:
        """Trains, and leaves the trained values in the model.

        Raises:
            TrainingError: the loss is not finite.
            CheckpointError: the checkpoint to resume from belongs to another run.
        """
        state = self._first_state()
        steps = sum(phase.steps for phase in self.phases)
        self.reporter.start(steps=steps, done=state.progress.step)
        try:
            state = self._run_phases(state)
        except KeyboardInterrupt:
            if self._state is not None and self._state.is_whole():
                self.forward.assign(self._state.moved(averaged=True))
            raise
        finally:
            self.reporter.close()
        best = state.best if self.runtime.restore_best else None
        # What the best evaluation had not moved yet is in the model as it was then.
        self.forward.assign(state.moved(averaged=True) if best is None else best)
        return Trained(
            state.progress.history, len(self._compiled), self._compile_seconds, state.progress.step
        )

    def _first_state(self) -> State:
        if self.checkpoints is not None and self.runtime.resume:
            restored = self.checkpoints.restore(self.forward, self.phases, self.optimizer)
            if restored is not None:
                return restored
        if self.checkpoints is not None:
            self.checkpoints.clear()
        return enter_phase(
            self.forward,
            self.phases[0],
            self.forward.values(),
            self.optimizer,
            previous=None,
            best=None,
            progress=Progress(),
        )

    def _run_phases(self, state: State) -> State:
        while True:
            self._state = state
            self._run_phase(state, self.phases[state.progress.phase])
            if state.progress.phase + 1 == len(self.phases):
                return state
            state = self._next_phase(state)

    def _next_phase(self, state: State) -> State:
        progress = state.progress
        progress.first_epoch += math.ceil(progress.phase_step / self.batches.steps_per_epoch)
        progress.phase += 1
        progress.phase_step = progress.waited = 0
        progress.phase_best_score = NO_SCORE
        return enter_phase(
            self.forward,
            self.phases[progress.phase],
            state.values(),
            self.optimizer,
            previous=state.carried,
            best=state.best,
            progress=progress,
        )

    def _run_phase(self, state: State, phase: ResolvedPhase) -> None:
        progress = state.progress
        if progress.phase_step == phase.steps or self._is_stopped(progress, phase):
            return  # Resumed from a checkpoint at the phase's very end.
        self.reporter.phase(self._describe(phase, progress))
        while progress.phase_step < phase.steps and not self._is_stopped(progress, phase):
            self._run_pass(state, phase)

    def _describe(self, phase: ResolvedPhase, progress: Progress) -> str:
        count = sum(int(np.prod(self.forward.variables[n].shape)) for n in phase.trainable)
        share = count / sum(
            int(np.prod(self.forward.variables[n].shape)) for n in self.forward.names("weight")
        )
        return (
            f"phase {progress.phase + 1}/{len(self.phases)}: {phase.label}  "
            f"{count:,} parameters train ({share:.1%})  {phase.steps} steps"
        )

    def _run_pass(self, state: State, phase: ResolvedPhase) -> None:
        """One pass over the data, or what the phase leaves of it; then its row."""
        progress, per_epoch = state.progress, self.batches.steps_per_epoch
        epoch = progress.first_epoch + progress.phase_step // per_epoch
        since, examples_before = time.perf_counter(), progress.loss_weight
        batches = self.batches.epoch(epoch, progress.phase_step % per_epoch)
        pending: tuple[Measured, float, float] | None = None
        for batch in batches:
            rate = float(phase.learning_rates[progress.phase_step])
            measured = self._step(state, phase, batch, rate)
            progress.step += 1
            progress.phase_step += 1
            # One step late: reading a loss waits for its step, and the next is under way by then.
            self._read(state, pending)
            pending = (measured, float(batch["weight"].sum()), rate)
            at_end = progress.phase_step in (phase.steps,) or progress.phase_step % per_epoch == 0
            if not at_end and self._is_due(progress.step):
                self._read(state, pending)
                pending = None
                self._save(state)
            if at_end:
                break
        self._read(state, pending)
        seconds = time.perf_counter() - since
        self._end_pass(state, epoch, seconds, progress.loss_weight - examples_before)

    def _step(
        self, state: State, phase: ResolvedPhase, batch: Mapping[str, np.ndarray], rate: float
    ) -> Measured:
        key = jax.random.fold_in(jax.random.key(self.seed), state.progress.step)
        arguments = (state.carried, state.frozen, dict(batch), np.float32(rate), key)
        if phase.trainable not in self._compiled:
            since = time.perf_counter()
            self._compiled[phase.trainable] = self._new_step(phase).compiled(*arguments)
            self._compile_seconds += time.perf_counter() - since
        state.carried, measured = self._compiled[phase.trainable](*arguments)
        return measured

    def _new_step(self, phase: ResolvedPhase) -> Step:
        seeds = {
            name: (tuple(variable.shape), variable.dtype)
            for name, variable in self.forward.variables.items()
            if self.forward.roles[name] == "seed"
        }
        return Step(
            self.forward, self.objective, self.optimizer, phase.trainable, seeds, self.accumulate
        )

    def _read(self, state: State, pending: tuple[Measured, float, float] | None) -> None:
        if pending is None:
            return
        measured, examples, rate = pending
        loss = float(measured.loss)
        if not math.isfinite(loss):
            raise TrainingError(
                f"the loss is {loss} at step {state.progress.step} (learning rate {rate:.1e}). "
                "Lower the learning rate, lengthen the warmup, or set optimizer.clip_norm; the "
                "model is as it was before training."
            )
        state.progress.loss_sum += loss * examples
        state.progress.loss_weight += examples
        self.reporter.step(loss=loss, learning_rate=rate, examples=round(examples))

    def _end_pass(self, state: State, epoch: int, seconds: float, examples: float) -> None:
        progress, phase = state.progress, self.phases[state.progress.phase]
        row: dict[str, Any] = {
            "epoch": epoch + 1,
            "phase": progress.phase,
            "step": progress.step,
            "loss": progress.loss_sum / progress.loss_weight,
            "learning_rate": float(phase.learning_rates[progress.phase_step - 1]),
        }
        progress.loss_sum = progress.loss_weight = 0.0
        if self.evaluate is not None:
            metrics = self.evaluate(state.values(averaged=True))
            row |= {f"val_{name}": v for name, v in metrics.items() if isinstance(v, float)}
            self._score(state, metrics)
        row |= {"seconds": seconds, "examples_per_second": examples / max(seconds, 1e-9)}
        progress.history.append(row)
        self.reporter.row(row)
        last = progress.phase_step == phase.steps or self._is_stopped(progress, phase)
        if last or self._is_due(progress.step):
            self._save(state)

    def _score(self, state: State, metrics: Mapping[str, Any]) -> None:
        progress, monitor = state.progress, self.runtime.monitor
        progress.score = -metrics[monitor] if monitor == "loss" else metrics[monitor]
        progress.waited += 1
        if progress.score > progress.phase_best_score:
            progress.phase_best_score = progress.score
            progress.waited = 0
        if progress.score > progress.best_score:
            progress.best_score = progress.score
            state.keep_as_best(self.forward)

    def _is_stopped(self, progress: Progress, phase: ResolvedPhase) -> bool:
        return phase.patience is not None and progress.waited >= phase.patience

    def _is_due(self, step: int) -> bool:
        """Whether a checkpoint is to be written after this step."""
        if self.checkpoints is None or self.runtime.checkpoint_every is None:
            return False
        every = Duration.parse(self.runtime.checkpoint_every)
        return step % every.to_steps(self.batches.steps_per_epoch) == 0

    def _save(self, state: State) -> None:
        if self.checkpoints is not None and self.runtime.checkpoint_every is not None:
            self.checkpoints.save(state)
