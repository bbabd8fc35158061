"""A small network with what makes training hard: BatchNorm, dropout, two depth groups, a head."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import keras
import numpy as np

from tunekit.models.forward import Forward
from tunekit.plans.optimizer import OptimizerSpec
from tunekit.plans.phase import Phase
from tunekit.plans.resolve import ResolvedPhase, resolve_plan
from tunekit.rules import matching
from tunekit.training.feed import Evaluate, Feed
from tunekit.training.spec import RuntimeSpec
from tunekit.training.trainer import Trainer

CLASSES = 3


def small_model(seed: int = 0, *, dropout: float = 0.5, dtype: str = "float32") -> keras.Model:
    """Two blocks of Dense, BatchNorm and dropout, and a head; the same for the same seed."""
    x = inputs = keras.Input((4,))
    for name in ("block1", "block2"):
        block = keras.Sequential(
            [
                keras.Input((x.shape[-1],)),
                keras.layers.Dense(8, name="dense", dtype=dtype),
                keras.layers.BatchNormalization(name="norm", dtype=dtype),
                keras.layers.Dropout(dropout, name="dropout", dtype=dtype),
            ],
            name=name,
        )
        x = block(x)
    model = keras.Model(inputs, keras.layers.Dense(CLASSES, name="head")(x))
    rng = np.random.default_rng(seed)
    for layer_variable in model.trainable_variables:
        if layer_variable.name == "kernel":
            layer_variable.assign(rng.normal(size=layer_variable.shape) * 0.5)
    return model


def small_forward(model: keras.Model) -> Forward:
    """The forward pass of the model with one depth group a block."""
    names = list(Forward.of(model).variables)
    groups = [[n for n in names if n.startswith(start)] for start in ("block1", "block2", "head")]
    return Forward.of(model, groups)


class Classify:
    """Mean softmax cross-entropy on rows that weigh something."""

    def augment_batch(self, key: jax.Array, batch: Any) -> Any:
        """Returns the batch as it is."""
        return batch

    def inputs(self, batch: Any) -> jax.Array:
        """Returns the features."""
        return batch["x"]

    def loss(self, outputs: Any, batch: Any) -> tuple[jax.Array, jax.Array]:
        """Returns the summed loss and weight."""
        log_p = jax.nn.log_softmax(outputs.astype(jnp.float32))
        losses = -jnp.take_along_axis(log_p, batch["label"][:, None], axis=1)[:, 0]
        return jnp.sum(losses * batch["weight"]), jnp.sum(batch["weight"])


class Rows:
    """24 rows in shuffled batches of 8; the last of each pass has two padded rows."""

    def __init__(self, seed: int = 0, batch_size: int = 8) -> None:
        rng = np.random.default_rng(seed)
        self.label = rng.integers(0, CLASSES, 22).astype(np.int32)
        self.x = (rng.normal(size=(22, 4)) + self.label[:, None]).astype(np.float32)
        self._seed, self.size = seed, batch_size

    @property
    def steps_per_epoch(self) -> int:
        """Batches of one pass."""
        return -(-len(self.label) // self.size)

    def epoch(self, epoch: int, start_step: int = 0) -> Iterator[dict[str, np.ndarray]]:
        """Yields the batches of a pass."""
        order = np.random.default_rng((self._seed, epoch)).permutation(len(self.label))
        for step in range(start_step, self.steps_per_epoch):
            rows = order[step * self.size : (step + 1) * self.size]
            weight = np.zeros(self.size, np.float32)
            weight[: len(rows)] = 1
            rows = np.resize(rows, self.size)
            yield {"x": self.x[rows], "label": self.label[rows], "weight": weight}


def small_feed(
    forward: Forward,
    phase: ResolvedPhase,
    batches: Any,
    evaluate: Evaluate | None = None,
    accumulate: int = 1,
) -> Feed:
    """The data side of a phase of the small model."""
    policy = phase.spec.batch_norm
    forward = replace(
        forward,
        batch_norm="follow" if policy == "reestimated" else policy,
        frozen_dropout=phase.spec.frozen_dropout,
    )
    first = next(iter(Rows(batch_size=batches.size).epoch(0)))
    return Feed(
        forward=forward,
        objective=Classify(),
        columns={n: jax.ShapeDtypeStruct(c.shape, c.dtype) for n, c in first.items()},
        steps_per_epoch=batches.steps_per_epoch,
        open=lambda values: batches,
        accumulate=accumulate,
        evaluate=evaluate,
        measure=replace(forward, largest_momentum=0.0),
    )


def small_trainer(model: keras.Model, plan: Sequence[Phase], **changes: Any) -> Trainer:
    """A trainer of the small model; phases select by patterns of names."""
    forward = small_forward(model)
    batches = changes.pop("batches", None) or Rows()

    def select(patterns: Sequence[str]) -> frozenset[str]:
        weights = forward.names("weight")
        return frozenset(name for pattern in patterns for name in matching(pattern, weights))

    phases = resolve_plan(
        plan, select, default_train=(".*",), steps_per_epoch=lambda _: batches.steps_per_epoch
    )
    evaluate, accumulate = changes.pop("evaluate", None), changes.pop("accumulate", 1)
    feeds = [small_feed(forward, phase, batches, evaluate, accumulate) for phase in phases]
    defaults: dict[str, Any] = {
        "optimizer": OptimizerSpec(),
        "runtime": RuntimeSpec(restore_best=False),
        "seed": 0,
    }
    return Trainer(
        forward=forward,
        phases=phases,
        feeds=feeds,
        **(defaults | changes),
    )


def weights(model: keras.Model) -> dict[str, np.ndarray]:
    """Copies of every value by structural name, but seeds, which are new in every model."""
    forward = small_forward(model)
    values = forward.values()
    return {n: np.array(v) for n, v in values.items() if forward.roles[n] != "seed"}
