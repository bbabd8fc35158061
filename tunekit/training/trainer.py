"""The loop: phases, passes, evaluation, the best weights, stopping, checkpoints."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tunekit.distributed import process_count
from tunekit.durations import Duration
from tunekit.errors import TrainingError, did_you_mean
from tunekit.models.forward import Forward
from tunekit.models.placement import in_host_memory
from tunekit.plans.optimizer import OptimizerSpec
from tunekit.plans.resolve import ResolvedPhase
from tunekit.training.checkpoints import Checkpoints
from tunekit.training.feed import Feed
from tunekit.training.kept_steps import KeptSteps
from tunekit.training.layout import Layout
from tunekit.training.profiling import Unprofiled
from tunekit.training.programs import Programs
from tunekit.training.progress import Reporter, SilentReporter
from tunekit.training.recompiles import Unexpected
from tunekit.training.shared_batches import SharedBatches, open_shared
from tunekit.training.spec import LOWER_IS_BETTER, RuntimeSpec
from tunekit.training.state import NO_SCORE, Progress, State, enter_phase
from tunekit.training.statistics import reestimated
from tunekit.training.step import Measured, Values
from tunekit.training.steps import Steps


@dataclass(frozen=True)
class Trained:
    """What a run leaves beside the trained model."""

    history: list[dict[str, Any]]
    """One row a pass over the data."""
    phases: list[dict[str, Any]]
    """What each phase was and cost: label, parameters that train, steps, epochs, best score…"""
    compiles: int
    """Programs compiled for training steps."""
    compile_seconds: float
    """XLA's time for them, also where training went on meanwhile."""
    steps: int
    """Optimizer steps done in all, earlier runs that this one resumed included."""
    unexpected: Sequence[Unexpected] = ()
    """Programs compiled for batches of shapes that nobody expected."""
    profile: dict[str, Any] | None = None
    """Where the time went (``tunekit.training.profiling``); `None` where nobody asked."""


@dataclass(eq=False)
class Trainer:
    """Trains a model through its phases; `fit` writes the model's variables once, at the end.

    An error leaves the model as it was. Ctrl-C leaves it as the last whole step made it.
    """

    forward: Forward
    """Of the whole model."""
    phases: Sequence[ResolvedPhase]
    feeds: Sequence[Feed]
    """One a phase."""
    optimizer: OptimizerSpec
    """Of every phase that has none of its own."""
    runtime: RuntimeSpec
    seed: int
    checkpoints: Checkpoints | None = None
    reporter: Reporter = field(default_factory=SilentReporter)
    start: Mapping[str, jax.Array] = field(default_factory=dict)
    """Values to begin with in place of the model's own."""
    layout: Layout | None = None
    """Where arrays lie when several devices share the run; `None` is one device."""
    kept: KeptSteps | None = None
    """Compiled steps of earlier starts; `None` where none are kept."""
    profile: Unprofiled = field(default_factory=Unprofiled)
    """Told of what the time goes to."""
    programs: Programs = field(init=False)
    """The compiled steps of the phases."""
    _state: State | None = field(default=None, init=False)
    _steps: Steps = field(init=False, repr=False)

    def __post_init__(self) -> None:
        """Prepares the programs; nothing is compiled yet."""
        self.programs = Programs(
            self.forward, self.phases, self.feeds, self.optimizer, self.layout, self.kept
        )
        self.programs.counts_operations = self.profile.measures

    def fit(self) -> Trained:
        """Trains, and leaves the trained values in the model.

        Raises:
            TrainingError: the loss is not finite.
            CheckpointError: the checkpoint to resume from belongs to another run.
        """
        state = self.first_state()
        self._steps = Steps(self.programs, self.seed, self.reporter, self.profile)
        steps = sum(phase.steps for phase in self.phases)
        self.reporter.start(steps=steps, done=state.progress.step)
        if self.layout is not None:
            sizes = self.layout.sizes
            self.reporter.note(f"{sizes.devices} devices share the run: {sizes}")
        try:
            state = self._run_phases(state)
        except KeyboardInterrupt:
            # Of several processes the others may know nothing of it, and values are asked of all.
            alone = process_count() == 1
            if alone and self._state is not None and self._state.is_whole():
                self.forward.assign(self._whole(self._state.moved(averaged=True)))
            raise
        finally:
            self.profile.close()
            self.programs.close()
            self.reporter.close()
        self.forward.assign(self.final_values(state))
        trained = self.trained(state, len(self.programs), self.programs.seconds)
        return replace(trained, profile=self.profile.summary())

    def final_values(self, state: State) -> Values:
        """Returns the values that the run ends with: of what may differ from the model's own."""
        best = state.best if self.runtime.restore_best else None
        # What the best evaluation had not moved yet is in the model as it was then.
        return self._whole(state.moved(averaged=True) if best is None else best)

    def _whole(self, values: Values) -> Values:
        """The values as the model itself holds them, on no mesh."""
        if self.layout is None:
            return values
        shared = self.layout.sizes.data < self.layout.sizes.devices
        # What several devices share may be too large for one of them.
        with in_host_memory() if shared else nullcontext():
            return {name: jnp.asarray(v) for name, v in self.layout.fetched(values).items()}

    def trained(self, state: State, compiles: int, compile_seconds: float) -> Trained:
        """Returns the record of the run that ended in `state`."""
        progress = state.progress
        unexpected = tuple(self.programs.unexpected)
        return Trained(
            progress.history, progress.phases, compiles, compile_seconds, progress.step, unexpected
        )

    def first_state(self) -> State:
        """Returns the state to begin with: of the last checkpoint, or of the first phase."""
        if self.checkpoints is not None and self.runtime.resume:
            optimizers = [self.programs.optimizer_of(i) for i in range(len(self.phases))]
            restored = self.checkpoints.restore(self.forward, self.phases, optimizers, self.layout)
            if restored is not None:
                return self._laid(restored)
        if self.checkpoints is not None:
            self.checkpoints.clear()
        values = {**self.forward.values(), **self.start}
        if self.layout is not None:
            values = self.layout.values(values)
        return self._entered(0, values, Progress(moved=sorted(self.start)))

    def _entered(
        self,
        index: int,
        values: Mapping[str, jax.Array],
        progress: Progress,
        previous: State | None = None,
    ) -> State:
        optimizer_of = self.programs.optimizer_of
        state = enter_phase(
            self.forward,
            self.phases[index],
            values,
            optimizer_of(index),
            previous=previous,
            previous_optimizer=optimizer_of(index - 1) if previous else None,
            progress=progress,
        )
        return self._laid(state)

    def _laid(self, state: State) -> State:
        """The state, its arrays where the layout has them."""
        if self.layout is None:
            return state
        return replace(
            state,
            carried=self.layout.carried(state.carried),
            frozen=self.layout.values(state.frozen),
        )

    def _run_phases(self, state: State) -> State:
        while True:
            self._state = state
            self._run_phase(state)
            self.record_phase(state)
            if state.progress.phase + 1 == len(self.phases):
                return state
            state = self.next_phase(state)

    def next_phase(self, state: State) -> State:
        """Returns the state at the start of the phase after the one that `state` ends."""
        progress = state.progress
        per_epoch = self.feeds[progress.phase].steps_per_epoch
        progress.first_epoch += math.ceil(progress.phase_step / per_epoch)
        progress.phase += 1
        progress.phase_step = progress.waited = progress.skipped = 0
        progress.memory = {}
        progress.phase_best_score = NO_SCORE
        values = {**state.values(), **(state.phase_best or {})}
        return self._entered(progress.phase, values, progress, state)

    def _run_phase(self, state: State) -> None:
        progress, phase = state.progress, self.phases[state.progress.phase]
        if self._is_over(progress, phase):
            return  # Resumed from a checkpoint at the phase's very end.
        self.reporter.phase(self._describe(phase, progress))
        feed = self.feeds[progress.phase]
        if phase.spec.batch_norm == "reestimated" and progress.phase_step == 0:
            measured = reestimated(self.forward, feed, state.values(), phase.trainable, self.layout)
            state.carried.mutable.update(measured)
        with self.profile.part("features"):
            batches = open_shared(feed, state.values(), self.layout)
        while not self._is_over(progress, phase):
            self._run_pass(state, phase, batches)

    def _is_over(self, progress: Progress, phase: ResolvedPhase) -> bool:
        return progress.phase_step == phase.steps or self._is_stopped(progress, phase)

    def record_phase(self, state: State) -> None:
        """Adds what became of the phase to the record; after a resume it may be there already."""
        progress, phase = state.progress, self.phases[state.progress.phase]
        feed, best = self.feeds[progress.phase], progress.phase_best_score
        record = {
            "label": phase.label,
            "parameters": self._parameters(phase.trainable),
            "steps": progress.phase_step,
            "epochs": progress.phase_step / feed.steps_per_epoch,
            "stopped_early": progress.phase_step < phase.steps,
            "best_score": None if best == NO_SCORE else best,
            "start": feed.start,
            "reason": feed.reason,
            "memory": progress.memory,
            "micro_batches": feed.accumulate,
            "skipped_steps": progress.skipped,
        }
        progress.phases[progress.phase :] = [record]

    def _describe(self, phase: ResolvedPhase, progress: Progress) -> str:
        count = self._parameters(phase.trainable)
        share = count / max(self._parameters(self.forward.names("weight")), 1)
        feed = self.feeds[progress.phase]
        start = f"  from {feed.start}" if feed.start else ""
        return (
            f"phase {progress.phase + 1}/{len(self.phases)}: {phase.label}  "
            f"{count:,} parameters train ({share:.1%})  {phase.steps} steps{start}"
        )

    def _parameters(self, names: Iterable[str]) -> int:
        return sum(int(np.prod(self.forward.variables[name].shape)) for name in names)

    def _run_pass(self, state: State, phase: ResolvedPhase, batches: SharedBatches) -> None:
        """One pass over the data, or what the phase leaves of it; then its row."""
        progress, per_epoch = state.progress, batches.steps_per_epoch
        epoch = progress.first_epoch + progress.phase_step // per_epoch
        since, examples = time.perf_counter(), 0.0
        pending: tuple[Measured, float, float] | None = None
        of_pass = batches.epoch(epoch, progress.phase_step % per_epoch)
        for batch in self.profile.waiting(of_pass):
            rate = float(phase.learning_rates[progress.phase_step])
            measured = self._steps.take(state, phase, batch, rate)
            progress.step += 1
            progress.phase_step += 1
            # One step late: reading a loss waits for its step, and the next is under way by then.
            self._steps.read(state, pending)
            pending = (measured, batches.examples(batch), rate)
            examples += pending[1]
            self.profile.seen(batch, examples=pending[1])
            at_end = progress.phase_step == phase.steps or progress.phase_step % per_epoch == 0
            if not at_end and self._is_due(progress):
                self._steps.read(state, pending)
                pending = None
                self._save(state)
            if at_end:
                break
        self._steps.read(state, pending)
        seconds = time.perf_counter() - since
        self.end_pass(state, epoch, seconds, batches.total(examples))

    def end_pass(self, state: State, epoch: int, seconds: float, examples: float) -> None:
        """Evaluates, keeps the best, writes the row of the pass, and a checkpoint where due."""
        progress, phase = state.progress, self.phases[state.progress.phase]
        row: dict[str, Any] = {
            "epoch": epoch + 1,
            "phase": progress.phase,
            "step": progress.step,
            "loss": progress.loss_sum / max(progress.loss_weight, 1e-12),
            "learning_rate": float(phase.learning_rates[progress.phase_step - 1]),
        }
        progress.loss_sum = progress.loss_weight = 0.0
        evaluate = self.feeds[progress.phase].evaluate
        if evaluate is not None:
            with self.profile.part("evaluation"):
                metrics = evaluate(state.values(averaged=True))
            row |= {f"val_{name}": v for name, v in metrics.items() if isinstance(v, float)}
            self._score(state, phase, metrics)
        row |= {"seconds": seconds, "examples_per_second": examples / max(seconds, 1e-9)}
        progress.history.append(row)
        self.reporter.row(row)
        if self._is_over(progress, phase) or self._is_due(progress):
            self._save(state)

    def _score(self, state: State, phase: ResolvedPhase, metrics: Mapping[str, Any]) -> None:
        progress, monitor = state.progress, self.runtime.monitor
        if monitor == "auto":
            monitor = self.feeds[progress.phase].monitor
        if metrics.get(monitor) is None:
            known = [name for name, value in metrics.items() if isinstance(value, float)]
            raise TrainingError(
                f"runtime.monitor: evaluation gives no {monitor!r}.{did_you_mean(monitor, known)} "
                f"It gives {', '.join(known)}."
            )
        progress.score = -metrics[monitor] if monitor in LOWER_IS_BETTER else metrics[monitor]
        progress.waited += 1
        if progress.score > progress.phase_best_score:
            progress.phase_best_score = progress.score
            progress.waited = 0
            if phase.patience is not None:
                state.keep_as_phase_best()
        if progress.score > progress.best_score:
            progress.best_score = progress.score
            state.keep_as_best(self.forward)

    def _is_stopped(self, progress: Progress, phase: ResolvedPhase) -> bool:
        return phase.patience is not None and progress.waited >= phase.patience

    def _is_due(self, progress: Progress) -> bool:
        """Whether a checkpoint is to be written now."""
        if self.checkpoints is None or self.runtime.checkpoint_every is None:
            return False
        every = Duration.parse(self.runtime.checkpoint_every)
        per_epoch = self.feeds[progress.phase].steps_per_epoch
        return progress.step % every.to_steps(per_epoch) == 0

    def _save(self, state: State) -> None:
        if self.checkpoints is not None and self.runtime.checkpoint_every is not None:
            with self.profile.part("checkpoint"):
                self.checkpoints.save(state)
