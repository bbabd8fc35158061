"""Format strings for prompts: "### Instruction: {prompt} ### Response: "."""

from __future__ import annotations

import string
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

from tunekit.errors import DataError, Issue, RecipeError, did_you_mean

FIELDS = ("prompt", "system")
"""What every dialogue gives; further ones are the text columns of its row."""
_PATH = "task.template"


@dataclass(frozen=True)
class PromptTemplate:
    """Text with named gaps."""

    pieces: tuple[tuple[str, str | None], ...]
    """A text and the field after it; the last may have none."""

    @classmethod
    def parse(cls, text: str) -> PromptTemplate:
        """Returns the template that `text` spells: {name} is a gap, {{ and }} are braces.

        Raises:
            RecipeError: a brace is open, a gap has no plain name, or there is none.
        """
        try:
            parsed = list(string.Formatter().parse(text))
        except ValueError as error:
            message = f"{error} in {text!r}; a brace of the text itself is doubled: {{{{ }}}}"
            raise _mistake(message) from error
        for _, field, form, conversion in parsed:
            if field is not None and (form or conversion or not field.isidentifier()):
                raise _mistake(f"expected gaps such as {{prompt}}, got {{{field}}} in {text!r}")
        pieces = tuple((literal, field) for literal, field, _, _ in parsed)
        if not any(field for _, field in pieces):
            raise _mistake(f"expected a gap for what is asked, {{prompt}}, and {text!r} has none")
        return cls(pieces)

    @property
    def fields(self) -> tuple[str, ...]:
        """Names of the gaps, each once."""
        return tuple(dict.fromkeys(field for _, field in self.pieces if field))

    def check(self, known: Collection[str]) -> None:
        """Passes where every gap is one of the `known` fields.

        Raises:
            RecipeError: one is not.
        """
        if strange := next((field for field in self.fields if field not in known), None):
            have = ", ".join(f"{{{field}}}" for field in known)
            near = did_you_mean(strange, known)
            raise _mistake(f"the data has nothing for {{{strange}}}; it has {have}.{near}")

    def fill(self, values: Mapping[str, str]) -> str:
        """Returns the text with `values` in its gaps."""
        return "".join(text + (values[field] if field else "") for text, field in self.pieces)


@dataclass(frozen=True)
class Turn:
    """A prompt and the response to it."""

    values: Mapping[str, str]
    """Of the template's fields."""
    response: str


def turns_of(
    messages: Sequence[Mapping[str, str]], columns: Mapping[str, str], where: str
) -> Iterator[Turn]:
    """Yields each response of a dialogue with the user's messages before it.

    The system message belongs to the first turn alone: a prompt says it once.

    Args:
        messages: of the dialogue.
        columns: further fields, the same in every turn.
        where: what an error calls the dialogue.

    Raises:
        DataError: a message is neither the system's, the user's nor the assistant's.
    """
    system, prompts = "", []
    for message in messages:
        role, content = message["role"], message["content"]
        if role == "assistant":
            yield Turn({**columns, "prompt": "\n\n".join(prompts), "system": system}, content)
            system, prompts = "", []
        elif role == "system":
            system = content
        elif role == "user":
            prompts.append(content)
        else:
            raise DataError(
                f"{where}: a format string knows messages of 'system', 'user' and 'assistant', "
                f"got one of {role!r}. Leave task.template out, for the tokenizer's chat template."
            )


def _mistake(message: str) -> RecipeError:
    return RecipeError([Issue(_PATH, message)])
