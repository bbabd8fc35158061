"""Hidden states of sequences, after all blocks or after some."""

from __future__ import annotations

import json

import numpy as np
import pytest

from tests.reference import text_folders as text
from tests.unit.models.tiny_folders import PROCESSOR, RESNET, resnet_tensors, write
from tunekit.errors import ModelError
from tunekit.methods.spec import LoRA
from tunekit.models import tokenizer_files
from tunekit.models.loading import load_model
from tunekit.models.model import Model

REAL = text.PADDING_MASK.astype(bool)
ROWS = [ids[mask] for ids, mask in zip(text.TOKEN_IDS, REAL, strict=True)]


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Model:
    return load_model(text.write("llama", tmp_path_factory.mktemp("llama")))


def test_hidden_states_of_a_language_model_equal_those_of_transformers(model):
    hidden = model.hidden_states(ROWS)
    assert (hidden.dtype, hidden.shape) == (np.float32, (2, 7, 32))
    expected = np.load(text.EXPECTED)["llama/hidden"]
    np.testing.assert_allclose(hidden[REAL], expected[REAL], atol=2e-5)


def test_those_after_the_last_block_are_not_normalised_yet(model):
    last = model.hidden_states(ROWS, layer=2)[REAL]
    scale = np.asarray(model.variables()["backbone/final_norm/scale"])
    norm = last / np.sqrt((last**2).mean(-1, keepdims=True) + text.CONFIGS["llama"]["rms_norm_eps"])
    np.testing.assert_allclose(norm * scale, model.hidden_states(ROWS)[REAL], atol=1e-5)
    assert np.abs(model.hidden_states(ROWS, layer=1)[REAL] - last).max() > 0.1


def test_an_adapter_that_acts_moves_them_and_batches_do_not(model):
    before = model.hidden_states(ROWS)
    np.testing.assert_allclose(model.hidden_states(ROWS, batch_size=1), before, atol=1e-5)
    model.add_adapter("tuned", LoRA(rank=2, targets="attention"))
    for variable in model.adapters["tuned"].adapter.variables.values():
        variable.assign(np.full(variable.shape, 0.1, variable.dtype))
    assert np.abs(model.hidden_states(ROWS) - before)[REAL].max() > 1e-2
    with model.adapters_disabled():
        np.testing.assert_array_equal(model.hidden_states(ROWS), before)
    model.remove_adapter("tuned")


def test_texts_are_cut_into_tokens_by_the_models_tokenizer(model, tmp_path):
    with pytest.raises(ModelError, match="reads no text: .* has no tokenizer.json"):
        model.hidden_states("hi")
    vocabulary = {token: index for index, token in enumerate(["h", "i", "Ġ"])}
    file = tokenizer_files.byte_pairs(vocabulary, [], "gpt-2", [])
    text.write("llama", tmp_path)
    (tmp_path / "tokenizer.json").write_text(json.dumps(file))
    reader = load_model(tmp_path)
    of_ids = reader.hidden_states([[0, 1], [0, 1, 2, 0]])
    np.testing.assert_array_equal(reader.hidden_states(["hi", "hi h"]), of_ids)
    with pytest.raises(ModelError, match="expected sequences of token ids .*got float64"):
        reader.hidden_states([[0.5, 1.0]])


def test_a_layer_that_there_is_not_is_refused(model):
    with pytest.raises(ModelError, match="layer: expected 1 to 2, .*got 3"):
        model.hidden_states(ROWS, layer=3)


def test_a_model_of_images_has_none_to_ask_for(tmp_path):
    images = load_model(write(tmp_path, RESNET, resnet_tensors(), PROCESSOR))
    with pytest.raises(ModelError, match="takes images, not token ids"):
        images.hidden_states(ROWS)
