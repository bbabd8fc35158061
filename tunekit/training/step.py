"""The one compiled training step: micro-batches, one normalisation, clipping, optimizer, EMA."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import optax

from tunekit.plans.optimizer import OptimizerSpec
from tunekit.training.forgetting import l2_sp_gradients, mixed_out, named_key
from tunekit.training.loss_scale import Scale, chosen, divided, factor_of, next_scale
from tunekit.training.optimizers import apply_gradients

Values = dict[str, jax.Array]
Batch = Mapping[str, jax.Array]

FEATURES = "features"
"""Column of a batch that stands in place of the model's inputs: outputs of its frozen part."""


class Objective(Protocol):
    """What a task gives the step. All of it is traced: pure functions of arrays."""

    def augment_batch(self, key: jax.Array, batch: Batch) -> Batch:
        """Returns the batch as the loss takes it; without inputs where it has features."""
        ...

    def inputs(self, batch: Batch) -> Any:
        """Returns what the model takes."""
        ...

    def loss(self, outputs: Any, batch: Batch, /) -> tuple[jax.Array, jax.Array]:
        """Returns the summed loss and the summed weight."""
        ...


class ForwardPass(Protocol):
    """The model as a pure function of its values (``tunekit.models.forward.Forward``)."""

    def __call__(
        self, values: Values, inputs: Any, *, training: bool, trainable: frozenset[str]
    ) -> tuple[Any, Values]:
        """Returns the outputs and the values that the pass changed."""
        ...


class Carried(NamedTuple):
    """The part of the state that a step consumes and gives back; its buffers are donated."""

    trainable: Values
    """What the optimizer moves, float32 whatever the model computes in."""
    mutable: Values
    """What the forward pass moves: BatchNorm statistics."""
    optimizer: dict[str, Any]
    ema: Values
    """Moving average of `trainable`; empty without one."""
    loss_scale: Scale = {}
    """What the loss is multiplied by in float16 (``tunekit.training.loss_scale``); else empty."""


class Measured(NamedTuple):
    """What a step reports."""

    loss: jax.Array
    """Mean loss of the batch, before the step."""
    gradient_norm: jax.Array
    """Global L2 norm of the gradients, before clipping."""
    weight: jax.Array
    """What the loss is a mean over: examples, or the tokens that count."""
    skipped: jax.Array
    """Whether the gradients were not finite in float16, so that the step has changed nothing."""


@dataclass(frozen=True, eq=False)
class Step:
    """A training step for one choice of what trains.

    The micro-batches' losses and gradients are summed and divided once by the summed weight, so
    that k micro-batches equal one batch. Seeds are drawn from the step's key, never carried: a
    resumed run draws what the uninterrupted one would.
    """

    forward: ForwardPass
    objective: Objective
    optimizer: OptimizerSpec
    trainable: frozenset[str]
    seeds: Mapping[str, tuple[tuple[int, ...], Any]]
    """Shape and dtype of the model's seed states, by structural name."""
    accumulate: int = 1
    """Micro-batches of a step."""
    l2_sp: float = 0.0
    """Pull towards the anchors."""
    mixout: float = 0.0
    """Probability of an anchor in a weight's place."""

    def traced(self, *arguments: Any, results: Any = None) -> jax.stages.Traced:
        """Returns the step traced for `arguments`, or for their shapes; ready to be lowered.

        Args:
            *arguments: of a call.
            results: how its results lie on a mesh of devices; `None` where there is none.
        """
        return jax.jit(self, donate_argnums=0, out_shardings=results).trace(*arguments)

    def lowered(self, *arguments: Any) -> jax.stages.Lowered:
        """Returns the step lowered for `arguments`, or for their shapes; ready to compile."""
        return self.traced(*arguments).lower()

    def __call__(
        self,
        carried: Carried,
        frozen: Values,
        anchors: Values,
        batch: Batch,
        learning_rates: jax.Array,
        key: jax.Array,
    ) -> tuple[Carried, Measured]:
        """Returns the state after one optimizer step on `batch`.

        Args:
            carried: consumed.
            frozen: values of all that neither trains nor moves.
            anchors: values before training of what is pulled or mixed towards them; else empty.
            batch: columns of the task, or `FEATURES` in place of its inputs.
            learning_rates: float32 [trainable], in the order of the sorted names.
            key: of all that is random in the step.
        """
        total, weight, gradients, mutable = self._gradients(carried, frozen, anchors, batch, key)
        measured_weight, weight = weight, jnp.maximum(weight, jnp.finfo(jnp.float32).tiny)
        gradients = {name: value / weight for name, value in gradients.items()}
        if self.l2_sp:
            pull = l2_sp_gradients(carried.trainable, anchors, self.l2_sp)
            gradients |= {name: gradients[name] + value for name, value in pull.items()}
        norm = optax.tree.norm(gradients)
        if self.optimizer.clip_norm is not None:
            factor = jnp.minimum(1.0, self.optimizer.clip_norm / jnp.maximum(norm, 1e-12))
            gradients = {name: value * factor for name, value in gradients.items()}
        rates = dict(zip(sorted(self.trainable), learning_rates, strict=True))
        trainable, optimizer = apply_gradients(
            self.optimizer, gradients, carried.optimizer, carried.trainable, rates
        )
        ema = {
            name: self._decay() * average + (1 - self._decay()) * trainable[name]
            for name, average in carried.ema.items()
        }
        new, skipped = Carried(trainable, mutable, optimizer, ema), jnp.zeros((), bool)
        if carried.loss_scale:
            new, skipped = _unless_infinite(new, carried, norm)
        return new, Measured(total / weight, norm, measured_weight, skipped)

    def _decay(self) -> float:
        return self.optimizer.ema or 0.0

    def _gradients(
        self, carried: Carried, frozen: Values, anchors: Values, batch: Batch, key: jax.Array
    ) -> tuple[jax.Array, jax.Array, Values, Values]:
        """Summed loss, summed weight, summed gradients, and the mutable values afterwards."""

        def micro_step(sums, inputs):
            total, weight, gradients, mutable = sums
            micro_batch, micro_key = inputs
            new_gradients, (new_total, new_weight, factor, mutable) = jax.grad(
                functools.partial(self._scaled_loss, carried.loss_scale), has_aux=True
            )(carried.trainable, mutable, frozen, anchors, micro_batch, micro_key)
            new_gradients = divided(new_gradients, factor)
            gradients = {name: gradients[name] + new_gradients[name] for name in gradients}
            return (total + new_total, weight + new_weight, gradients, mutable), None

        zero = jnp.zeros((), jnp.float32)
        no_gradients = {name: jnp.zeros_like(value) for name, value in carried.trainable.items()}
        sums = (zero, zero, no_gradients, carried.mutable)
        keys = jax.random.split(key, self.accumulate)
        if self.accumulate == 1:
            return micro_step(sums, (batch, keys[0]))[0]
        # Every k-th row, and not k stretches: rows then stay on the device that has them.
        micro_batches = {
            name: jnp.swapaxes(column.reshape(-1, self.accumulate, *column.shape[1:]), 0, 1)
            for name, column in batch.items()
        }
        return jax.lax.scan(micro_step, sums, (micro_batches, keys))[0]

    def _scaled_loss(
        self,
        loss_scale: Scale,
        trainable: Values,
        mutable: Values,
        frozen: Values,
        anchors: Values,
        batch: Batch,
        key: jax.Array,
    ) -> tuple[jax.Array, tuple[jax.Array, jax.Array, jax.Array | None, Values]]:
        """Summed loss, scaled where it is to be; and it, its weight, the factor, what moved."""
        augment_key, seed_key = jax.random.split(key)
        batch = self.objective.augment_batch(augment_key, batch)
        if self.mixout:
            trainable = trainable | mixed_out(seed_key, trainable, anchors, self.mixout)
        values = {**frozen, **mutable, **trainable, **self._drawn_seeds(seed_key)}
        inputs = batch[FEATURES] if FEATURES in batch else self.objective.inputs(batch)
        outputs, updates = self.forward(values, inputs, training=True, trainable=self.trainable)
        total, weight = self.objective.loss(outputs, batch)
        moved = {name: updates.get(name, mutable[name]) for name in mutable}
        factor = factor_of(loss_scale, weight)
        scaled = total if factor is None else total * factor
        return scaled, (total, weight, factor, moved)

    def _drawn_seeds(self, key: jax.Array) -> Values:
        return {
            name: jax.random.bits(named_key(key, name), shape, jnp.uint32).astype(dtype)
            for name, (shape, dtype) in self.seeds.items()
        }


def _unless_infinite(new: Carried, old: Carried, norm: jax.Array) -> tuple[Carried, jax.Array]:
    """The state after a step, or before it where the gradients' norm is not finite; and whether."""
    finite = jnp.isfinite(norm)
    scale = next_scale(old.loss_scale, finite)
    kept = chosen(finite, new._replace(loss_scale=scale), old._replace(loss_scale=scale))
    return kept, ~finite
