"""Heads without pooling: logits for each token of a text."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tests.reference import text_folders as text
from tunekit.errors import ModelError
from tunekit.models.heads import build_head, pooling_kind
from tunekit.models.loading import load_backbone, load_model
from tunekit.models.model import Model
from tunekit.models.spec import BackboneSpec, HeadSpec

STATES = np.random.default_rng(0).normal(size=(2, 5, 4)).astype("float32")
MASK = np.array([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0]], np.int32)
INPUTS = {"features": STATES, "padding_mask": MASK}


def head(features: Any = "encoder_states", **options: Any) -> keras.Model:
    spec = HeadSpec(pooling="none", **options)
    return build_head(spec, features=features, dim=4, labels=("a", "b"), name="tag", seed=0)


@pytest.mark.parametrize("features", ["encoder_states", "decoder_states"])
def test_each_token_has_the_logits_of_its_own_state(features: str) -> None:
    layer = head(features)
    kernel, bias = (np.asarray(variable.value) for variable in layer.weights)
    expected = STATES @ kernel + bias
    np.testing.assert_allclose(np.asarray(layer(INPUTS)), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", ["mlp", "cosine"])
def test_the_logits_of_a_token_do_not_depend_on_the_others(kind: Any) -> None:
    layer = head(kind=kind)
    alone = {"features": STATES[:, 2:3], "padding_mask": MASK[:, 2:3]}
    together = np.asarray(layer(INPUTS))
    assert together.shape == (2, 5, 2)
    np.testing.assert_allclose(together[:, 2:3], np.asarray(layer(alone)), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("features", "prefix"), [("map", 0), ("tokens", 1)])
def test_an_image_has_no_tokens_to_give_logits_for(features: Any, prefix: int) -> None:
    with pytest.raises(ModelError, match="pooling='none' gives logits for each token of a text"):
        pooling_kind("none", features, prefix)


def test_a_model_gives_logits_for_each_token_and_keeps_labels_by_name(tmp_path: Path) -> None:
    labels = ("O", "B-PER", "I-PER")
    model = load_model(text.write("bert", tmp_path), labels=labels, head=HeadSpec(pooling="none"))
    inputs = {"token_ids": text.TOKEN_IDS, "padding_mask": text.PADDING_MASK}
    before = model.logits(inputs)
    assert before.shape == (*text.TOKEN_IDS.shape, 3)
    model.replace_head(("I-PER", "O"))
    np.testing.assert_allclose(model.logits(inputs), before[..., [2, 0]], rtol=1e-5, atol=1e-6)


def folder_of(name: str, folder: Path, architecture: str, **head: np.ndarray) -> Path:
    """The folder of a classifier of texts with another head in its place."""
    path = text.write(f"{name}-classifier", folder) / "model.safetensors"
    kept = {n: x for n, x in load_file(path).items() if not n.startswith(("classifier", "score"))}
    save_file({**kept, **{n.replace("_of_", "."): x for n, x in head.items()}}, path)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "architectures": [architecture]}))
    return folder


@pytest.mark.parametrize(
    ("name", "architecture", "module", "labels"),
    [
        ("bert", "BertForTokenClassification", "classifier", ("dull", "plain", "bright")),
        ("roberta", "RobertaForTokenClassification", "classifier", ("dull", "plain", "bright")),
        ("llama", "LlamaForTokenClassification", "score", ("dull", "plain", "bright")),
        ("gpt2", "GPT2ForTokenClassification", "classifier", ("dull", "plain", "bright")),
        ("distilbert", "DistilBertForQuestionAnswering", "qa_outputs", ("start", "end")),
        ("bert", "BertForQuestionAnswering", "qa_outputs", ("start", "end")),
    ],
)
def test_a_folder_brings_its_classifier_of_tokens(
    name: str, architecture: str, module: str, labels: tuple[str, ...], tmp_path: Path
) -> None:
    rng = np.random.default_rng(0)
    weight = rng.normal(size=(len(labels), 32)).astype("float32")
    bias = rng.normal(size=len(labels)).astype("float32")
    tensors = {f"{module}_of_weight": weight, f"{module}_of_bias": bias}
    model = load_model(folder_of(name, tmp_path, architecture, **tensors))
    assert model.labels == labels
    got = model.logits({"token_ids": text.TOKEN_IDS, "padding_mask": text.PADDING_MASK})
    # Hidden states as transformers computes them, and the one linear layer that stands on them.
    expected = np.load(text.EXPECTED)[f"{name}-classifier/hidden"] @ weight.T + bias
    real = text.PADDING_MASK > 0
    np.testing.assert_allclose(got[real], expected[real], rtol=1e-4, atol=1e-4)


def test_a_classifier_of_tokens_without_its_tensors_is_refused(tmp_path: Path) -> None:
    folder = folder_of("bert", tmp_path, "BertForTokenClassification")
    with pytest.raises(ModelError, match="holds no tensor 'bert.classifier.bias'"):
        load_model(folder)


def test_a_sentence_encoder_is_pooled_as_its_folder_says(tmp_path):
    folder = text.write("bert", tmp_path)
    backbone = replace(load_backbone(folder, BackboneSpec()), sentence_pooling="avg")
    inputs = {"token_ids": text.TOKEN_IDS, "padding_mask": text.PADDING_MASK}
    as_told, named = (Model(backbone, ("a", "b"), HeadSpec(pooling=p)) for p in ("auto", "avg"))
    by_token = Model(backbone, ("a", "b"), HeadSpec(pooling="token"))
    assert np.array_equal(as_told.apply(inputs), named.apply(inputs))
    assert not np.allclose(as_told.apply(inputs), by_token.apply(inputs))
