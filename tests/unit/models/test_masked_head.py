"""Heads for hidden tokens: a folder's own, a fresh one, and the same again from a description.

That logits equal those of transformers is in test_text_folders.py.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import keras
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tests.reference import text_folders as text
from tunekit import saved
from tunekit.errors import ModelError
from tunekit.models import masked_head
from tunekit.models.hub import keras_hub, tensorflow_hidden
from tunekit.models.initialisation import seeded
from tunekit.models.loading import load_backbone
from tunekit.models.masked_head import MaskedHead, with_masked_head
from tunekit.models.model import Model
from tunekit.models.spec import BackboneSpec
from tunekit.models.token_graph import TiedHead

ITEMS = {"token_ids": text.TOKEN_IDS, "padding_mask": text.PADDING_MASK}


def backbone(name, folder, **spec):
    return load_backbone(text.write(name, folder), BackboneSpec(**spec))


def states_and_logits(found, seed=0):
    states = np.random.default_rng(seed).normal(size=(2, 5, 32)).astype("float32")
    return states, np.asarray(found.language_head(states))


def test_a_fresh_head_hands_normalised_states_to_the_embedding_in_reverse(tmp_path: Path) -> None:
    found = with_masked_head(backbone("bert", tmp_path))
    states, logits = states_and_logits(found)
    centred = states - states.mean(axis=-1, keepdims=True)
    normal = centred / centred.std(axis=-1, keepdims=True)
    table = text.tensors("bert")["embeddings.word_embeddings.weight"]
    expected = normal @ table.T
    # GELU is a little below its argument where a state is far below zero.
    assert np.corrcoef(logits.ravel(), expected.ravel())[0, 1] > 0.9999
    np.testing.assert_allclose(logits, expected, atol=0.02 * np.ptp(expected))


def test_a_folder_s_own_head_stays_and_one_without_gets_a_fresh_one(tmp_path: Path) -> None:
    own = backbone("bert-masked-lm", tmp_path / "own")
    assert with_masked_head(own) is own
    without = backbone("bert", tmp_path / "without")
    assert without.language_head is None
    assert isinstance(with_masked_head(without).language_head, MaskedHead)


def test_first_blocks_alone_leave_the_head_out(tmp_path: Path) -> None:
    assert backbone("bert-masked-lm", tmp_path, blocks=1).language_head is None


def test_a_decoder_has_no_head_for_hidden_tokens(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no encoder of texts.*use task: causal_lm"):
        with_masked_head(backbone("llama", tmp_path))


def test_an_encoder_whose_embedding_is_not_found_is_refused(tmp_path: Path) -> None:
    found = backbone("bert", tmp_path)
    part = keras.Sequential([keras.Input((None, 32)), keras.layers.Dense(32)])
    with pytest.raises(ModelError, match="no layer 'token_embedding' that works in reverse"):
        with_masked_head(replace(found, keras=part))


def test_a_decoder_matrix_of_its_own_is_read(tmp_path: Path) -> None:
    folder = text.write("bert-masked-lm", tmp_path)
    tensors = load_file(folder / "model.safetensors")
    kernel = np.random.default_rng(0).normal(size=(99, 32)).astype("float32")
    save_file({**tensors, "cls.predictions.decoder.weight": kernel}, folder / "model.safetensors")
    tied = load_backbone(folder, BackboneSpec()).language_head
    assert isinstance(tied, MaskedHead) and isinstance(tied.projection, TiedHead)
    config = {**text.CONFIGS["bert-masked-lm"], "tie_word_embeddings": False}
    (folder / "config.json").write_text(json.dumps(config))
    untied = load_backbone(folder, BackboneSpec()).language_head
    assert isinstance(untied, MaskedHead)
    np.testing.assert_array_equal(np.asarray(untied.projection.kernel), kernel.T)


def test_a_lacking_tensor_of_the_head_is_named(tmp_path: Path) -> None:
    folder = text.write("bert-masked-lm", tmp_path)
    tensors = load_file(folder / "model.safetensors")
    del tensors["cls.predictions.bias"]
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(ModelError, match="no tensor 'bert.cls.predictions.bias'"):
        load_backbone(folder, BackboneSpec())


@pytest.mark.parametrize("name", ["bert-masked-lm", "roberta-masked-lm", "llama", "bert"])
def test_a_saved_model_has_its_language_head_again(name: str, tmp_path: Path) -> None:
    model = Model(backbone(name, tmp_path))
    copy = saved.rebuilt(json.loads(json.dumps(saved.described(model))))
    saved.write_weights(tmp_path / "weights.safetensors", model)
    saved.read_weights(tmp_path / "weights.safetensors", copy)
    assert list(copy.variables()) == list(model.variables())
    assert type(copy.backbone.language_head) is type(model.backbone.language_head)
    saved.check_same(model, copy)


def test_the_head_s_weights_have_names_of_their_own_and_the_table_has_one(tmp_path: Path) -> None:
    names = [n for n in Model(backbone("bert-masked-lm", tmp_path)).variables() if "lm_head" in n]
    assert names == [
        f"heads/lm_head/{name}"
        for name in ("bias", "transform/kernel", "transform/bias", "norm/gamma", "norm/beta")
    ]


def test_no_head_is_described_as_none() -> None:
    assert masked_head.described(None) is None


def test_a_masked_language_model_of_keras_hub_brings_its_head() -> None:
    sizes = {"vocabulary_size": 99, "num_layers": 1, "hidden_dim": 32, "intermediate_dim": 48}
    with seeded(0), tensorflow_hidden():
        models = keras_hub().models
        body = models.BertBackbone(**sizes, num_heads=4, max_sequence_length=24)
        task = models.BertMaskedLM(body)
    head = task.masked_lm_head
    head._bias.assign(np.arange(99) / 10)
    head._intermediate_layer_norm.gamma.assign(np.linspace(0.5, 2, 32))
    model = Model(load_backbone(task, BackboneSpec()))
    everywhere = np.tile(np.arange(7), (2, 1))
    segments = np.zeros_like(text.TOKEN_IDS)
    expected = task({**ITEMS, "segment_ids": segments, "mask_positions": everywhere})
    got = model.apply({name: value.astype("int32") for name, value in ITEMS.items()})
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-4)


def test_a_keras_hub_encoder_whose_embedding_is_not_its_own_layer_has_no_such_head() -> None:
    sizes = {"vocabulary_size": 99, "num_layers": 1, "hidden_dim": 32, "intermediate_dim": 48}
    with seeded(0), tensorflow_hidden():
        models = keras_hub().models
        body = models.DistilBertBackbone(**sizes, num_heads=4, max_sequence_length=24)
        task = models.DistilBertMaskedLM(body)
    assert load_backbone(task, BackboneSpec()).language_head is None


def test_an_adapter_beside_a_head_for_hidden_tokens_is_none_of_a_causal_model(tmp_path) -> None:
    model = Model(backbone("bert-masked-lm", tmp_path / "bert"))
    folder = model.add_adapter("a", "lora").save_adapter(tmp_path / "adapter")
    assert json.loads((folder / "adapter_config.json").read_text())["task_type"] is None
