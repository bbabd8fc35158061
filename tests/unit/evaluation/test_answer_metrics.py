"""Exact match and F1 of answers, as the evaluation scripts of SQuAD count them."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from tests.unit.tasks.labelled_texts import Texts, batches_of
from tests.unit.tasks.questions import (
    CONTEXT,
    EMPTY,
    LONDON,
    LOVELACE,
    NOWHERE,
    TASK,
    TOKENIZER,
    pointing,
)
from tunekit.errors import DataError, ModelError
from tunekit.evaluation.span_qa import answer_metrics, evaluate, exact_match, normalised, token_f1


def judged(examples, task, outputs, max_length=16):
    source = Texts(examples)
    windows = task.prepared(source, TOKENIZER, max_length, training=False, seed=0)
    return evaluate(task, source, batches_of(windows, task, TOKENIZER, max_length, 3), outputs)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The  Eiffel Tower!", "eiffel tower"),
        ("an apple a day", "apple day"),
        ("Theatre", "theatre"),
        ("U.S.", "us"),
        ("the-cat", "thecat"),
        ("10,000", "10000"),
        ("a", ""),
        ("Zürich's", "zürichs"),
        ("“quoted”", "“quoted”"),
    ],
)
def test_answers_are_normalised_as_squads_script_does(text, expected):
    assert normalised(text) == expected


@pytest.mark.parametrize(
    ("predicted", "true", "exact", "f1"),
    [
        ("1976", "1976", True, 1.0),
        ("Denver Broncos", "The Denver Broncos", True, 1.0),
        ("Santa Clara", "Santa Clara, California", False, 0.8),
        ("a dog", "the cat", False, 0.0),
        ("to be or not to be", "to be", False, 0.5),
        ("", "", True, 1.0),
        ("", "cat", False, 0.0),
        ("the", "cat", False, 0.0),
        ("the", "a", True, 1.0),
    ],
)
def test_exact_match_and_f1_of_two_answers(predicted, true, exact, f1):
    assert exact_match(predicted, true) == exact
    assert token_f1(predicted, true) == pytest.approx(f1)


def test_the_nearest_of_several_answers_counts():
    metrics = answer_metrics(["Santa Clara"], [["Levi's Stadium", "Santa Clara, California"]])
    assert metrics == {"exact_match": 0.0, "f1": pytest.approx(0.8)}


def test_questions_with_and_without_an_answer_are_also_judged_apart():
    metrics = answer_metrics(["cat", "", "dog"], [["a cat"], [], []])
    assert metrics == {
        "exact_match": pytest.approx(2 / 3),
        "f1": pytest.approx(2 / 3),
        "no_answer_accuracy": 0.5,
        "has_answer_exact_match": 1.0,
        "has_answer_f1": 1.0,
    }
    assert answer_metrics([""], [[]]) == {
        "exact_match": 1.0,
        "f1": 1.0,
        "no_answer_accuracy": 1.0,
    }


def test_an_answer_that_is_an_article_alone_counts_as_none():
    assert answer_metrics([""], [["the"]])["exact_match"] == 1.0


@pytest.mark.parametrize("max_length", [10, 16])
def test_answers_are_judged_over_all_windows(max_length):
    metrics = judged([LOVELACE, LONDON], TASK, pointing("in", "london"), max_length)
    # "in London" shares one of two words with "London", none with "Ada Lovelace".
    assert (metrics["exact_match"], metrics["f1"]) == (0.0, pytest.approx(1 / 3))
    assert metrics["examples"] == 2
    assert metrics["windows"] == (2 if max_length == 16 else 5)
    assert TASK.monitor in metrics
    json.dumps(metrics)


def test_the_loss_is_the_mean_over_windows():
    even = judged([LONDON], TASK, lambda x: np.zeros((*np.shape(x["token_ids"]), 2), np.float32))
    assert even["loss"] == pytest.approx(np.log(9), rel=1e-6)


def test_no_answer_is_right_where_there_is_none():
    outputs = pointing("ada", "##lace", none=5.0)
    metrics = judged([LOVELACE, NOWHERE], EMPTY, outputs)
    assert (metrics["has_answer_f1"], metrics["no_answer_accuracy"]) == (1.0, 0.0)
    silent = judged([LOVELACE, NOWHERE], EMPTY, pointing("ada", "##lace", none=7.0))
    assert (silent["has_answer_f1"], silent["no_answer_accuracy"]) == (0.0, 1.0)
    assert judged([NOWHERE], replace(EMPTY, may_be_empty=False), outputs)["f1"] == 0.0


def test_the_answer_to_every_question_stands_in_its_context():
    assert CONTEXT[25 : 25 + len("London")] == "London"
    metrics = judged([LONDON], TASK, pointing("london", "london"))
    assert (metrics["exact_match"], metrics["f1"]) == (1.0, 1.0)


def test_nothing_to_evaluate_is_an_error():
    with pytest.raises(DataError, match="at least one example to evaluate on"):
        evaluate(TASK, Texts([]), [], pointing("ada", "ada"))


def test_logits_that_are_not_finite_are_refused():
    outputs = pointing("ada", "ada", none=np.nan)
    with pytest.raises(ModelError, match="the loss is not finite"):
        judged([LONDON], TASK, outputs)
