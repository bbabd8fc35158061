"""Many runs of one program at once: the step under `vmap`, the rest of each run its own.

Members may differ in seed, data order, start and rates: in values, in nothing that is traced.
What they have in common, such as a frozen backbone, is held once.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tunekit.training.memory import memory_text, step_memory, temporary_bytes
from tunekit.training.progress import Reporter, SilentReporter
from tunekit.training.state import State
from tunekit.training.step import Carried, Measured, Values
from tunekit.training.steps import ordered_multipliers
from tunekit.training.trainer import Trained, Trainer


@dataclass(frozen=True)
class Member:
    """What became of one member."""

    trained: Trained
    values: Values
    """The values it ended with, of what differs from the model's own."""
    failure: str | None
    """Why it has no result, such as a loss that is not finite."""


@dataclass(eq=False)
class Members:
    """Trains members side by side; the model itself is not written to."""

    trainers: Sequence[Trainer]
    """One a member, over one model, with equal programs and equal numbers of steps."""
    reporter: Reporter = field(default_factory=SilentReporter)
    _failures: dict[int, str] = field(default_factory=dict, init=False)
    _compiles: int = field(default=0, init=False)
    _compile_seconds: float = field(default=0.0, init=False)

    def fit(self) -> list[Member]:
        """Returns what became of each member; one that diverges leaves the others alone."""
        states = [trainer.first_state() for trainer in self.trainers]
        phases = range(len(self.trainers[0].phases))
        self.reporter.start(steps=sum(p.steps for p in self.trainers[0].phases), done=0)
        try:
            for index in phases:
                if index:
                    states = [t.next_phase(s) for t, s in zip(self.trainers, states, strict=True)]
                self._run_phase(index, states)
        finally:
            self.reporter.close()
        return [
            Member(
                trainer.trained(state, self._compiles, self._compile_seconds),
                trainer.final_values(state),
                self._failures.get(m),
            )
            for m, (trainer, state) in enumerate(zip(self.trainers, states, strict=True))
        ]

    def _run_phase(self, index: int, states: Sequence[State]) -> None:
        phases = [trainer.phases[index] for trainer in self.trainers]
        feeds = [trainer.feeds[index] for trainer in self.trainers]
        batches = [feed.open(s.values()) for feed, s in zip(feeds, states, strict=True)]
        own, shared = _own_and_shared([state.frozen for state in states])
        carried = _stacked([state.carried for state in states])
        factors = np.stack([ordered_multipliers(phase) for phase in phases])
        rates = np.stack([phase.learning_rates for phase in phases], axis=1)[..., None] * factors
        seeds = jnp.stack([jax.random.key(trainer.seed) for trainer in self.trainers])
        program = None
        self.reporter.phase(f"phase {index + 1}: {phases[0].label}  {len(phases)} members at once")
        while states[0].progress.phase_step < len(rates):
            progress, per_epoch = states[0].progress, feeds[0].steps_per_epoch
            epoch = progress.first_epoch + progress.phase_step // per_epoch
            since, examples = time.perf_counter(), 0.0
            pending: tuple[Measured, np.ndarray, float] | None = None
            for rows in zip(*(each.epoch(epoch) for each in batches), strict=True):
                batch = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
                keys = _folded(seeds, progress.step)
                rate = rates[progress.phase_step]
                arguments = (own, shared, batch, rate, keys)
                if program is None:
                    program = self._compiled(index, carried, *arguments)
                    # Of all members together: what they share is counted once.
                    temporary = temporary_bytes(program)
                    memory = step_memory(carried, {**shared, **own}, temporary)
                    self.reporter.note(memory_text(memory))
                    for state in states:
                        state.progress.memory = memory
                carried, measured = program(carried, *arguments)
                for state in states:
                    state.progress.step += 1
                    state.progress.phase_step += 1
                # One step late: the next is under way while this loss is waited for.
                self._read(states, pending)
                pending = (measured, batch["weight"].sum(axis=1), float(rate.max()))
                examples += float(batch["weight"][0].sum())
                if progress.phase_step == len(rates):
                    break
            self._read(states, pending)
            seconds = time.perf_counter() - since
            self._end_pass(states, carried, epoch, seconds, examples)
        for trainer, state in zip(self.trainers, states, strict=True):
            trainer.record_phase(state)

    def _compiled(self, index: int, carried: Carried, *arguments: Any) -> Any:
        programs = self.trainers[0].programs
        step, anchors = programs.step(index), programs.anchors_of(index)

        def one(carried: Carried, own: Values, shared: Values, batch: Any, rates: Any, key: Any):
            return step(carried, {**shared, **own}, anchors, batch, rates, key)

        since = time.perf_counter()
        many = jax.vmap(one, in_axes=(0, 0, None, 0, 0, 0))
        program = jax.jit(many, donate_argnums=0).lower(carried, *arguments).compile()
        self._compiles += 1
        self._compile_seconds += time.perf_counter() - since
        return program

    def _read(
        self, states: Sequence[State], pending: tuple[Measured, np.ndarray, float] | None
    ) -> None:
        if pending is None:
            return
        measured, examples, rate = pending
        losses, weights = np.asarray(measured.loss), np.asarray(measured.weight)
        for m, state in enumerate(states):
            if not np.isfinite(losses[m]):
                message = f"the loss is {losses[m]} at step {state.progress.step}"
                self._failures.setdefault(m, message)
            state.progress.skipped += bool(measured.skipped[m])
            state.progress.loss_sum += float(losses[m]) * float(weights[m])
            state.progress.loss_weight += float(weights[m])
        alive = np.nanmean(losses) if np.isfinite(losses).any() else float("nan")
        self.reporter.step(loss=float(alive), learning_rate=rate, examples=round(examples.sum()))

    def _end_pass(
        self,
        states: Sequence[State],
        carried: Carried,
        epoch: int,
        seconds: float,
        examples: float,
    ) -> None:
        for m, (trainer, state) in enumerate(zip(self.trainers, states, strict=True)):
            state.carried = jax.tree.map(lambda leaf, m=m: leaf[m], carried)
            if m not in self._failures:
                trainer.end_pass(state, epoch, seconds, examples)


def _own_and_shared(frozen: Sequence[Mapping[str, jax.Array]]) -> tuple[Values, Values]:
    """Frozen values that differ between members, stacked, and those that are one array for all."""
    first = frozen[0]
    shared = {n: v for n, v in first.items() if all(other[n] is v for other in frozen)}
    own = {n: jnp.stack([each[n] for each in frozen]) for n in first if n not in shared}
    return own, shared


def _stacked(carried: Sequence[Carried]) -> Carried:
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *carried)


@jax.jit
def _folded(keys: jax.Array, step: int) -> jax.Array:
    return jax.vmap(lambda key: jax.random.fold_in(key, step))(keys)
