"""What packing and length buckets save: tokens of texts a second, against padding to the longest.

    python benchmarks/packing.py [--layers 2] [--texts 256]

A LoRA step on a network of SmolLM2-135M's widths with few of its 30 layers, on texts whose lengths
are those of dialogues: log-normal, half of them below 60 tokens, cut at 512. An epoch's time is
that of a step of each shape times the number of such steps, the shapes being timed in turn.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import tunekit  # noqa: F401  first: it makes JAX the backend of Keras

# isort: split
import jax
import jax.numpy as jnp
import keras_hub
import numpy as np

from tunekit.data.packing import Packing
from tunekit.data.sequences import SequenceBatches, buckets
from tunekit.methods.spec import LoRA
from tunekit.models.forward import Forward
from tunekit.models.loading import load_model
from tunekit.models.trainable import put

LONGEST, VOCABULARY, ROUNDS = 512, 49_152, 3


@dataclass(frozen=True)
class Texts:
    """Texts of random ids; the first third of each is a prompt, which has no loss."""

    sizes: np.ndarray

    def __len__(self) -> int:
        """Returns the number of texts."""
        return len(self.sizes)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Returns one text."""
        rng = np.random.default_rng(index)
        return {"id": index, "ids": rng.integers(0, VOCABULARY, self.sizes[index], np.int32)}


def encode(example: dict[str, Any], rng: np.random.Generator | None) -> dict[str, np.ndarray]:
    """Returns the columns of a language model's step."""
    ids = example["ids"]
    weights = (np.arange(len(ids)) >= len(ids) // 3).astype(np.float32)
    return {"token_ids": ids, "targets": np.roll(ids, -1), "loss_weights": weights}


def main() -> None:
    """Prints, for each way, steps, share of tokens that are padding, and tokens a second."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--layers", type=int, default=2)
    options.add_argument("--texts", type=int, default=256)
    given = options.parse_args()
    lengths = np.random.default_rng(0).lognormal(np.log(60), 0.9, given.texts)
    texts = Texts(np.clip(lengths, 4, LONGEST).astype(int))
    epochs = {
        "padded": _batches(texts, 4, (LONGEST,)),
        "bucketed": _batches(texts, 16, buckets(LONGEST)),
        "packed": _batches(texts, 4, (LONGEST,), Packing(LONGEST)),
    }
    step = _step(_model(given.layers))
    counts = {
        name: Counter(batch["token_ids"].shape for batch in batches.epoch(0))
        for name, batches in epochs.items()
    }
    seconds = _timed(step, epochs)
    total = texts.sizes.sum()
    print(f"{len(texts)} texts, {total} tokens, {given.layers} layers")
    print(f"{'':12}{'steps':>8}{'shapes':>8}{'padding':>10}{'tokens/s':>10}{'ratio':>8}")
    first = None
    for name, shapes in counts.items():
        computed = sum(rows * length * count for (rows, length), count in shapes.items())
        rate = total / sum(seconds[name, shape] * count for shape, count in shapes.items())
        first = first or rate
        cells = f"{sum(shapes.values()):>8}{len(shapes):>8}{1 - total / computed:>10.0%}"
        print(f"{name:12}{cells}{rate:>10.0f}{rate / first:>8.2f}")


def _batches(
    texts: Texts, size: int, lengths: tuple[int, ...], packing: Packing | None = None
) -> SequenceBatches:
    return SequenceBatches(
        texts, encode, size, seed=0, shuffle=True, buckets=lengths, pad_id=0, packing=packing
    )


def _model(layers: int) -> Forward:
    body = keras_hub.models.LlamaBackbone(
        vocabulary_size=VOCABULARY,
        num_layers=layers,
        num_query_heads=9,
        num_key_value_heads=3,
        hidden_dim=576,
        intermediate_dim=1536,
        tie_word_embeddings=True,
    )
    model = load_model(keras_hub.models.LlamaCausalLM(body))
    put(LoRA(targets="linear"), model)
    return model.forward()


def _step(forward: Forward) -> Any:
    values = forward.values()
    names = [name for name in forward.names("weight") if name.startswith("adapters/")]

    def loss(adapter: Any, values: Any, batch: Mapping[str, Any]) -> Any:
        inputs = {name: x for name, x in batch.items() if name not in ("weight", "index")}
        losses, _ = forward({**values, **adapter}, inputs, training=True, trainable=names)
        return jnp.sum(losses * batch["loss_weights"])

    program = jax.jit(jax.value_and_grad(loss))
    return lambda batch: program({name: values[name] for name in names}, values, batch)


def _timed(step: Any, epochs: Mapping[str, SequenceBatches]) -> dict[Any, float]:
    """Median seconds of a step, by way and shape."""
    first = {}
    for name, batches in epochs.items():
        for batch in batches.epoch(0):
            first.setdefault((name, batch["token_ids"].shape), batch)
    times: dict[Any, list[float]] = {key: [] for key in first}
    for _ in range(ROUNDS + 1):
        for key, batch in first.items():
            start = time.process_time()
            jax.block_until_ready(step(batch))
            times[key].append(time.process_time() - start)
    return {key: statistics.median(found[1:]) for key, found in times.items()}


if __name__ == "__main__":
    main()
