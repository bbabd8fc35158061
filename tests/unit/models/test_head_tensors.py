"""Heads as Hugging Face's classifiers have them: there, back, and what does not fit."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tests.reference import text_folders as text
from tests.unit.methods import peft_networks as nets
from tunekit.errors import ModelError
from tunekit.methods.peft_export import to_peft
from tunekit.methods.peft_import import to_leaves
from tunekit.methods.peft_names import FAMILIES
from tunekit.models.adapted import present_head
from tunekit.models.head_names import head_names
from tunekit.models.head_tensors import head_tensors, saved_head, unlike
from tunekit.models.loading import load_model
from tunekit.models.model import Model
from tunekit.models.spec import HeadSpec
from tunekit.models.targets import places_of

ADAPTED = ("bert", "roberta", "distilbert", "vit", "dinov2", "resnet")
POOLER = ("bert.pooler.dense.weight", "bert.pooler.dense.bias")


def bert(folder: Path, without: str = "", **options: Any) -> Model:
    """A BERT trained for no task: its folder has a pooler, unless that is left out."""
    text.write("bert", folder)
    tensors = load_file(folder / "model.safetensors")
    kept = {name: x for name, x in tensors.items() if not (without and name.startswith(without))}
    save_file(kept, folder / "model.safetensors")
    return load_model(folder, **options)


def tensors_of(count: int = 3, dim: int = 32) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    weight = rng.normal(size=(count, dim)).astype("float32")
    return {"classifier.weight": weight, "classifier.bias": np.arange(count, dtype="float32")}


@pytest.mark.parametrize("kind", ADAPTED)
def test_an_adapter_of_peft_brings_its_head(kind: str) -> None:
    model = load_model(nets.FOLDER / kind).load_adapter(nets.FOLDER / f"{kind}-lora")
    pixels = nets.inputs(kind)
    inputs = pixels if isinstance(pixels, dict) else (pixels * 0.5 + 0.5) * 255
    wanted = nets.expected()[f"{kind}-lora/logits"]
    np.testing.assert_allclose(model.apply(inputs), wanted, rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", text.CLASSIFIERS)
def test_a_head_goes_out_and_comes_back_as_it_was(name: str, tmp_path: Path) -> None:
    model = load_model(text.write(name, tmp_path))
    head = present_head(model)
    tensors = head_tensors(model, head)
    folder = text.tensors(name)
    for tensor, value in tensors.items():
        np.testing.assert_array_equal(value, folder[tensor])
    back = saved_head(model, tensors)
    assert (back.labels, back.spec, set(back.values)) == (head.labels, head.spec, set(head.values))
    for variable, value in back.values.items():
        np.testing.assert_array_equal(np.asarray(value), np.asarray(head.values[variable]))


def test_every_family_that_peft_has_names_for_has_a_classifier() -> None:
    for family, names in FAMILIES.items():
        assert head_names(family).logits.startswith(names.head), family


def test_the_pooler_is_written_where_it_is_not_the_bases(tmp_path: Path) -> None:
    model = load_model(text.write("bert-classifier", tmp_path))
    assert not set(POOLER) & set(head_tensors(model, present_head(model)))
    model.variables()["heads/label/hidden_0/bias"].assign(np.ones(32, "float32"))
    tensors = head_tensors(model, present_head(model))
    assert set(POOLER) < set(tensors)
    model.add_adapter("mine", "lora")
    adapter = model.adapters["mine"].adapter
    spec: Any = adapter.spec
    leaves = {leaf: np.asarray(value) for leaf, value in adapter.values().items()}
    files = to_peft(spec, leaves, "bert", places_of(model, ()), head=tensors)
    assert files.config["modules_to_save"] == ["classifier", "pooler"]
    back = saved_head(model, to_leaves(files, "bert", places_of(model, ())).head)
    np.testing.assert_array_equal(back.values["heads/label/hidden_0/bias"], np.ones(32))


def test_a_classifier_alone_stands_on_the_pooler_of_its_base(tmp_path: Path) -> None:
    model = bert(tmp_path)
    head = saved_head(model, tensors_of())
    assert head.labels == ("0", "1", "2")
    assert head.spec == HeadSpec("mlp", "token", hidden=(32,), activation="tanh")
    weight = text.tensors("bert")["pooler.dense.weight"]
    np.testing.assert_array_equal(head.values["heads/label/hidden_0/kernel"], weight.T)


def test_the_models_labels_stay_where_their_number_fits(tmp_path: Path) -> None:
    spec = HeadSpec("mlp", hidden=(32,), activation="tanh", dropout=0.1)
    model = bert(tmp_path, labels=["a", "b", "c"], head=spec)
    head = saved_head(model, tensors_of())
    # The model's own spec, so that it keeps the graph that it has.
    assert (head.labels, head.spec) == (("a", "b", "c"), spec)
    assert saved_head(model, tensors_of(2)).labels == ("0", "1")


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (HeadSpec(), "for a 'bert': kind='linear' where it has 'mlp', hidden="),
        (HeadSpec("mlp", hidden=(8,), activation="tanh"), r"hidden=\(8,\) where it has \(32,\)"),
        (HeadSpec("mlp", hidden=(32,)), "activation='gelu' where it has 'tanh'"),
        (HeadSpec("mlp", "avg", (32,), "tanh"), "pooling='avg' where it has 'token'"),
    ],
)
def test_a_head_of_another_kind_has_no_tensors_and_says_why(
    spec: HeadSpec, message: str, tmp_path: Path
) -> None:
    model = bert(tmp_path, labels=["a", "b"], head=spec)
    assert head_tensors(model, present_head(model)) == {}
    assert re.search(message, unlike(model.backbone, spec))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"classifier.bias": None}, "missing: classifier.bias"),
        ({"clasifier.bias": np.zeros(3)}, "unexpected: clasifier.bias. Did you mean 'classifier.b"),
        (
            {"classifier.weight": np.zeros((3, 8))},
            r"classifier.weight: expected shape \[3, 32\], got \[3, 8\]",
        ),
        (
            {"classifier.bias": np.zeros(2)},
            r"classifier.bias: expected shape \[3\], got \[2\]",
        ),
        (
            {"bert.pooler.dense.bias": np.zeros(8)},
            r"bert.pooler.dense.bias: expected shape \[32\], got \[8\]",
        ),
    ],
)
def test_tensors_that_do_not_fit_are_named(
    change: dict[str, Any], message: str, tmp_path: Path
) -> None:
    tensors = {n: x for n, x in {**tensors_of(), **change}.items() if x is not None}
    with pytest.raises(ModelError, match=f"(?s)head does not fit .*, a 'bert':.*{message}"):
        saved_head(bert(tmp_path), tensors)


def test_a_base_without_its_pooler_is_told_of_it(tmp_path: Path) -> None:
    message = "(?s)without a pooler .load the folder .*missing: bert.pooler.dense.weight"
    with pytest.raises(ModelError, match=message):
        saved_head(bert(tmp_path, without="pooler."), tensors_of())


def test_a_family_without_a_known_classifier_is_refused() -> None:
    with pytest.raises(ModelError, match="for the family 'bret' .* Did you mean 'bert'"):
        head_names("bret")
