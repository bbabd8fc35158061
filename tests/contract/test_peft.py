"""Adapters that PEFT trained, through the model that a user has: their logits are PEFT's."""

from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from tests.unit.methods import peft_networks as nets
from tunekit import load_model
from tunekit.methods.peft_export import Origin, to_peft
from tunekit.methods.peft_files import read_peft
from tunekit.methods.peft_import import Imported, to_leaves
from tunekit.models.model import Model
from tunekit.models.targets import places_of

KINDS = ("llama", "bert", "vit")
METHODS = ("lora", "rslora", "dora")


def inputs(kind: str) -> Any:
    """What a model takes: pixels of 0..255 that normalise to those that torch was given."""
    found = nets.inputs(kind)
    return (found * 0.5 + 0.5) * 255 if kind == "vit" else found


def with_adapter(kind: str, name: str) -> tuple[Model, Imported]:
    model = load_model(nets.FOLDER / kind)
    found = to_leaves(read_peft(nets.FOLDER / name), kind, places_of(model, ()))
    model.add_adapter("theirs", found.spec)
    variables = model.adapters["theirs"].adapter.variables
    assert set(variables) == set(found.leaves)
    for leaf, value in found.leaves.items():
        variables[leaf].assign(value)
    if kind == "vit":
        head = model.variables()
        head["heads/label/logits/kernel"].assign(found.head["classifier.weight"].T)
        head["heads/label/logits/bias"].assign(found.head["classifier.bias"])
    return model, found


def logits(model: Model, kind: str, head: Any) -> np.ndarray:
    """What the whole torch model gives; BERT's pooler and classifier are computed here."""
    outputs = model.apply(inputs(kind))
    if kind != "bert":
        return nets.unpadded(kind, outputs)
    base = load_file(nets.FOLDER / kind / "model.safetensors")
    weight, bias = (base[f"bert.pooler.dense.{x}"] for x in ("weight", "bias"))
    pooled = np.tanh(outputs[:, 0] @ weight.T + bias)
    return pooled @ head["classifier.weight"].T + head["classifier.bias"]


def theirs(name: str, kind: str) -> np.ndarray:
    values = nets.expected()[f"{name}/logits"]
    return nets.unpadded(kind, values) if values.ndim == 3 else values


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", KINDS)
def test_an_adapter_trained_by_peft_gives_pefts_logits(kind: str, method: str) -> None:
    name = f"{kind}-{method}"
    model, found = with_adapter(kind, name)
    np.testing.assert_allclose(
        logits(model, kind, found.head), theirs(name, kind), rtol=0, atol=1e-4
    )


@pytest.mark.parametrize("kind", KINDS)
def test_without_its_adapter_the_base_is_the_base(kind: str) -> None:
    model, _ = with_adapter(kind, f"{kind}-dora")
    base = load_file(nets.FOLDER / kind / "model.safetensors")
    if kind == "vit":
        variables = model.variables()
        variables["heads/label/logits/kernel"].assign(base["classifier.weight"].T)
        variables["heads/label/logits/bias"].assign(base["classifier.bias"])
    with model.adapters_disabled():
        got = logits(model, kind, base)
    np.testing.assert_allclose(got, theirs(kind, kind), rtol=0, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_an_adapter_merged_into_its_base_gives_pefts_logits(kind: str) -> None:
    name = f"{kind}-dora"
    model, found = with_adapter(kind, name)
    model.merge()
    np.testing.assert_allclose(
        logits(model, kind, found.head), theirs(name, kind), rtol=0, atol=1e-4
    )


@pytest.mark.parametrize("kind", KINDS)
def test_a_models_adapter_is_written_as_peft_wrote_it(kind: str) -> None:
    name = f"{kind}-lora"
    model, found = with_adapter(kind, name)
    adapter = model.adapters["theirs"].adapter
    leaves = {leaf: np.asarray(variable.value) for leaf, variable in adapter.variables.items()}
    assert adapter.spec == found.spec
    files = to_peft(
        found.spec, leaves, kind, places_of(model, ()), origin=Origin(kind), head=found.head
    )
    before = read_peft(nets.FOLDER / name)
    assert set(files.tensors) == set(before.tensors)
    for key, tensor in before.tensors.items():
        np.testing.assert_allclose(files.tensors[key], tensor, rtol=0, atol=1e-6)
