"""Text in, text out, on a small language model whose tokens are bytes."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from tests.unit.byte_writer import model, tokenizer
from tests.unit.methods import texts
from tunekit.errors import ModelError
from tunekit.generate import generate, prompt_ids, text_pieces
from tunekit.models.generation import Generator
from tunekit.models.hub import keras_hub
from tunekit.models.loading import load_model
from tunekit.models.tokenizing import Tokenizer
from tunekit.tasks.language_modelling import LanguageModelling

OPTIONS: dict[str, Any] = {"max_new_tokens": 12}


def test_one_prompt_gives_one_text_and_several_give_a_list():
    dialogue = [{"role": "user", "content": "hello"}]
    one = generate(model(), "hello", **OPTIONS)
    assert isinstance(one, str) and one
    assert generate(model(), dialogue, **OPTIONS) == one
    assert generate(model(), ["hello", dialogue, "you"], **OPTIONS)[:2] == [one, one]
    assert generate(model(), [], **OPTIONS) == []


def test_a_text_is_what_the_user_says_unless_it_is_raw():
    reader = tokenizer()
    assert reader.decode(prompt_ids("hi", reader), special=True) == "u:hi<end>a:"
    assert reader.decode(prompt_ids("hi", reader, raw=True), special=True) == "hi"
    assert reader.decode(prompt_ids("hi", tokenizer(None)), special=True) == "hi"


def test_a_raw_text_begins_as_the_tokenizer_begins_texts_and_does_not_end():
    """A prompt that ends as a whole text would be answered by another text."""
    reader = tokenizer(None, ending=True)
    assert reader.decode(reader.encode("hi").ids, special=True) == "<s>hi<end>"
    assert reader.decode(prompt_ids("hi", reader), special=True) == "<s>hi"


def test_a_model_tuned_on_a_format_of_its_own_is_asked_in_it():
    reader, task = tokenizer(), LanguageModelling(template="Q {prompt} A ")
    assert reader.decode(prompt_ids("hi", reader, task=task), special=True) == "Q hi A "
    plain = LanguageModelling(name="causal_lm")
    assert prompt_ids("hi", reader, task=plain) == prompt_ids("hi", reader)


def test_the_answer_is_the_text_of_the_tokens_up_to_the_end():
    reader, own = tokenizer(), model()
    ids = prompt_ids("hello", reader)
    (tokens,) = Generator(own).generate([ids], max_new_tokens=12)
    assert generate(own, "hello", **OPTIONS) == reader.decode(tokens).rstrip("\ufffd")
    ends = {"generation_config.json": json.dumps({"eos_token_id": [tokens[4]]})}
    before = own.backbone
    own.backbone = replace(before, tokenizer=Tokenizer({**reader.files, **ends}))
    try:
        found = generate(own, "hello", **OPTIONS)
    finally:
        own.backbone = before
    assert found == reader.decode(tokens[: tokens.index(tokens[4])]).rstrip("\ufffd")


def test_pieces_together_are_the_text_and_come_one_after_another():
    whole = generate(model(), "hello", **OPTIONS)
    stream = generate(model(), "hello", **OPTIONS, stream=True)
    first = next(stream)
    assert 0 < len(first) < len(whole)
    assert first + "".join(stream) == whole


def test_no_piece_ends_within_a_character():
    reader, text = tokenizer(), "où 🚉 ?"
    ids = reader.encode(text, special=False).ids.tolist()
    pieces = list(text_pieces(reader, ([token] for token in ids)))
    assert "".join(pieces) == text
    assert "🚉" in pieces and "ù" in pieces
    # Two bytes of four.
    assert "".join(text_pieces(reader, ([token] for token in ids[:6]))) == "où "


def test_numbers_of_a_sampler_are_used_and_the_seed_decides():
    drawn = [generate(model(), "hello", **OPTIONS, temperature=3.0, seed=s) for s in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]
    greedy = generate(model(), "hello", **OPTIONS)
    assert generate(model(), "hello", **OPTIONS, temperature=3.0, top_k=1) == greedy != drawn[0]
    assert generate(model(), "hello", **OPTIONS, temperature=3.0, top_p=1e-6) == greedy
    assert generate(model(), "hello", **OPTIONS, temperature=3.0, min_p=1.0) == greedy
    assert generate(model(), "hello", **OPTIONS, repetition_penalty=1e6) != greedy


@pytest.mark.parametrize(
    ("prompts", "options", "message"),
    [
        ("", {}, "the prompt is empty"),
        (["a", []], {}, "the prompt is empty"),
        ("x" * 50, {}, "prompt 0 has 55 tokens, and with 12 new .* more than the 48"),
        (["a", "b"], {"stream": True}, "writes to one prompt at a time, and got 2"),
        ("a", {"temperature": -1}, "temperature: expected a number above 0"),
    ],
)
def test_what_cannot_be_answered_is_refused(prompts, options, message):
    with pytest.raises(ModelError, match=message):
        generate(model(), prompts, **OPTIONS, **options)


def test_an_error_in_a_stream_comes_before_its_first_piece_is_asked_for():
    with pytest.raises(ModelError, match="more than the 48"):
        generate(model(), "x" * 50, **OPTIONS, stream=True)


def test_a_model_without_a_tokenizer_or_a_language_head_is_refused():
    bare = load_model(keras_hub().models.LlamaCausalLM(texts.NETWORKS["llama"]()))
    with pytest.raises(ModelError, match="reads no text"):
        generate(bare, "hello")
    with pytest.raises(ModelError, match="no causal language model"):
        generate(load_model(texts.NETWORKS["bert"]()), "hello")


def test_a_dialogue_without_a_chat_template_is_refused():
    with pytest.raises(ModelError, match="the tokenizer has no chat template"):
        prompt_ids([{"role": "user", "content": "hi"}], tokenizer(None))
