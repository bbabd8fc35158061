"""Adapters that PEFT trained, through the model that a user has: their logits are PEFT's."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from tests.unit.methods import peft_networks as nets
from tunekit import load_model
from tunekit.methods.peft_export import Origin, to_peft
from tunekit.methods.peft_files import read_peft
from tunekit.methods.peft_import import Imported, to_leaves
from tunekit.models.adapted import present_head
from tunekit.models.head_tensors import head_tensors, saved_head
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
    put_head(model, found.head)
    return model, found


def put_head(model: Model, tensors: Mapping[str, np.ndarray]) -> None:
    variables = model.variables()
    if tensors:
        for name, value in saved_head(model, tensors).values.items():
            variables[name].assign(value)


def logits(model: Model, kind: str) -> np.ndarray:
    return unpadded(model.apply(inputs(kind)), kind)


def theirs(name: str, kind: str) -> np.ndarray:
    return unpadded(nets.expected()[f"{name}/logits"], kind)


def unpadded(values: np.ndarray, kind: str) -> np.ndarray:
    return nets.unpadded(kind, values) if values.ndim == 3 else values


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", KINDS)
def test_an_adapter_trained_by_peft_gives_pefts_logits(kind: str, method: str) -> None:
    name = f"{kind}-{method}"
    model, _ = with_adapter(kind, name)
    np.testing.assert_allclose(logits(model, kind), theirs(name, kind), rtol=0, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_without_its_adapter_the_base_is_the_base(kind: str) -> None:
    model, found = with_adapter(kind, f"{kind}-dora")
    base = load_file(nets.FOLDER / kind / "model.safetensors")
    put_head(model, {name: base[name] for name in found.head})
    with model.adapters_disabled():
        got = logits(model, kind)
    np.testing.assert_allclose(got, theirs(kind, kind), rtol=0, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_an_adapter_merged_into_its_base_gives_pefts_logits(kind: str) -> None:
    name = f"{kind}-dora"
    model, _ = with_adapter(kind, name)
    model.merge()
    np.testing.assert_allclose(logits(model, kind), theirs(name, kind), rtol=0, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_a_models_adapter_is_written_as_peft_wrote_it(kind: str) -> None:
    name = f"{kind}-lora"
    model, found = with_adapter(kind, name)
    adapter = model.adapters["theirs"].adapter
    leaves = {leaf: np.asarray(variable.value) for leaf, variable in adapter.variables.items()}
    assert adapter.spec == found.spec
    head = head_tensors(model, present_head(model)) if model.labels else {}
    files = to_peft(found.spec, leaves, kind, places_of(model, ()), origin=Origin(kind), head=head)
    before = read_peft(nets.FOLDER / name)
    assert set(files.tensors) == set(before.tensors)
    for key, tensor in before.tensors.items():
        np.testing.assert_allclose(files.tensors[key], tensor, rtol=0, atol=1e-6)
