"""What the CPU forms of convolutions and BatchNorm save in a step of the bundled network.

    python benchmarks/cpu_convolution.py

Both are timed in turn in one process; the ratio is what to quote.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable

import tunekit  # first: it makes JAX the backend of Keras

# isort: split
import jax
import jax.numpy as jnp
import keras
import numpy as np

from tunekit.methods.intercept import intercept
from tunekit.models.cpu_layers import cpu_layers
from tunekit.names import layer_names

BATCH, SIZE_PX, REPEATS = 8, 128, 5


def main() -> None:
    """Prints milliseconds of a forward pass and of a gradient, and their ratios."""
    backbone = tunekit.load_model("efficientnet_lite0", image_size=SIZE_PX).backbone.keras
    images = np.random.default_rng(0).normal(size=(BATCH, SIZE_PX, SIZE_PX, 3)).astype(np.float32)
    values = [variable.value for variable in backbone.variables]

    def forward(wraps):
        def run(values, images):
            mapping = list(zip(backbone.variables, values, strict=True))
            with keras.StatelessScope(state_mapping=mapping), intercept(wraps):
                return backbone(images, training=False)

        return run

    def gradient(wraps):
        run = forward(wraps)
        return jax.grad(lambda values, images: jnp.mean(run(values, images) ** 2))

    ours = cpu_layers(layer_names(backbone).values())
    print(f"{len(ours)} layers, batch {BATCH}, {SIZE_PX} px, {os.cpu_count()} cores")
    print(f"{'':10}{'XLA':>10}{'tunekit':>10}{'ratio':>8}")
    for name, make in (("forward", forward), ("gradient", gradient)):
        programs = [jax.jit(make(wraps)) for wraps in ({}, ours)]
        stock, tuned = _paired([lambda p=p: p(values, images) for p in programs])
        print(f"{name:10}{stock * 1e3:7.0f} ms{tuned * 1e3:7.0f} ms{stock / tuned:7.1f}x")


def _paired(runs: list[Callable[[], object]]) -> list[float]:
    """Median seconds of each, measured in turn after a warm-up."""
    seconds: list[list[float]] = [[] for _ in runs]
    for run in runs:
        jax.block_until_ready(run())
    for _ in range(REPEATS):
        for times, run in zip(seconds, runs, strict=True):
            since = time.perf_counter()
            jax.block_until_ready(run())
            times.append(time.perf_counter() - since)
    return [statistics.median(times) for times in seconds]


if __name__ == "__main__":
    main()
