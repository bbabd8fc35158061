"""Dialogues in the forms data sets have them."""

from __future__ import annotations

import json

import pytest

from tunekit.data.spec import DataSpec
from tunekit.data.text_source import open_text
from tunekit.errors import DataError

USER, ASSISTANT = "user", "assistant"


def opened(*rows, **fields):
    spec = DataSpec(**{"validation_fraction": 0.0, **fields})
    return open_text(list(rows), spec, "dialogue", seed=0).train


def turns(*rows, **fields):
    """Returns (role, content) of the first dialogue."""
    messages = opened(*rows, **fields)[0]["messages"]
    return [(message["role"], message["content"]) for message in messages]


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "Hi?", "response": "Ho."},
        {"Question": "Hi?", "answer": "Ho.", "topic": "x"},
        {"instruction": "Hi?", "input": "", "output": "Ho."},
        {"instruction": "Hi?", "input": None, "output": "Ho."},
        {"conversations": [{"from": "human", "value": "Hi?"}, {"from": "gpt", "value": "Ho."}]},
        {"messages": [{"role": USER, "content": "Hi?"}, {"role": ASSISTANT, "content": "Ho."}]},
        {
            "messages": json.dumps(
                [{"role": "User", "content": "Hi?"}, {"from": "ai", "value": "Ho."}]
            )
        },
        {"prompt": [{"role": USER, "content": "Hi?"}], "completion": "Ho."},
        {
            "messages": [
                {"role": USER, "content": [{"type": "text", "text": "Hi?"}]},
                {"role": "model", "content": "Ho.", "weight": 1},
            ]
        },
    ],
)
def test_every_form_becomes_the_same_messages(row):
    assert turns(row) == [(USER, "Hi?"), (ASSISTANT, "Ho.")]


def test_what_an_instruction_is_about_follows_it():
    row = {"instruction": "Translate.", "input": "Hund", "output": "dog"}
    assert turns(row) == [(USER, "Translate.\n\nHund"), (ASSISTANT, "dog")]
    dolly = {"instruction": "Who?", "context": "It was I.", "response": "I.", "category": "qa"}
    assert turns(dolly) == [(USER, "Who?\n\nIt was I."), (ASSISTANT, "I.")]


def test_system_messages_stand_first():
    row = {"system": "Be brief.", "prompt": "Hi?", "response": "Ho."}
    assert turns(row) == [("system", "Be brief."), (USER, "Hi?"), (ASSISTANT, "Ho.")]
    assert turns({**row, "system": ""}) == [(USER, "Hi?"), (ASSISTANT, "Ho.")]
    spoken = [{"from": "system", "value": "Be brief."}, {"from": "human", "value": "Hi?"}]
    row = {"conversations": [*spoken, {"from": "gpt", "value": "Ho."}]}
    assert [role for role, _ in turns(row)] == ["system", USER, ASSISTANT]


def test_columns_of_prompt_and_response_may_be_named():
    row = {"topic": "Hi?", "text": "Ho.", "prompt": "no"}
    named = {"prompt_column": "topic", "response_column": "text"}
    assert turns(row, **named) == [(USER, "Hi?"), (ASSISTANT, "Ho.")]


def test_rows_of_plain_text_stand_among_dialogues():
    source = opened({"prompt": "Hi?", "response": "Ho."}, {"text": "Once."}, {"text": "Upon."})
    assert [source[i].get("text") for i in range(3)] == [None, "Once.", "Upon."]
    assert opened("Once.")[0]["text"] == "Once."


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"prompt": "Hi?", "response": " "}, "empty text in 'response'"),
        ({"prompt": None, "response": "Ho."}, "empty text in 'prompt'"),
        ({"prompt": 7, "response": "Ho."}, "expected text in 'prompt', got the number 7"),
        ({"prompt": "Hi?"}, "no column 'response'"),
        ({"other": "Hi?"}, "no column 'prompt'"),
    ],
)
def test_a_bad_prompt_or_response_is_a_bad_row(row, reason):
    with pytest.raises(DataError, match=rf"data\.train: data\[1\]: {reason}; mend the line"):
        opened({"prompt": "Hi?", "response": "Ho."}, row)


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        ([{"role": USER, "content": "Hi?"}], "no turn of the assistant"),
        ([{"role": ASSISTANT, "content": ""}], r"empty text in 'messages\[0\]'"),
        ([{"role": ASSISTANT, "content": None}], r"empty text in 'messages\[0\]'"),
        ([{"role": ASSISTANT, "content": 3}], r"expected text in 'messages\[0\]', got the num"),
        ([{"role": ASSISTANT, "content": [{"type": "image"}]}], "holds parts that are no text"),
        ([{"role": "asistant", "content": "Ho."}], r"unknown role 'asistant' .* mean 'assistant'"),
        ([{"content": "Ho."}], r"no role in messages\[0\]; it has content"),
        (["Hi?"], r"expected role and content in messages\[0\], got 'Hi\?'"),
        ([], "no message in 'messages'"),
        ("Hi?", "expected a list of messages in 'messages', got 'Hi"),
        ("[1", r"invalid JSON in 'messages' \(Expecting"),
        (
            [{"role": ASSISTANT, "content": "Ho."}, {"role": "system", "content": "Be brief."}],
            "a system message that is not the first",
        ),
    ],
)
def test_bad_messages_are_a_bad_row(messages, reason):
    with pytest.raises(DataError, match=rf"data\[0\]: .*{reason}"):
        opened({"messages": messages})


def test_columns_that_are_not_found_are_listed_with_what_is_there():
    with pytest.raises(DataError, match=r"data\.response_column: data has no column for the resp"):
        opened({"prompt": "Hi?", "respons": "Ho."})
    with pytest.raises(DataError, match=r"no column 'reply'\. Its columns: prompt, response"):
        opened({"prompt": "Hi?", "response": "Ho."}, response_column="reply")
    with pytest.raises(DataError, match=r"columns conversation, chat of data could each be the me"):
        opened({"conversation": [], "chat": []})
