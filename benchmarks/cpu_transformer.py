"""What the CPU forms of a vision transformer's layers save, each left out in turn.

    python benchmarks/cpu_transformer.py

Two blocks of a ViT-S/14 at 224 pixels. All are timed in turn in one process: the ratios are what
to quote. Processor time is printed beside the wall's: where other programs run it is the steadier.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Mapping

import tunekit  # noqa: F401  first: it makes JAX the backend of Keras

# isort: split
import jax
import jax.numpy as jnp
import keras
import keras_hub
import numpy as np

from tunekit.methods.intercept import Wrap, intercept
from tunekit.models.cpu_attention import cpu_attentions
from tunekit.models.cpu_convolution import cpu_convolutions
from tunekit.models.cpu_gradients import cpu_gradients
from tunekit.names import layer_names

BATCH, SIZE_PX, BLOCKS, REPEATS = 16, 224, 2, 9
PARTS = {"attention": cpu_attentions, "norm, gelu": cpu_gradients, "patches": cpu_convolutions}

Wraps = Mapping[keras.Layer, Wrap]


def main() -> None:
    """Prints milliseconds of a forward pass and of a gradient, and the backward's share."""
    backbone = keras_hub.models.DINOV2Backbone(
        patch_size=14,
        num_layers=BLOCKS,
        num_heads=6,
        hidden_dim=384,
        intermediate_dim=1536,
        image_shape=(SIZE_PX, SIZE_PX, 3),
        position_embedding_shape=(SIZE_PX, SIZE_PX),
    )
    layers = list(layer_names(backbone).values())
    wraps = {name: part(layers) for name, part in PARTS.items()}
    cases: dict[str, dict[keras.Layer, Wrap]] = {"XLA": {}, "tunekit": _joined(wraps)}
    for left_out in wraps:
        rest = {name: wrap for name, wrap in wraps.items() if name != left_out}
        cases[f"without {left_out}"] = _joined(rest)

    rng = np.random.default_rng(0)
    images = rng.normal(size=(BATCH, SIZE_PX, SIZE_PX, 3)).astype(np.float32)
    runs = {}
    for name, case in cases.items():
        for kind, program in zip(("forward", "gradient"), _programs(backbone, case), strict=True):
            runs[name, kind] = lambda program=program: program(images)
    times = _paired(runs)
    print(f"batch {BATCH}, {SIZE_PX} px, {BLOCKS} blocks, {os.cpu_count()} cores; wall (processor)")
    print(f"{'':20}{'forward':>20}{'gradient':>20}{'backward/forward':>20}")
    for name in cases:
        forward, gradient = times[name, "forward"], times[name, "gradient"]
        shares = [(g - f) / f for f, g in zip(forward, gradient, strict=True)]
        cells = [_cell("{:.0f} ms", [1e3 * t for t in pair]) for pair in (forward, gradient)]
        print(f"{name:20}{cells[0]:>20}{cells[1]:>20}{_cell('{:.2f}', shares):>20}")


def _joined(wraps: Mapping[str, Wraps]) -> dict[keras.Layer, Wrap]:
    return {layer: wrap for part in wraps.values() for layer, wrap in part.items()}


def _cell(form: str, pair: list[float]) -> str:
    return f"{form} ({form})".format(*pair)


def _programs(backbone: keras.Model, wraps: Wraps) -> tuple[Callable, Callable]:
    variables = backbone.variables
    values = [variable.value for variable in variables]

    def forward(values, images):
        mapping = list(zip(variables, values, strict=True))
        with keras.StatelessScope(state_mapping=mapping), intercept(wraps):
            return backbone({"images": images}, training=False)

    def loss(values, images):
        return jnp.mean(forward(values, images) ** 2)

    programs = jax.jit(forward), jax.jit(jax.grad(loss))
    return tuple(lambda images, program=p: program(values, images) for p in programs)


def _paired(runs: Mapping[tuple[str, str], Callable]) -> dict[tuple[str, str], tuple[float, ...]]:
    """Median wall and processor seconds of each, measured in turn after a warm-up."""
    clocks = (time.perf_counter, time.process_time)
    seconds: dict = {name: [] for name in runs}
    for run in runs.values():
        jax.block_until_ready(run())
    for _ in range(REPEATS):
        for name, run in runs.items():
            since = [clock() for clock in clocks]
            jax.block_until_ready(run())
            seconds[name].append([clock() - t for clock, t in zip(clocks, since, strict=True)])
    return {
        name: tuple(statistics.median(column) for column in zip(*rows, strict=True))
        for name, rows in seconds.items()
    }


if __name__ == "__main__":
    main()
