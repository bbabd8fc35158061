"""A dialogue in the terminal, with a small model that answers in random letters."""

from __future__ import annotations

import argparse
import io
from typing import Any

import pytest
from rich.console import Console

from tests.unit.byte_writer import model, tokenizer
from tests.unit.methods import texts
from tunekit.cli_chat import Session, add_arguments, converse
from tunekit.errors import ModelError, TunekitError
from tunekit.generate import generate
from tunekit.methods.spec import LoRA
from tunekit.models.hub import keras_hub
from tunekit.models.loading import load_model

NEW = 12


def session(**fields: Any) -> Session:
    return Session(model(), None, {"max_new_tokens": NEW, "seed": 0}, **fields)


@pytest.fixture
def say(monkeypatch):
    """What is shown when the user says these lines."""

    def said(talk: Session, *lines: str, **options: Any) -> str:
        monkeypatch.setattr("sys.stdin", io.StringIO("".join(f"{line}\n" for line in lines)))
        shown = io.StringIO()
        converse(talk, Console(file=shown, width=120), **options)
        return shown.getvalue()

    return said


@pytest.fixture
def adapted():
    """The model has an adapter that changes its answers."""
    own = model().add_adapter("own", LoRA(rank=2))
    for variable in own.adapters["own"].adapter.variables.values():
        if variable.trainable:
            variable.assign(variable + 1.0)
    yield
    own.remove_adapter("own")


def test_an_answer_is_what_generate_gives_and_is_remembered(say):
    talk = session(system="s")
    shown = say(talk, "hi")
    messages = [{"role": "system", "content": "s"}, {"role": "user", "content": "hi"}]
    answer = generate(model(), messages, max_new_tokens=NEW)
    assert answer.strip() in shown
    assert talk.turns == [messages[1], {"role": "assistant", "content": answer}]
    say(talk, "a")
    assert len(talk.turns) == 4


def test_reset_and_system_begin_anew(say):
    talk = session()
    assert "A new dialogue." in say(talk, "hi", "/reset")
    assert talk.turns == []
    assert "with system message" in say(talk, "hi", "/system Be brief.")
    assert (talk.system, talk.turns) == ("Be brief.", [])
    say(talk, "/system")
    assert talk.system is None


def test_the_oldest_turns_are_forgotten_when_the_model_is_full(say):
    talk = session()  # 48 tokens
    say(talk, "abcdefgh", "ijklmnop", "qrstuvwx")
    assert talk.turns[-2]["content"] == "qrstuvwx"
    assert len(talk.turns) < 6


def test_base_and_tuned_model_answer_one_in_place_of_the_other(say, adapted):
    talk = session()
    shown = say(talk, "hi", "/base", "/reset", "hi")
    assert "The base answers." in shown
    with model().adapters_disabled():
        base = generate(model(), "hi", max_new_tokens=NEW)
    assert talk.turns[-1]["content"] == base != generate(model(), "hi", max_new_tokens=NEW)
    assert "The tuned model answers." in say(talk, "/base")


def test_base_and_tuned_model_answer_beside_each_other(say, adapted):
    talk = session()
    shown = say(talk, "hi", compare=True)
    assert shown.index("base") < shown.index("tuned")
    assert talk.turns[-1]["content"] == generate(model(), "hi", max_new_tokens=NEW)
    assert shown.count("┃") == 3


def test_without_an_adapter_there_is_no_base(say):
    assert "there is no base beside this model" in say(session(), "/base")
    with pytest.raises(TunekitError, match="no base beside this model"):
        say(session(), "hi", compare=True)


def test_an_unknown_command_is_not_sent_to_the_model(say):
    talk = session()
    shown = say(talk, "/rest", "/help", "/quit", "hi")
    assert "no such command: /rest." in shown
    assert "/reset" in shown and "begin anew" in shown
    assert talk.turns == []


def test_a_line_that_cannot_be_answered_is_said_and_forgotten(say):
    talk = session()
    assert "more than the 48" in say(talk, "x" * 60)
    assert talk.turns == []


def test_a_model_without_a_chat_template_goes_on_from_each_line(say, monkeypatch):
    talk = session()
    monkeypatch.setattr(talk, "tokenizer", tokenizer(None))
    assert "It has no chat template" in say(talk)


def test_a_model_that_cannot_talk_is_refused():
    with pytest.raises(ModelError, match="no causal language model"):
        Session(load_model(texts.NETWORKS["bert"]()), None, {})
    with pytest.raises(ModelError, match="reads no text"):
        Session(load_model(keras_hub().models.LlamaCausalLM(texts.NETWORKS["llama"]())), None, {})


def test_the_command_s_options_have_the_names_of_generate():
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    args = parser.parse_args(["out/", "--top-k", "5", "--temperature", "0.7", "--compare"])
    assert (args.model, args.top_k, args.temperature, args.compare) == ("out/", 5, 0.7, True)
    assert (args.max_new_tokens, args.top_p, args.seed) == (256, 1.0, 0)
