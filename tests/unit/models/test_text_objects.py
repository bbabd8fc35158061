"""KerasHub's backbones of tokens and causal language models, given as objects."""

from __future__ import annotations

import json
from typing import Any

import keras
import numpy as np
import pytest

from tests.reference import text_folders as text
from tunekit.errors import ModelError
from tunekit.models.hub import keras_hub, tensorflow_hidden
from tunekit.models.initialisation import seeded
from tunekit.models.loading import load_backbone
from tunekit.models.spec import BackboneSpec
from tunekit.models.token_graph import TiedHead, assemble_tokens
from tunekit.names import structural_names

INPUTS = {"token_ids": text.TOKEN_IDS, "padding_mask": text.PADDING_MASK}
SIZES = {"vocabulary_size": 99, "num_layers": 2, "hidden_dim": 32, "intermediate_dim": 48}
LLAMA = {**SIZES, "num_query_heads": 4, "num_key_value_heads": 2, "rope_max_wavelength": 50}
SPEC = BackboneSpec()


def built(name: str, **config: Any) -> Any:
    with seeded(0), tensorflow_hidden():
        return getattr(keras_hub().models, name)(**config)


def again(model: keras.Model) -> keras.Model:
    """The network built from its own configuration, with the same values."""
    with tensorflow_hidden():
        config = json.loads(json.dumps(keras.saving.serialize_keras_object(model)))
        copy: Any = keras.saving.deserialize_keras_object(config, safe_mode=True)
    values = structural_names(model)
    for name, variable in structural_names(copy).items():
        variable.assign(values[name])
    return copy


@pytest.mark.parametrize("tied", [True, False])
def test_a_llama_is_copied_with_its_head_and_keeps_its_tie_when_rebuilt(tied: bool) -> None:
    theirs = built("Llama3Backbone", **LLAMA, tie_word_embeddings=tied)
    task = built("Llama3CausalLM", backbone=theirs, preprocessor=None)
    backbone = load_backbone(task, SPEC)
    assert isinstance(backbone.language_head, TiedHead) and backbone.vocabulary == 99
    model = assemble_tokens(backbone.keras, {}, backbone.language_head)
    wanted = np.asarray(task(INPUTS))
    assert np.allclose(np.asarray(model(INPUTS)), wanted, atol=1e-5)
    copy = again(backbone.keras)
    assert len(copy.variables) == len(theirs.variables)
    assert np.array_equal(np.asarray(copy(INPUTS)), np.asarray(backbone.keras(INPUTS)))
    backbone.keras.variables[0].assign(backbone.keras.variables[0] + 1)
    assert np.array_equal(np.asarray(task(INPUTS)), wanted)


def test_a_bert_gets_segments_of_zeros_and_gives_its_sequence() -> None:
    theirs = built("BertBackbone", **SIZES, num_heads=4, max_sequence_length=24)
    backbone = load_backbone(theirs, SPEC)
    wanted = theirs({**INPUTS, "segment_ids": np.zeros_like(text.TOKEN_IDS)})["sequence_output"]
    assert np.allclose(np.asarray(backbone.keras(INPUTS)), np.asarray(wanted), atol=1e-6)
    assert (backbone.family, backbone.max_length_tokens) == ("bert", 24)
    assert backbone.language_head is None
    copy = again(backbone.keras)
    assert np.array_equal(np.asarray(copy(INPUTS)), np.asarray(backbone.keras(INPUTS)))


def test_precision_and_fresh_weights_are_as_asked() -> None:
    theirs = built("GPT2Backbone", **SIZES, num_heads=4, max_sequence_length=24)
    backbone = load_backbone(theirs, BackboneSpec(dtype="bfloat16", pretrained=False), seed=1)
    dtypes = {v.dtype for v in backbone.keras.variables if "seed" not in v.name}
    assert dtypes == {"bfloat16"}
    table = np.asarray(backbone.keras.get_layer("token_embedding").embeddings, np.float32)
    assert not np.allclose(table, np.asarray(theirs.token_embedding.embeddings), atol=1e-2)


def test_what_does_not_fit_is_refused() -> None:
    bart = built("BartBackbone", **SIZES, num_heads=4, max_sequence_length=24)
    with pytest.raises(ModelError, match="takes .*decoder_token_ids.*; expected token_ids"):
        load_backbone(bart, SPEC)
    gpt2 = built("GPT2Backbone", **SIZES, num_heads=4, max_sequence_length=24)
    with pytest.raises(ModelError, match="takes tokens: leave image_size"):
        load_backbone(gpt2, BackboneSpec(image_size=32))
    with pytest.raises(ModelError, match="blocks: '.*' is a model of KerasHub's .* kept whole"):
        load_backbone(gpt2, BackboneSpec(blocks=1))
