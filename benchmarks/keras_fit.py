"""tunekit's training step beside Keras' own `fit`, on the same network, batch and optimizer.

    python benchmarks/keras_fit.py

Seconds a step after compilation, head only and in full, in one process and in turn.
"""

from __future__ import annotations

import os
import statistics
import time
from typing import Any

import tunekit  # first: it makes JAX the backend of Keras

# isort: split
import jax
import keras
import numpy as np

from tunekit.models.forward import Forward
from tunekit.models.selection import resolve_selection
from tunekit.plans.optimizer import OptimizerSpec
from tunekit.plans.phase import Phase
from tunekit.plans.resolve import resolve_plan
from tunekit.tasks.image_classification import ImageClassification
from tunekit.training.state import Progress, enter_phase
from tunekit.training.step import Step

BATCH, SIZE_PX, REPEATS, LABELS = 8, 128, 4, ("a", "b", "c")


def main() -> None:
    """Prints seconds a step and the ratio."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 255, (BATCH, SIZE_PX, SIZE_PX, 3)).astype(np.uint8)
    labels = rng.integers(0, len(LABELS), BATCH).astype(np.int32)
    print(f"EfficientNet-Lite0, batch {BATCH}, {SIZE_PX} px, {os.cpu_count()} cores, AdamW")
    print(f"{'trains':8}{'Keras fit':>12}{'tunekit':>10}{'ratio':>8}")
    for train in ("head", "all"):
        runs = [_keras_step(train, images, labels), _tunekit_step(train, images, labels)]
        stock, ours = _paired(runs)
        print(f"{train:8}{stock:10.3f} s{ours:8.3f} s{stock / ours:7.1f}x")


def _keras_step(train: str, images: np.ndarray, labels: np.ndarray) -> Any:
    model = tunekit.load_model("efficientnet_lite0", image_size=SIZE_PX, labels=LABELS)
    network = model.keras
    network.get_layer("backbone").trainable = train == "all"
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    network.compile(keras.optimizers.AdamW(1e-3), loss)
    return lambda: network.train_on_batch(images.astype(np.float32), labels)


def _tunekit_step(train: str, images: np.ndarray, labels: np.ndarray) -> Any:
    model = tunekit.load_model("efficientnet_lite0", image_size=SIZE_PX, labels=LABELS)
    forward = Forward.of(model.keras, [group.variables for group in model.groups()])
    (phase,) = resolve_plan(
        [Phase(train=train, steps=1, warmup="0%")],
        lambda selectors: resolve_selection(selectors, model),
        default_train=("all",),
        steps_per_epoch=lambda phase: 1,
    )
    optimizer = OptimizerSpec()
    state = enter_phase(
        forward,
        phase,
        forward.values(),
        optimizer,
        progress=Progress(),
    )
    step = Step(forward, ImageClassification(LABELS), optimizer, phase.trainable, seeds={})
    batch = {"image": images, "label": labels, "weight": np.ones(BATCH, np.float32)}
    rates = np.full(len(phase.trainable), 1e-3, np.float32)
    rest = (state.frozen, {}, batch, rates, jax.random.key(0))
    program = step.lowered(state.carried, *rest).compile()
    carried = [state.carried]

    def run() -> Any:
        carried[0], measured = program(carried[0], *rest)
        return jax.block_until_ready(measured.loss)

    return run


def _paired(runs: list[Any]) -> list[float]:
    """Median seconds of each, measured in turn after two warm-up steps."""
    seconds: list[list[float]] = [[] for _ in runs]
    for repeat in range(REPEATS + 2):
        for times, run in zip(seconds, runs, strict=True):
            since = time.perf_counter()
            run()
            if repeat >= 2:
                times.append(time.perf_counter() - since)
    return [statistics.median(times) for times in seconds]


if __name__ == "__main__":
    main()
