"""The loss of SmolLM2's language head by chunks of tokens, against that of whole logits.

    python benchmarks/chunked_loss.py [--texts 4] [--tokens 512]

The loss and its gradient towards the hidden states, and in the last row towards the embedding as
well, which the head shares. Printed are the memory that XLA sets aside for the program's own
arrays, the median processor seconds of both, taken in turn (steadier than the wall's where other
programs run), and the ratios; chunked, tokens without a loss, such as those of prompts, cost
nothing.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import tunekit  # noqa: F401  first: it makes JAX the backend of Keras

# isort: split
import jax
import jax.numpy as jnp
import numpy as np

from tunekit.models.language_loss import chunk_tokens, token_losses

VOCABULARY, DIM, REPEATS = 49_152, 576, 3
CASES = (("all tokens", 1.0, False), ("half", 0.5, False), ("a quarter", 0.25, False))
CASES = (*CASES, ("all, embedding trained", 1.0, True))


def main() -> None:
    """Prints one row for each share of tokens that have a loss."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--texts", type=int, default=4)
    options.add_argument("--tokens", type=int, default=512)
    given = options.parse_args()
    shape = (given.texts, given.tokens)
    rng = np.random.default_rng(0)
    hidden = jnp.asarray(rng.normal(size=(*shape, DIM)), jnp.float32)
    table = jnp.asarray(rng.normal(size=(VOCABULARY, DIM)) / DIM, jnp.float32)
    targets = jnp.asarray(rng.integers(0, VOCABULARY, shape), jnp.int32)
    chunk = chunk_tokens(targets.size, VOCABULARY)
    print(f"{shape[0]} x {shape[1]} tokens, vocabulary {VOCABULARY}, {chunk} tokens a chunk")
    print(f"{'with a loss':24}{'whole':>20}{'chunked':>20}{'time':>8}{'memory':>8}")
    for name, share, trains in CASES:
        weights = jnp.asarray(rng.random(shape) < share, jnp.float32)
        arguments = (hidden, table, targets, weights)
        programs = [_compiled(loss, arguments, trains) for loss in (_whole, _chunked)]
        seconds = _medians([lambda p=p, a=arguments: p(*a) for p in programs])
        sizes = [p.memory_analysis().temp_size_in_bytes for p in programs]
        cells = [f"{t:.2f} s {size / 1e6:.0f} MB" for t, size in zip(seconds, sizes, strict=True)]
        ratios = seconds[1] / seconds[0], sizes[1] / sizes[0]
        print(f"{name:24}{cells[0]:>20}{cells[1]:>20}{ratios[0]:>8.2f}{ratios[1]:>8.2f}")


def _whole(hidden: Any, table: Any, targets: Any, weights: Any) -> Any:
    log_p = jax.nn.log_softmax(hidden @ table.T)
    losses = -jnp.take_along_axis(log_p, targets[..., None], axis=-1)[..., 0]
    return jnp.sum(losses * weights)


def _chunked(hidden: Any, table: Any, targets: Any, weights: Any) -> Any:
    chunk = chunk_tokens(targets.size, VOCABULARY)
    losses = token_losses(lambda x: x @ table.T, hidden, targets, weights, chunk)
    return jnp.sum(losses * weights)


def _compiled(loss: Callable, arguments: tuple, trains: bool) -> Any:
    argnums = (0, 1) if trains else 0
    return jax.jit(jax.value_and_grad(loss, argnums)).lower(*arguments).compile()


def _medians(runs: list[Callable[[], Any]]) -> list[float]:
    times: list[list[float]] = [[] for _ in runs]
    for _ in range(REPEATS + 1):
        for run, found in zip(runs, times, strict=True):
            start = time.process_time()
            jax.block_until_ready(run())
            found.append(time.process_time() - start)
    return [statistics.median(found[1:]) for found in times]  # the first warms caches


if __name__ == "__main__":
    main()
