"""A SentencePiece vocabulary, as in GGUF files of Llama 2 and Mistral, cuts as its own does."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
import sentencepiece

from tunekit.models.gguf_tokenizer import tokenizer_files
from tunekit.models.tokenizing import Tokenizer

REFERENCE = Path(__file__).parents[2] / "reference" / "tokens.json"
TEXTS = json.loads(REFERENCE.read_text())["texts"]


@pytest.fixture(scope="module")
def theirs() -> Any:
    """SentencePiece's own, of the kind that Llama has, trained on the corpus of nasty strings."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(line for text in TEXTS for line in text.splitlines() if line),
        model_writer=model,
        model_type="bpe",
        vocab_size=600,
        character_coverage=0.98,
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        split_digits=True,
        minloglevel=2,
    )
    return sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())


def metadata(theirs: Any, **other: Any) -> dict[str, Any]:
    """As llama.cpp's converter writes it."""
    kinds = [
        2 if theirs.is_unknown(i) else 3 if theirs.is_control(i) else 6 if theirs.is_byte(i) else 1
        for i in range(len(theirs))
    ]
    values = {
        "model": "llama",
        "tokens": [theirs.id_to_piece(i) for i in range(len(theirs))],
        "scores": [theirs.get_score(i) for i in range(len(theirs))],
        "token_type": kinds,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "unknown_token_id": 0,
        **other,
    }
    return {f"tokenizer.ggml.{name}": value for name, value in values.items()}


def rebuilt(values: dict[str, Any]) -> Tokenizer:
    files = tokenizer_files(values, "a file", rebuild=True)
    return Tokenizer({name: json.dumps(content) for name, content in files.items()})


def test_ids_equal_those_of_sentencepiece_and_come_back_as_text(theirs):
    reader = rebuilt(metadata(theirs))
    assert len(reader) == 600
    plain = [text for text in TEXTS if "<s>" not in text]  # a special token, if written in a text
    for text in plain:
        ids = reader.encode(text).ids.tolist()
        assert ids == [1, *theirs.encode(text)], repr(text)
        assert reader.decode(ids) == theirs.decode(ids[1:]), repr(text)
    used = {int(i) for text in plain for i in reader.encode(text).ids}
    assert any(theirs.is_byte(i) for i in used)


def test_what_the_file_says_of_ends_and_spaces_is_kept(theirs):
    bare = rebuilt(metadata(theirs, add_bos_token=False, add_space_prefix=False))
    assert bare.encode("the").ids.tolist() != theirs.encode("the")
    assert bare.encode(" the").ids.tolist() == theirs.encode("the")
    assert bare.decode(bare.encode(" the").ids) == " the"
    assert (bare.bos_id, bare.eos_id, bare.unk_id, bare.special_ids) == (1, 2, 0, {0, 1, 2})
