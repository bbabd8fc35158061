"""What packing a frozen base saves and costs: bytes, milliseconds, and how far gradients move.

    python benchmarks/quantized_base.py [--layers 4] [--batch 4] [--tokens 128] [--repeats 5]

One step of LoRA (rank 8 on queries and values) of a Llama of SmolLM2-135M's widths with drawn
weights: on a float base, on those that tunekit packs, and on those that Keras quantises.
"weights" is what the step is given; "beside" is what it takes for itself, by XLA's account;
"cosine" is between the gradient of all factors and that on the float base. Processor time is
printed beside the wall's: where other programs run it is the steadier.
"""

from __future__ import annotations

import argparse
import statistics
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import tunekit  # noqa: F401  first: it makes JAX the backend of Keras

# isort: split
import jax
import jax.numpy as jnp
import keras
import numpy as np

from tunekit.methods.intercept import Call, Wrap, intercept
from tunekit.methods.packing import MODES
from tunekit.methods.quantize import quantize_layers
from tunekit.models.hub import keras_hub
from tunekit.models.initialisation import seeded
from tunekit.names import layer_names, structural_names

WIDTH, VOCABULARY, RANK = 576, 4096, 8
DENSE = (keras.layers.Dense, keras.layers.EinsumDense)


def main() -> None:
    """Prints one line a base."""
    options = _options()
    print(f"{options.layers} blocks, {options.batch} x {options.tokens} tokens, one process")
    print(f"{'base':12}{'weights':>11}{'beside':>11}{'wall':>10}{'cpu':>10}{'cosine':>9}")
    exact = None
    for name, quantise in _bases():
        model = _llama(options.layers)
        quantise(model)
        step, given = _step(model, options.batch, options.tokens)
        compiled = step.lower(*given).compile()
        memory: Any = compiled.memory_analysis()
        weights = sum(value.nbytes for value in given[1].values())
        gradient = np.concatenate([np.ravel(x) for x in jax.tree.leaves(compiled(*given))])
        exact = gradient if exact is None else exact
        cosine = gradient @ exact / np.linalg.norm(gradient) / np.linalg.norm(exact)
        wall, cpu = _milliseconds(lambda c=compiled, g=given: c(*g), options.repeats)
        megabytes = (weights / 1e6, memory.temp_size_in_bytes / 1e6)
        sizes = "".join(f"{size:8.1f} MB" for size in megabytes)
        print(f"{name:12}{sizes}{wall:7.0f} ms{cpu:7.0f} ms{cosine:9.4f}", flush=True)


def _bases() -> Iterator[tuple[str, Callable[[keras.Model], object]]]:
    yield "float32", lambda model: None
    for mode in MODES:
        yield mode, lambda model, mode=mode: quantize_layers(layer_names(model), mode)
    for mode in ("int8", "int4"):
        yield f"Keras {mode}", lambda model, mode=mode: _quantised_by_keras(model, mode)


def _quantised_by_keras(model: keras.Model, mode: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # NumPy's, of Keras
        for layer in layer_names(model).values():
            if isinstance(layer, DENSE):
                layer.quantize(mode)


def _llama(layers: int) -> keras.Model:
    with seeded(0):
        return keras_hub().models.LlamaBackbone(
            vocabulary_size=VOCABULARY,
            num_layers=layers,
            num_query_heads=9,
            num_key_value_heads=3,
            hidden_dim=WIDTH,
            intermediate_dim=1536,
        )


def _step(model: keras.Model, batch: int, tokens: int) -> tuple[Any, tuple[Any, Any]]:
    """The gradient of the next token's loss in the factors; factors and weights."""
    layers, variables = layer_names(model), structural_names(model)
    rng = np.random.default_rng(0)
    ids = rng.integers(0, VOCABULARY, (batch, tokens))
    inputs = {"token_ids": ids, "padding_mask": np.ones((batch, tokens), bool)}
    factors = {
        name: (
            (rng.normal(size=(WIDTH, RANK)) / WIDTH**0.5).astype(np.float32),
            np.zeros((RANK, heads * 64), np.float32),
        )
        for name in layers
        for end, heads in (("query", 9), ("value", 3))
        if name.endswith(f"/{end}")
    }

    def loss(factors: Any, weights: Any) -> jax.Array:
        mapping = [(variables[name], value) for name, value in weights.items()]
        wraps = {layers[name]: _adapted(*factors[name]) for name in factors}
        with keras.StatelessScope(state_mapping=mapping), intercept(wraps):
            hidden = model(inputs)[:, :-1].reshape(-1, WIDTH)
            logits = hidden @ jnp.asarray(model.token_embedding.embeddings).T
        chosen = jnp.take_along_axis(jax.nn.log_softmax(logits), ids[:, 1:].reshape(-1, 1), axis=1)
        return -jnp.mean(chosen)

    weights = {name: variable.value for name, variable in variables.items()}
    return jax.jit(jax.grad(loss)), (factors, weights)


def _adapted(a: Any, b: Any) -> Wrap:
    def wrap(call: Call) -> Call:
        def adapted_call(x: Any) -> Any:
            outputs = call(x)
            return outputs + (x.reshape(-1, WIDTH) @ a @ b).reshape(outputs.shape)

        return adapted_call

    return wrap


def _milliseconds(run: Callable[[], object], repeats: int) -> tuple[float, float]:
    wall, cpu = [], []
    for _ in range(repeats):
        start, start_cpu = time.perf_counter(), time.process_time()
        jax.block_until_ready(run())
        wall.append(time.perf_counter() - start)
        cpu.append(time.process_time() - start_cpu)
    return 1e3 * statistics.median(wall), 1e3 * statistics.median(cpu)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    for name, default in (("layers", 4), ("batch", 4), ("tokens", 128), ("repeats", 5)):
        parser.add_argument(f"--{name}", type=int, default=default)
    return parser.parse_args()


if __name__ == "__main__":
    main()
