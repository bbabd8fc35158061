"""SmolLM2-135M-Instruct writes what transformers writes, token for token.

What transformers generates from the same file was written by
tests/reference/make_generation_references.py.
"""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.assets import smollm2
from tests.reference.make_generation_references import DIALOGUES, EXPECTED, TOKENS
from tunekit.errors import ModelError
from tunekit.generate import generate, prompt_ids
from tunekit.models.generation import Generator
from tunekit.models.loading import load_model
from tunekit.models.model import Model


@pytest.fixture(scope="module")
def expected() -> list[dict[str, list[int]]]:
    return json.loads(EXPECTED.read_text(encoding="utf-8"))["smollm2"]


@pytest.fixture(scope="module")
def model() -> Model:
    return load_model(smollm2())


def dialogue(number: int) -> list[dict[str, str]]:
    return [{"role": role, "content": content} for role, content in DIALOGUES[number]]


def test_prompts_are_the_tokens_of_transformers(model, expected):
    tokenizer = model.backbone.text_tokenizer()
    for number, row in enumerate(expected):
        assert prompt_ids(dialogue(number), tokenizer) == row["prompt"]
    assert prompt_ids(DIALOGUES[0][0][1], tokenizer) == expected[0]["prompt"]


def test_32_tokens_of_a_batch_are_those_of_transformers(model, expected):
    prompts = [row["prompt"] for row in expected]
    found = Generator(model).generate(prompts, max_new_tokens=TOKENS)
    assert found == [row["new"] for row in expected]


def test_text_in_and_text_out_whole_or_in_pieces(model, expected):
    tokenizer = model.backbone.text_tokenizer()
    prompts: list[Any] = [dialogue(number) for number in range(len(DIALOGUES))]
    texts = generate(model, prompts, max_new_tokens=TOKENS)
    for text, row in zip(texts, expected, strict=True):
        ends = [place for place, token in enumerate(row["new"]) if token in tokenizer.stop_ids]
        own = row["new"][: min(ends, default=TOKENS)]
        assert text == tokenizer.decode(own).rstrip("\ufffd") != ""
    pieces = list(generate(model, prompts[4], max_new_tokens=TOKENS, stream=True))
    assert len(pieces) > 4
    assert "".join(pieces) == texts[4]
    assert "🚉" in texts[4]


def test_a_prompt_longer_than_the_model_was_made_for_is_refused(model):
    with pytest.raises(ModelError, match=r"prompt 0 has \d+ tokens, .* more than the 8192 that"):
        generate(model, "ferry " * 9000, raw=True)
