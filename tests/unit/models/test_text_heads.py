"""Heads of token models: pooling without padding, and the classifiers of Hugging Face's folders.

The expected logits are of tests/reference/make_text_references.py. Float32 sums in another order
differ by about 1e-6; a wrong activation, a missing layer or another token shows from 1e-2 up.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jax
import keras
import numpy as np
import pytest
from jax.scipy.stats import norm
from safetensors.numpy import load_file, save_file

from tests.reference import text_folders as text
from tunekit.errors import ModelError
from tunekit.models.heads import Pooling, build_head
from tunekit.models.hub import keras_hub, tensorflow_hidden
from tunekit.models.initialisation import without_values
from tunekit.models.loading import load_model
from tunekit.models.model import Model
from tunekit.models.prefix import find_cut
from tunekit.models.spec import HeadSpec

ITEMS = {"token_ids": text.TOKEN_IDS, "padding_mask": text.PADDING_MASK}
INPUTS = {name: value.astype("int32") for name, value in ITEMS.items()}
STATES = np.random.default_rng(0).normal(size=(2, 5, 4)).astype("float32")
MASK = np.array([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]], np.int32)
TEXT_POOLINGS = ("avg", "max", "gem", "token", "token+avg", "last", "attention")


def load(name: str, folder: Path, **options: Any) -> Model:
    return load_model(text.write(name, folder), **options)


def changed(folder: Path, *, without: str = "", **config: Any) -> Path:
    """The folder with other settings, and without the tensors that begin so."""
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **config}))
    tensors = load_file(folder / "model.safetensors")
    kept = {name: x for name, x in tensors.items() if not (without and name.startswith(without))}
    save_file(kept, folder / "model.safetensors")
    return folder


def head(spec: HeadSpec, features: Any) -> keras.Model:
    return build_head(spec, features=features, dim=4, labels=("a", "b"), name="label", seed=0)


def values(layer: keras.Layer) -> list[np.ndarray]:
    return [np.asarray(variable.value) for variable in layer.weights]


def pooled(kind: str, states: np.ndarray, mask: np.ndarray) -> np.ndarray:
    layer = Pooling(kind, dtype="float32")
    layer.build(states.shape)
    if kind == "attention":
        layer.query.assign(np.arange(4, dtype="float32"))
    return np.asarray(layer(states, padding_mask=mask))


@pytest.mark.parametrize("name", text.CLASSIFIERS)
def test_a_classifier_of_texts_gives_the_logits_of_transformers(name: str, tmp_path: Path) -> None:
    model = load(name, tmp_path)
    assert model.labels == ("dull", "plain", "bright")
    expected = np.load(text.EXPECTED)[f"{name}/logits"]
    assert np.ptp(expected) > 1
    np.testing.assert_allclose(model.logits(ITEMS), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", TEXT_POOLINGS)
def test_a_text_is_pooled_as_if_it_had_no_padding(kind: str) -> None:
    alone = pooled(kind, STATES[1:, :3], MASK[1:, :3])
    beside = pooled(kind, STATES, MASK)
    np.testing.assert_allclose(beside[1:], alone, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("last", np.stack([STATES[0, 4], STATES[1, 2]])),
        ("token", STATES[:, 0]),
        ("avg", np.stack([STATES[0].mean(0), STATES[1, :3].mean(0)])),
        ("max", np.stack([STATES[0].max(0), STATES[1, :3].max(0)])),
    ],
)
def test_texts_are_pooled_over_their_own_tokens(kind: str, expected: np.ndarray) -> None:
    np.testing.assert_allclose(pooled(kind, STATES, MASK), expected, rtol=1e-5, atol=1e-6)


def test_the_last_token_is_found_behind_padding_at_the_start() -> None:
    mask = np.array([[0, 0, 1, 1, 0], [0, 1, 1, 1, 1]], np.int32)
    expected = np.stack([STATES[0, 3], STATES[1, 4]])
    np.testing.assert_array_equal(pooled("last", STATES, mask), expected)


@pytest.mark.parametrize("kind", TEXT_POOLINGS)
def test_a_row_of_padding_alone_is_finite(kind: str) -> None:
    # The last batch is filled up with such rows, of weight zero; NaN times zero would be NaN.
    assert np.isfinite(pooled(kind, STATES, np.zeros_like(MASK))).all()


@pytest.mark.parametrize(
    ("features", "kind"), [("encoder_states", "token"), ("decoder_states", "last")]
)
def test_auto_is_the_first_token_of_an_encoder_and_the_last_of_a_decoder(
    features: str, kind: str
) -> None:
    assert head(HeadSpec(), features).get_layer("pooling").kind == kind


@pytest.mark.parametrize(
    ("name", "kind"), [("Bert", "token"), ("DistilBert", "token"), ("GPT2", "last")]
)
def test_kerashubs_backbones_are_pooled_the_same_way(name: str, kind: str) -> None:
    sizes = {"vocabulary_size": 9, "num_layers": 1, "num_heads": 2, "hidden_dim": 8}
    with without_values(), tensorflow_hidden():
        body = getattr(keras_hub().models, f"{name}Backbone")(**sizes, intermediate_dim=8)
    model: Any = load_model(body, labels=["a", "b"]).keras
    assert model.get_layer("heads").get_layer("label").get_layer("pooling").kind == kind


@pytest.mark.parametrize(
    ("activation", "function"),
    [("tanh", np.tanh), ("relu", jax.nn.relu), ("gelu", lambda x: x * norm.cdf(x))],
)
def test_a_hidden_layer_has_the_activation_that_the_spec_says(
    activation: Any, function: Any
) -> None:
    spec = HeadSpec(kind="mlp", hidden=(6,), activation=activation)
    model = head(spec, "decoder_states")
    first, second = (values(model.get_layer(name)) for name in ("hidden_0", "logits"))
    hidden = np.asarray(function(pooled("last", STATES, MASK) @ first[0] + first[1]))
    got = model({"features": STATES, "padding_mask": MASK})
    np.testing.assert_allclose(np.asarray(got), hidden @ second[0] + second[1], atol=1e-5)


def test_a_head_of_texts_comes_back_from_its_configuration() -> None:
    model = head(HeadSpec(kind="mlp", hidden=(6,), activation="tanh"), "decoder_states")
    again: Any = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(model))
    again.set_weights(values(model))
    states = {"features": STATES, "padding_mask": MASK}
    np.testing.assert_array_equal(np.asarray(again(states)), np.asarray(model(states)))


@pytest.mark.parametrize(
    ("pooling", "features", "message"),
    [
        ("last", "map", "pooling='last' is for texts.* takes images; use pooling='avg'"),
        ("token", "decoder_states", "a decoder sees nothing of the text; use pooling='last'"),
        ("token+avg", "decoder_states", "a decoder sees nothing of the text"),
    ],
)
def test_a_pooling_that_the_features_cannot_have_is_refused(
    pooling: Any, features: str, message: str
) -> None:
    with pytest.raises(ModelError, match=message):
        head(HeadSpec(pooling=pooling), features)


def test_only_an_mlp_has_an_activation(tmp_path: Path) -> None:
    message = "head.activation: only an 'mlp' head has hidden layers.* or leave activation out"
    with pytest.raises(ModelError, match=message):
        load("bert", tmp_path, labels=["a"], head=HeadSpec(activation="tanh"))


def test_a_classifier_without_one_of_its_tensors_is_refused(tmp_path: Path) -> None:
    folder = text.write("roberta-classifier", tmp_path)
    with pytest.raises(ModelError, match="holds no tensor 'roberta.classifier.dense.weight'"):
        load_model(changed(folder, without="classifier.dense.weight"))


def test_classes_without_names_are_numbered(tmp_path: Path) -> None:
    folder = text.write("gpt2-classifier", tmp_path)
    assert load_model(changed(folder, id2label={})).labels == ("0", "1", "2")


def test_fewer_blocks_or_fresh_weights_come_without_the_classifier(tmp_path: Path) -> None:
    folder = text.write("bert-classifier", tmp_path)
    short, fresh = load_model(folder, blocks=1), load_model(folder, pretrained=False)
    for model in (short, fresh):
        assert (model.labels, model.backbone.pooler) == ((), None)
    assert load_model(folder, blocks=2).labels


def test_a_bert_keeps_its_pooler_whatever_it_was_trained_for(tmp_path: Path) -> None:
    layer = load("bert", tmp_path / "bert").backbone.pooler
    assert layer is not None and layer.activation == "tanh"
    kernel = text.tensors("bert")["pooler.dense.weight"].T
    np.testing.assert_array_equal(layer.kernel, kernel)
    assert load("bert-masked-lm", tmp_path / "masked").backbone.pooler is None


@pytest.mark.parametrize("name", ["bert", "gpt2"])
def test_a_frozen_text_network_is_cut_at_the_pooled_features(name: str, tmp_path: Path) -> None:
    # Their dropout would act in training; at rest, attention must take the same way as always.
    model = load(name, tmp_path, labels=["a", "b"])
    forward = model.forward()
    shapes = {n: jax.ShapeDtypeStruct(x.shape, x.dtype) for n, x in INPUTS.items()}
    trainable = [n for n in model.weight_names() if n.startswith("heads/")]
    cut = find_cut(forward, shapes, trainable)
    assert cut is not None and (cut.name, cut.shape) == ("heads/label/pooling", (32,))
    features = cut.features(forward.values(), INPUTS)
    whole, _ = forward(forward.values(), INPUTS, training=True, trainable=trainable)
    rest, _ = cut(forward.values(), features, training=True, trainable=trainable)
    np.testing.assert_allclose(np.asarray(rest), np.asarray(whole), rtol=1e-6, atol=1e-6)


def test_a_pooling_that_trains_needs_the_mask_and_so_the_whole_network(tmp_path: Path) -> None:
    model = load("bert", tmp_path, labels=["a", "b"], head=HeadSpec(pooling="attention"))
    shapes = {n: jax.ShapeDtypeStruct(x.shape, x.dtype) for n, x in INPUTS.items()}
    trainable = [n for n in model.weight_names() if n.startswith("heads/")]
    assert find_cut(model.forward(), shapes, trainable) is None
