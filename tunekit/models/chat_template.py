"""Dialogues written by a model's own Jinja template, and where in them the assistant speaks."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from typing import Any

import jinja2
from jinja2 import ext, nodes
from jinja2.sandbox import ImmutableSandboxedEnvironment

from tunekit.errors import ModelError

Message = Mapping[str, Any]
Span = tuple[int, int]

# Unicode's noncharacters, kept for a program's own use: no text holds them.
_BEGIN, _END, _PLACE = "\ufdd0", "\ufdd1", "\ufdd2"


@dataclass(frozen=True, eq=False)
class ChatTemplate:
    """A template as ``transformers`` renders it: sandboxed, with its filters and functions."""

    source: str
    """Jinja."""
    tokens: Mapping[str, str]
    """Variables that stand for special tokens: bos_token, eos_token…"""
    special: tuple[str, ...]
    """Every special token as written, one of which ends a turn."""

    def render(
        self, messages: Sequence[Message], add_generation_prompt: bool = False, **variables: Any
    ) -> str:
        """Returns the dialogue as text.

        Raises:
            ModelError: the template refuses the messages, or is no Jinja.
        """
        return _unmarked(self._marked(messages, add_generation_prompt, **variables))[0]

    def answers(self, messages: Sequence[Message]) -> tuple[str, list[Span]]:
        """Returns the dialogue as text, and the characters (first, after the last) of each answer.

        An answer is what the assistant has to write: its text and the token that ends its turn.
        ``{% generation %}`` blocks decide where the template has them. Else an answer is what its
        message adds to the dialogue before it; else, where that changes what came before, the place
        of its text and the special token behind it.

        Raises:
            ModelError: the template refuses the messages, or none of these ways shows the answers.
        """
        text, spans = _unmarked(self._marked(messages))
        if re.search(r"{%-?\s*generation\b", self.source):
            return text, spans
        turns = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
        spans = self._added(messages, turns, text)
        if spans is None:
            spans = self._placed(messages, turns, text)
        return text, spans

    def _added(self, messages: Sequence[Message], turns: list[int], text: str) -> list[Span] | None:
        """What each turn adds; `None` where the template rewrites what came before."""
        spans = []
        for turn in turns:
            try:
                before = self.render(messages[:turn], add_generation_prompt=True)
                after = self.render(messages[: turn + 1])
            except ModelError:
                return None  # it has to see more of the dialogue
            if not (after.startswith(before) and text.startswith(after)):
                return None
            answer = after[len(before) :]
            # A line break behind the token that ends the turn belongs to what follows.
            if answer.rstrip().endswith(self.special):
                answer = answer.rstrip()
            spans.append((len(before), len(before) + len(answer)))
        return spans

    def _placed(self, messages: Sequence[Message], turns: list[int], text: str) -> list[Span]:
        """Where the answers' texts stand, found by rendering placeholders instead of them."""
        places = {turn: f"{_PLACE}{turn}{_PLACE}" for turn in turns}
        rendered = self.render(
            [{**m, "content": places[i]} if i in places else m for i, m in enumerate(messages)]
        )
        pattern = re.escape(rendered)
        for turn, place in places.items():
            content = messages[turn].get("content")
            exact = {content, content.strip()} if isinstance(content, str) else set()
            options = "|".join([*map(re.escape, sorted(exact, key=len, reverse=True)), ".*?"])
            pattern = pattern.replace(re.escape(place), f"(?P<turn{turn}>{options})", 1)
        found = re.fullmatch(pattern, text, re.DOTALL)
        if found is None or len(found.groups()) < len(turns):
            raise ModelError(
                "the chat template does not show which words are the assistant's: it writes a "
                "message otherwise once others follow. Put {% generation %}…{% endgeneration %} "
                "around the answers in it, or give the task a template of your own."
            )
        spans = []
        for start, end in (found.span(f"turn{turn}") for turn in turns):
            closing = [len(token) for token in self.special if text.startswith(token, end)]
            spans.append((start, end + max(closing, default=0)))
        return spans

    def _marked(
        self, messages: Sequence[Message], add_generation_prompt: bool = False, **variables: Any
    ) -> str:
        """The text, with marks around ``{% generation %}`` blocks."""
        # Templates look for keys, and write "None" where a value is null.
        plain = [{k: v for k, v in message.items() if v is not None} for message in messages]
        given = {"tools": None, "documents": None, **self.tokens, **variables}
        try:
            return self._template.render(
                messages=plain, add_generation_prompt=add_generation_prompt, **given
            )
        except (jinja2.TemplateError, TypeError, ValueError) as error:
            roles = ", ".join(str(message.get("role")) for message in plain)
            raise ModelError(
                f"the chat template refuses the messages of roles {roles or '(none)'}: {error}. "
                "Expected messages of {'role', 'content'} in an order that the model knows."
            ) from error

    @cached_property
    def _template(self) -> jinja2.Template:
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, ext.loopcontrols]
        )
        environment.filters["tojson"] = _to_json
        environment.globals["raise_exception"] = _refuse
        environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
        try:
            return environment.from_string(self.source)
        except jinja2.TemplateSyntaxError as error:
            raise ModelError(
                f"the chat template is no Jinja: {error} (line {error.lineno})."
            ) from error


class _Generation(ext.Extension):
    """``{% generation %}…{% endgeneration %}``: what the assistant writes."""

    tags = {"generation"}

    def parse(self, parser: Any) -> nodes.Node:
        """Returns the block with a mark on either side."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        begin, end = (nodes.Output([nodes.TemplateData(mark)]) for mark in (_BEGIN, _END))
        return nodes.Scope([begin, *body, end]).set_lineno(line)


def _unmarked(text: str) -> tuple[str, list[Span]]:
    """The text without marks, and what stood between them."""
    parts = re.split(f"[{_BEGIN}{_END}]", text)
    ends = [0]
    for part in parts:
        ends.append(ends[-1] + len(part))
    return "".join(parts), [(ends[i], ends[i + 1]) for i in range(1, len(parts), 2)]


def _to_json(value: Any, ensure_ascii: bool = False, **options: Any) -> str:
    """Jinja's own filter would escape HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, **options)


def _refuse(message: str) -> None:
    raise jinja2.TemplateError(message)
