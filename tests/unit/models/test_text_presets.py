"""Presets of KerasHub that take tokens, and what reads texts in the place of their tokenizers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.reference import text_folders as text
from tests.unit.models.test_text_objects import INPUTS, LLAMA, SIZES, built
from tunekit.errors import ModelError
from tunekit.models import hub_tokenizer
from tunekit.models.hub import keras_hub, tensorflow_hidden
from tunekit.models.hub_tokenizer import converted
from tunekit.models.loading import load_backbone
from tunekit.models.spec import BackboneSpec
from tunekit.models.token_graph import TiedHead
from tunekit.models.tokenizing import Tokenizer

SPEC = BackboneSpec()
keras_saves = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "cafe", "##s", "a"]
LLAMA_TOKENS = [
    "<|begin_of_text|>",
    "<|end_of_text|>",
    "<|eot_id|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
]
PIECES = ["h", "i", "Ġ", "hi", "Ġhi", "1", "2", "3", "4", "12", "123", "é", "Ã", "©"]
MERGES = ["h i", "Ġ hi", "1 2", "12 3"]


def tokenizer(kind: str, *special: str) -> Any:
    """A tokenizer of KerasHub's of byte pairs."""
    vocabulary = {token: index for index, token in enumerate([*special, *PIECES])}
    return built(kind, vocabulary=vocabulary, merges=MERGES)


def tokens(reader: Tokenizer, written: str) -> list[str]:
    return [reader.token(index) for index in reader.encode(written).ids]


def saved(model: Any, folder: Path) -> Path:
    with tensorflow_hidden():
        model.save_to_preset(str(folder))
    return folder


@keras_saves
def test_a_saved_language_model_comes_with_its_head_and_its_tokenizer(tmp_path):
    body = built("Llama3Backbone", **LLAMA, tie_word_embeddings=False)
    theirs = tokenizer("Llama3Tokenizer", *LLAMA_TOKENS)
    preprocessor = built("Llama3CausalLMPreprocessor", tokenizer=theirs, sequence_length=8)
    task = built("Llama3CausalLM", backbone=body, preprocessor=preprocessor)
    backbone = load_backbone(saved(task, tmp_path / "llama"), SPEC)
    assert isinstance(backbone.language_head, TiedHead)
    assert backbone.source == str(tmp_path / "llama")
    hidden = np.asarray(backbone.keras(INPUTS))
    np.testing.assert_allclose(hidden, np.asarray(body(INPUTS)), atol=1e-5)
    reader = backbone.text_tokenizer()
    assert tokens(reader, "hi hi<|eot_id|>1234") == (
        ["<|begin_of_text|>", "hi", "Ġhi", "<|eot_id|>", "123", "4"]
    )
    assert (reader.bos_id, reader.eos_id, reader.stop_ids) == (0, 1, {1, 2})


@keras_saves
def test_a_saved_encoder_strips_accents_that_its_vocabulary_lacks(tmp_path):
    body = built("BertBackbone", **SIZES, num_heads=4, max_sequence_length=24)
    theirs = built("BertTokenizer", vocabulary=WORDS, lowercase=True)
    preprocessor = built("BertTextClassifierPreprocessor", tokenizer=theirs, sequence_length=8)
    task = built("BertTextClassifier", backbone=body, num_classes=3, preprocessor=preprocessor)
    backbone = load_backbone(saved(task, tmp_path / "bert"), SPEC)
    assert (backbone.features, backbone.language_head) == ("encoder_states", None)
    reader = backbone.text_tokenizer()
    assert tokens(reader, "Cafés [MASK]") == ["[CLS]", "cafe", "##s", "[MASK]", "[SEP]"]
    assert theirs(["Cafés"])[0] == [1]  # what the preset's own tokenizer makes of it
    assert (reader.cls_id, reader.sep_id, reader.pad_id, reader.bos_id) == (2, 3, 0, None)


@keras_saves
def test_a_body_saved_without_a_tokenizer_takes_token_ids_alone(tmp_path):
    body = built("Llama3Backbone", **LLAMA)
    backbone = load_backbone(saved(body, tmp_path / "body"), SPEC)
    assert np.asarray(backbone.keras(INPUTS)).shape == (*text.TOKEN_IDS.shape, 32)
    assert backbone.language_head is not None
    with pytest.raises(ModelError, match="reads no text: it came without a tokenizer"):
        backbone.text_tokenizer()


def test_texts_are_split_as_the_family_splits_them():
    assert tokens(converted(tokenizer("GPT2Tokenizer", "<|endoftext|>")), "123412 hi") == (
        ["123", "4", "12", "Ġhi"]
    )
    assert tokens(converted(tokenizer("QwenTokenizer", "<|endoftext|>")), "1234 hi") == (
        ["1", "2", "3", "4", "Ġhi"]
    )
    # Composed first, as Qwen's own does.
    composed = converted(tokenizer("QwenTokenizer", "<|endoftext|>")).encode("e\u0301")
    assert len(composed) == 2


def test_a_tokenizer_that_cannot_be_rebuilt_exactly_says_so():
    body = built("GPT2Backbone", **SIZES, num_heads=4, max_sequence_length=24)
    theirs = tokenizer("OPTTokenizer", "<s>", "</s>", "<pad>")
    preprocessor = built("GPT2CausalLMPreprocessor", tokenizer=theirs, sequence_length=8)
    task = built("GPT2CausalLM", backbone=body, preprocessor=preprocessor)
    backbone = load_backbone(task, SPEC)
    with pytest.raises(ModelError, match="reads no text: a OPTTokenizer of KerasHub cannot be"):
        backbone.text_tokenizer()


def test_a_name_that_nobody_knows_has_neighbours_among_the_presets_of_texts():
    with pytest.raises(ModelError, match="Did you mean 'bert_base_en'"):
        load_backbone("bert_base_e", SPEC)


def test_every_kind_of_tokenizer_named_here_is_one_of_kerashubs():
    kinds = (*hub_tokenizer._WORD_PIECES, *hub_tokenizer._BYTE_PAIRS)
    assert [kind for kind in kinds if not hasattr(keras_hub().models, kind)] == []
