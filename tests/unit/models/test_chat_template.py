"""Dialogues are written by the model's template, and its answers found whatever the template."""

from __future__ import annotations

import re
from datetime import datetime
from typing import Any

import pytest

from tunekit.errors import ModelError
from tunekit.models.chat_template import ChatTemplate

CHATML = """\
{% for message in messages %}
{{ '<|' + message.role + '|>' + message.content + '<end>' }}

{% endfor %}
{% if add_generation_prompt %}
{{ '<|assistant|>' }}
{%- endif %}
"""
ALTERNATING = """\
{{ bos_token }}{% for message in messages %}
{% if message.role == 'user' %}
{{ '[' + message.content + ']' }}
{%- else %}
{{ ' ' + message.content + ' ' + eos_token }}
{%- endif %}
{% endfor %}"""
THINKING = """\
{% for message in messages %}
{% set text = message.content %}
{% if message.role == 'assistant' and not loop.last and '</think>' in text %}
{% set text = text.split('</think>')[-1].strip() %}
{% endif %}
{{ '<|' + message.role + '|>' + text + '<end>' }}
{% endfor %}"""
LAST_ONLY = """\
{% if messages[-1].role != 'assistant' %}{{ raise_exception('no answer') }}{% endif %}
{% for message in messages %}
{{ message.role }}: {{ message.content | trim }}
{% endfor %}"""
HIDING = "{% for m in messages %}{{ m.content[:1] }}{% endfor %}!"


def template(source: str) -> ChatTemplate:
    return ChatTemplate(source, {"bos_token": "<s>", "eos_token": "<end>"}, ("<s>", "<end>"))


def dialogue(*contents: str) -> list[dict[str, Any]]:
    """Of the user's and the assistant's messages in turn."""
    roles = ("user", "assistant")
    return [{"role": roles[i % 2], "content": text} for i, text in enumerate(contents)]


def answers(source: str, messages: list[dict[str, Any]]) -> list[str]:
    text, spans = template(source).answers(messages)
    assert text == template(source).render(messages)
    return [text[start:end] for start, end in spans]


def test_an_answer_ends_with_the_token_that_ends_its_turn():
    messages = dialogue("Hi", "Hello ", "assistant", "a")
    assert answers(CHATML, messages) == ["Hello <end>", "a<end>"]
    assert answers(CHATML, dialogue("Hi")) == []


def test_a_template_without_a_prompt_of_its_own_has_answers_too():
    assert answers(ALTERNATING, dialogue("Hi", "Hello", "So", "x")) == [" Hello <end>", " x <end>"]


def test_a_template_that_changes_what_came_before_is_searched_for_the_answers():
    messages = dialogue("Hi", "<think>hm</think> Hello", "user", "<think>so</think> Bye")
    assert answers(THINKING, messages) == ["Hello<end>", "<think>so</think> Bye<end>"]


def test_an_answer_that_the_template_trims_is_found_where_prefixes_cannot_be_written():
    assert answers(LAST_ONLY, dialogue("a: b", " b ", "user", "b")) == ["b", "b"]


def test_answers_that_the_template_rewrites_are_found_by_what_stands_round_them():
    shouting = "{% for m in messages %}[{{ m.content | upper }}]{% endfor %}!"
    assert answers(shouting, dialogue("Hi", "Hello", "So", "x")) == ["HELLO", "X"]


def test_generation_blocks_decide_what_is_an_answer():
    marked = CHATML.replace(
        "message.content + '<end>' }}",
        "'' }}{% if message.role == 'assistant' %}{% generation %}{{ message.content }}"
        "{%- endgeneration %}{% else %}{{ message.content }}{% endif %}{{ '<end>' }}",
    )
    messages = dialogue("Hi", "Hello", "x", "")
    assert answers(marked, messages) == ["Hello", ""]
    assert template(marked).render(messages) == template(CHATML).render(messages)


def test_answers_that_cannot_be_told_apart_are_an_error_that_says_what_to_do():
    with pytest.raises(ModelError, match=r"which words are the assistant's.*{% generation %}"):
        template(HIDING).answers(dialogue("Hi", "Hello", "So", "x"))


def test_messages_that_the_template_refuses_are_named_with_its_reason():
    with pytest.raises(ModelError, match="refuses the messages of roles user: no answer"):
        template(LAST_ONLY).render(dialogue("Hi"))
    with pytest.raises(ModelError, match="refuses the messages of roles tool: .*no attribute"):
        template(CHATML).render([{"role": "tool", "content": None}])


def test_a_template_that_is_no_jinja_says_where():
    with pytest.raises(ModelError, match=re.escape("no Jinja: unexpected '}'") + ".*line 2"):
        template("a\n{{ messages }").render(dialogue("Hi"))


def test_a_template_can_reach_nothing_but_the_messages():
    for attack in (
        "{{ messages.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.append(1) }}",
        "{{ raise_exception.__globals__['jinja2'] }}",
    ):
        with pytest.raises(ModelError, match="refuses the messages.*(unsafe|undefined)"):
            template(attack).render(dialogue("Hi"))


def test_functions_filters_and_variables_are_those_of_transformers():
    source = "{{ strftime_now('%Y') }} {{ messages | tojson }} {{ tools is none }} {{ depth }}"
    text = template(source).render(dialogue("<é>"), depth=3)
    json = '[{"role": "user", "content": "<é>"}]'
    assert text == f"{datetime.now().year} {json} True 3"
    assert template("{{ [1] | tojson(indent=1) }}").render(dialogue("Hi")) == "[\n 1\n]"
