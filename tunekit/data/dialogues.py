"""Dialogues in the forms data sets have them, as messages of roles system, user, assistant, tool.

Prompt and response; Alpaca (instruction, input, output); ShareGPT (conversations of from and
value); messages of role and content.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tunekit.data.columns import Columns
from tunekit.data.rows import BadRow, Row, described
from tunekit.data.spec import DataSpec
from tunekit.errors import did_you_mean

Message = dict[str, str]
_ROLES = {
    "system": "system", "developer": "system",
    "user": "user", "human": "user", "prompter": "user", "instruction": "user",
    "assistant": "assistant", "gpt": "assistant", "bot": "assistant", "model": "assistant",
    "chatgpt": "assistant", "bard": "assistant", "ai": "assistant",
    "tool": "tool", "function": "tool", "observation": "tool",
}  # fmt: skip
_ALPACA_INPUTS = ("input", "context")


@dataclass(frozen=True)
class DialogueColumns:
    """Where the turns of a dialogue stand in a row: under `messages`, or prompt and response."""

    messages: str = ""
    prompt: str = ""
    response: str = ""
    addition: str = ""
    """What the instruction is about (Alpaca's input); may be empty in a row."""
    system: str = ""
    text: str = ""
    """Plain text, in rows that have nothing else."""

    @classmethod
    def found(cls, columns: Columns, spec: DataSpec) -> DialogueColumns:
        """Returns the columns that the spec names or their names tell; adds issues for others."""
        text = next(iter(columns.guess("text")), "")
        system = next(iter(columns.guess("system")), "")
        named = spec.prompt_column or spec.response_column
        messages = columns.guess("messages")
        if messages and not named:
            return cls(columns.find("messages", None, "data.prompt_column"), text=text)
        guessed = columns.guess("prompt") or columns.guess("response")
        if not named and not guessed and text:
            return cls(text=text)
        prompt = columns.find("prompt", spec.prompt_column, "data.prompt_column")
        response = columns.find("response", spec.response_column, "data.response_column")
        additions = [name for name in columns.there if name.lower() in _ALPACA_INPUTS]
        if prompt.lower() != "instruction" or prompt in additions or response in additions:
            additions = []
        return cls("", prompt, response, next(iter(additions), ""), system, text)


def read_dialogue(row: Row, columns: DialogueColumns) -> list[Message] | str:
    """Returns the messages of a row, or the text of one that is plain. Raises BadRow."""
    if columns.messages and row.get(columns.messages) is not None:
        messages = _messages(row[columns.messages], columns.messages)
    elif columns.prompt and (columns.prompt in row or columns.text not in row):
        messages = _prompt_and_response(row, columns)
    elif columns.text in row:
        return _content(row[columns.text], columns.text)
    else:
        raise BadRow(f"no column {columns.messages or columns.text!r}")
    if not any(message["role"] == "assistant" for message in messages):
        raise BadRow("no turn of the assistant, so nothing to learn from")
    if any(message["role"] == "system" for message in messages[1:]):
        raise BadRow("a system message that is not the first")
    return messages


def _prompt_and_response(row: Row, columns: DialogueColumns) -> list[Message]:
    for name in (columns.prompt, columns.response):
        if name not in row:
            raise BadRow(f"no column {name!r}")
    prompt = row[columns.prompt]
    addition = row.get(columns.addition) if columns.addition else None
    if isinstance(addition, str) and addition.strip():
        prompt = f"{_content(prompt, columns.prompt)}\n\n{addition}"
    system = row.get(columns.system) if columns.system else None
    return [
        *([{"role": "system", "content": system}] if isinstance(system, str) and system else []),
        *_turns(prompt, "user", columns.prompt),
        *_turns(row[columns.response], "assistant", columns.response),
    ]


def _turns(value: Any, role: str, column: str) -> list[Message]:
    """Returns a text as one turn; or the turns themselves where the cell holds those."""
    if isinstance(value, (list, tuple)):
        return _messages(value, column)
    return [{"role": role, "content": _content(value, column)}]


def _messages(value: Any, column: str) -> list[Message]:
    if isinstance(value, str) and value.lstrip().startswith("["):  # a cell of a CSV
        try:
            value = json.loads(value)
        except json.JSONDecodeError as error:
            raise BadRow(f"invalid JSON in {column!r} ({error.msg})") from None
    if not isinstance(value, (list, tuple)):
        raise BadRow(f"expected a list of messages in {column!r}, got {described(value)}")
    if not len(value):
        raise BadRow(f"no message in {column!r}")
    return [_message(turn, f"{column}[{i}]") for i, turn in enumerate(value)]


def _message(turn: Any, place: str) -> Message:
    if not isinstance(turn, Mapping):
        raise BadRow(f"expected role and content in {place}, got {described(turn)}")
    role = next((turn[key] for key in ("role", "from") if turn.get(key) is not None), None)
    if role is None:
        raise BadRow(f"no role in {place}; it has {', '.join(turn) or 'nothing'}")
    if str(role).lower() not in _ROLES:
        raise BadRow(f"unknown role {role!r} in {place}.{did_you_mean(str(role), _ROLES)}")
    content = next((turn[key] for key in ("content", "value") if turn.get(key) is not None), None)
    return {"role": _ROLES[str(role).lower()], "content": _content(content, place)}


def _content(value: Any, place: str) -> str:
    if isinstance(value, (list, tuple)):  # parts, as in OpenAI's form
        texts = [part.get("text") if isinstance(part, Mapping) else part for part in value]
        value = "".join(text for text in texts if isinstance(text, str))
        if None in texts:
            raise BadRow(f"{place} holds parts that are no text")
    if value is not None and not isinstance(value, str):
        raise BadRow(f"expected text in {place!r}, got {described(value)}")
    if value is None or not value.strip():
        raise BadRow(f"empty text in {place!r}")
    return value
