"""Writes tests/reference/peft/written: adapters trained and written by tunekit, for PEFT to load.

Run from the repository in tunekit's environment, and then, for each folder, what answers it has
in PEFT's (see make_peft_adapters.py):

    KERAS_BACKEND=jax python -m tests.reference.train_for_peft
    for each in tests/reference/peft/written/*; do
        python -m tests.reference.make_peft_adapters check $each
    done
"""

from __future__ import annotations

import dataclasses
import functools
import shutil
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tests.unit.methods import peft_networks as nets
from tunekit.methods.intercept import intercept
from tunekit.methods.peft_export import Origin, to_peft
from tunekit.methods.peft_files import PeftFiles, write_peft
from tunekit.methods.peft_names import family_of
from tunekit.methods.spec import IA3, LoRA, VeRA

OUT = nets.WRITTEN
STEPS = 4
_LLAMA = "backbone/transformer_layer_{}/"
_BLOCKS = {"llama": (0, 1), "gpt2": (0, 1), "bert": (0, 1), "vit": (1, 2)}
_LAYERS = {
    "llama": (
        *(f"{_LLAMA}self_attention/{x}" for x in ("query", "value", "attention_output")),
        f"{_LLAMA}feedforward_output_dense",
    ),
    "gpt2": tuple(f"{_LLAMA}self_attention/{x}" for x in ("query", "value")),
    "bert": (
        *(f"{_LLAMA}self_attention_layer/{x}" for x in ("query", "value", "attention_output")),
        f"{_LLAMA}feedforward_intermediate_dense",
    ),
    "vit": tuple(
        f"backbone/vit_encoder/transformer_block_{{}}/{x}"
        for x in ("mha/query", "mha/value", "mlp/dense_1")
    ),
}
_SMALL: dict[str, Any] = {"rank": 3, "alpha": 5.0, "init": "gaussian"}
_BIASED = {**_SMALL, "bias": "lora_only"}

SPECS: dict[str, LoRA | IA3 | VeRA] = {
    "llama-lora": LoRA(**_SMALL, rank_pattern={"query": 2}, alpha_pattern={"value": 1.5}),
    "llama-rslora": LoRA(**_SMALL, rslora=True),
    "llama-dora": LoRA(**_SMALL, dora=True),
    "llama-pissa": LoRA(rank=2, alpha=5.0, init="pissa"),
    "llama-ia3": IA3(),
    "llama-vera": VeRA(rank=4),
    "bert-lora": LoRA(**_BIASED),
    "bert-rslora": LoRA(**_SMALL, rslora=True),
    "bert-dora": LoRA(**_BIASED, dora=True),
    "bert-biases": LoRA(rank=2, alpha=3.0, bias="all"),
    "vit-lora": LoRA(**_BIASED),
    "vit-rslora": LoRA(**_SMALL, rslora=True),
    "vit-dora": LoRA(**_SMALL, dora=True),
    "gpt2-lora": LoRA(**_BIASED),
    "gpt2-dora": LoRA(**_SMALL, dora=True),
    "resnet-dora": LoRA(rank=2, alpha=3.0, dora=True),
}
_TASKS = {"llama": "CAUSAL_LM", "gpt2": "CAUSAL_LM", "bert": "SEQ_CLS"}


def layers(kind: str) -> tuple[str, ...]:
    if kind == "resnet":
        return tuple(name for name in nets.places(kind).roles if name.endswith("_2_conv"))
    return tuple(name.format(block) for block in _BLOCKS[kind] for name in _LAYERS[kind])


@functools.cache
def trained(name: str) -> dict[str, np.ndarray]:
    """The leaves after a few steps towards random outputs, all by the sign of the gradient."""
    kind = name.split("-")[0]
    adapter = nets.fresh(kind, spec_of(name))
    model, here, x = nets.network(kind), nets.places(kind), nets.inputs(kind)
    target = np.random.default_rng(5).normal(size=nets.answered(kind).shape).astype("f4")
    roles = adapter.roles

    def loss(trains: dict[str, jax.Array], rest: dict[str, jax.Array]) -> jax.Array:
        with intercept(adapter.wraps(here.layers, {**rest, **trains}, training=False)):
            return jnp.mean((model(x, training=False) - target) ** 2)

    for _ in range(STEPS):
        values = adapter.values()
        trains = {n: v for n, v in values.items() if roles[n] == "weight"}
        rest = {n: v for n, v in values.items() if n not in trains}
        for name, gradient in jax.grad(loss)(trains, rest).items():
            adapter.variables[name].assign(trains[name] - 0.05 * jnp.sign(gradient))
    return {name: np.asarray(value) for name, value in adapter.values().items()}


def head(kind: str) -> dict[str, np.ndarray]:
    """A classifier on the features, as torch has it."""
    if kind in nets.DECODERS:
        return {}
    (module,) = family_of(kind).head
    random, width = np.random.default_rng(9), nets.answered(kind).shape[-1]
    values = {"weight": random.normal(size=(3, width)), "bias": random.normal(size=3)}
    return {f"{module}.{name}": value.astype("f4") for name, value in values.items()}


def spec_of(name: str) -> LoRA | IA3 | VeRA:
    """The spec on the layers of its model."""
    return dataclasses.replace(SPECS[name], targets=layers(name.split("-")[0]))


def files_of(name: str) -> PeftFiles:
    """What PEFT is to read of the adapter, trained anew."""
    kind = name.split("-")[0]
    origin, here = Origin(kind, _TASKS.get(kind)), nets.places(kind)
    return to_peft(spec_of(name), trained(name), kind, here, origin=origin, head=head(kind))


def main() -> None:
    """Writes everything anew."""
    shutil.rmtree(OUT, ignore_errors=True)
    for name in SPECS:
        (OUT / name).mkdir(parents=True)
        write_peft(OUT / name, files_of(name))
        print("wrote", name)


if __name__ == "__main__":
    main()
