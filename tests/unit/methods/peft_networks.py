"""The models of tests/reference/peft as networks here, and adapters applied to them."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import keras
import numpy as np

from tunekit.methods.adapter import Adapter
from tunekit.methods.attach import attach
from tunekit.methods.intercept import intercept
from tunekit.methods.part import Places
from tunekit.methods.peft_config import PeftSpec
from tunekit.models import huggingface
from tunekit.models.layer_roles import layer_roles
from tunekit.models.spec import BackboneSpec
from tunekit.models.token_graph import assemble_tokens
from tunekit.names import layer_names, structural_names

FOLDER = Path(__file__).parents[2] / "reference" / "peft"
WRITTEN = FOLDER / "written"
"""What tunekit wrote (tests/reference/train_for_peft.py), and PEFT's answers with it."""
DECODERS = ("llama", "mistral", "qwen2", "gemma", "gpt2")


@functools.cache
def expected() -> dict[str, np.ndarray]:
    """Inputs and PEFT's answers."""
    with np.load(FOLDER / "expected.npz") as file:
        return dict(file)


@functools.cache
def network(kind: str) -> keras.Model:
    """The model in the folder, without a classifier: its layers are below "backbone/"."""
    backbone = huggingface.load_folder(FOLDER / kind, BackboneSpec(), seed=0)
    body: Any = backbone.keras
    if backbone.takes == "tokens":
        return assemble_tokens(body, {}, backbone.language_head)
    images = keras.Input(body.inputs[0].shape[1:])
    return keras.Model(
        images, keras.Model(body.inputs[0], body.outputs[0], name="backbone")(images)
    )


def inputs(kind: str) -> Any:
    found = {n.rsplit("/")[-1]: x for n, x in expected().items() if n.startswith(f"inputs/{kind}/")}
    if "pixel_values" in found:
        return found["pixel_values"].transpose(0, 2, 3, 1)
    ids, mask = (found[name].astype("int32") for name in ("input_ids", "attention_mask"))
    return {"token_ids": ids, "padding_mask": mask}


@functools.cache
def places(kind: str) -> Places:
    model = network(kind)
    return Places(
        layers={"": model, **layer_names(model)},
        targets=(),
        roles=layer_roles(model),
        blocks=(),
        weights={name: np.asarray(v.value) for name, v in structural_names(model).items()},
    )


def adapted(kind: str, spec: PeftSpec, leaves: Mapping[str, np.ndarray]) -> np.ndarray:
    """What the network answers with the adapter; its leaves must be those given, all of them."""
    adapter = fresh(kind, spec)
    seeds = {name for name, role in adapter.roles.items() if role == "seed"}
    assert set(leaves) == set(adapter.variables) - seeds
    for name, value in leaves.items():
        adapter.variables[name].assign(value)
    model = network(kind)
    wraps = adapter.wraps(places(kind).layers, adapter.values(), training=False)
    with intercept(wraps), jax.default_matmul_precision("highest"):
        return np.asarray(model(inputs(kind), training=False))


def fresh(kind: str, spec: PeftSpec) -> Adapter:
    assert not isinstance(spec.targets, str)
    return attach(spec, dataclasses.replace(places(kind), targets=tuple(spec.targets)))


def answered(name: str) -> np.ndarray:
    """What PEFT answers, or the base alone."""
    found = {
        n.removeprefix(f"{name}/"): x for n, x in expected().items() if n.startswith(f"{name}/")
    }
    return features(name.split("-")[0], found)


def features(kind: str, answers: Mapping[str, np.ndarray]) -> np.ndarray:
    """Of torch's answers what the network here gives: a language model's logits, else features."""
    values = answers["logits" if kind in DECODERS else "hidden"]
    return values.transpose(0, 2, 3, 1) if values.ndim == 4 else values


def unpadded(kind: str, values: np.ndarray) -> np.ndarray:
    mask = expected().get(f"inputs/{kind}/attention_mask")
    return values if mask is None else values[mask.astype(bool)]
