"""A source's tokenizer and longest text are those of its model, its weights left where they are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.reference import text_folders
from tests.unit.models import test_gguf
from tests.unit.tasks.small_language import tokenizer
from tunekit.errors import ModelError
from tunekit.models.loading import load_backbone
from tunekit.models.spec import BackboneSpec
from tunekit.models.text_reader import TextReader, read_text_reader


def folder(name: str, at: Path) -> Path:
    """A tiny model with a tokenizer, whose special tokens its config.json numbers too."""
    text_folders.write(name, at)
    for file, content in tokenizer().files.items():
        (at / file).write_text(content, encoding="utf-8")
    return at


def gguf(at: Path) -> Path:
    at.mkdir()
    return test_gguf.write(at / "m.gguf", tensors=test_gguf.whole_model())


def contents(reader: TextReader) -> dict[str, Any]:
    return {name: json.loads(text) for name, text in reader.tokenizer.files.items()}


@pytest.mark.parametrize("name", ["bert", "roberta", "llama", "gpt2", "gguf"])
def test_a_text_is_read_as_the_loaded_model_reads_it(tmp_path, name):
    source = str(gguf(tmp_path / "x") if name == "gguf" else folder(name, tmp_path / "x"))
    found = read_text_reader(source, BackboneSpec())
    loaded = TextReader.of(load_backbone(source, BackboneSpec()))
    assert found.max_length_tokens == loaded.max_length_tokens is not None
    assert contents(found) == contents(loaded)
    assert found.tokenizer.encode("ab").ids.tolist() == loaded.tokenizer.encode("ab").ids.tolist()


def test_a_tokenizer_beside_a_gguf_file_stands_before_its_own(tmp_path):
    path = gguf(tmp_path / "x")
    path.with_name("tokenizer.json").write_text(tokenizer().files["tokenizer.json"])
    assert len(read_text_reader(str(path), BackboneSpec()).tokenizer) == len(tokenizer())


def test_weights_need_not_be_there(tmp_path):
    source = folder("bert", tmp_path / "x")
    (source / "model.safetensors").unlink()
    assert read_text_reader(str(source), BackboneSpec()).max_length_tokens == 24


def test_a_folder_without_a_tokenizer_says_so(tmp_path):
    source = text_folders.write("llama", tmp_path / "x")
    with pytest.raises(ModelError, match="has no tokenizer.json"):
        read_text_reader(str(source), BackboneSpec())


def test_a_source_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(ModelError, match="there is no folder"):
        read_text_reader(str(tmp_path / "nowhere"), BackboneSpec())


def test_a_model_of_images_reads_no_texts():
    with pytest.raises(ModelError, match="takes images, and the data are texts"):
        read_text_reader("efficientnet_lite0", BackboneSpec())
