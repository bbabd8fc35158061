"""What of a model its files hold beside the weights of its graph."""

from __future__ import annotations

import json

import numpy as np
import pytest
import safetensors.numpy

from tests.unit.methods import peft_networks as nets
from tunekit import saved
from tunekit.errors import ModelError
from tunekit.folder import plain
from tunekit.models.loading import load_model
from tunekit.models.model import Model

PEFT = nets.FOLDER / "bert-lora"
"""An adapter whose head stands on the pooler of the base."""


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A BERT trained for no task, as two files."""
    folder, model = tmp_path_factory.mktemp("bert"), load_model(nets.FOLDER / "bert")
    (folder / "model.json").write_text(json.dumps(plain(saved.described(model))))
    saved.write_weights(folder / "model.safetensors", model)
    return folder


def read(folder) -> Model:
    model = saved.rebuilt(json.loads((folder / "model.json").read_text()))
    saved.read_weights(folder / "model.safetensors", model)
    return model


def test_a_bert_read_back_can_still_be_given_the_form_of_its_classifiers(written):
    model = read(written)
    logits = model.load_adapter(PEFT).apply(nets.inputs("bert"))
    np.testing.assert_allclose(logits, nets.expected()["bert-lora/logits"], rtol=0, atol=1e-4)


def test_a_pooler_that_is_missing_is_named(written, tmp_path):
    for file in written.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    tensors = safetensors.numpy.load_file(tmp_path / "model.safetensors")
    tensors.pop("pooler/bias")
    safetensors.numpy.save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(ModelError, match="fit the model beside it:\n  missing: pooler/bias"):
        read(tmp_path)
