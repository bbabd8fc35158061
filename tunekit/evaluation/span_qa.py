"""How well questions are answered: exact match and F1 as SQuAD counts them."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from tunekit.data.examples import Source
from tunekit.evaluation.evaluate import Judging
from tunekit.tasks.answers import Candidates
from tunekit.tasks.span_qa import SpanQA
from tunekit.tasks.text_task import Outputs

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_MARKS = str.maketrans("", "", string.punctuation)


def evaluate(
    task: SpanQA,
    source: Source,
    batches: Iterable[Mapping[str, Any]],
    outputs: Outputs,
) -> dict[str, Any]:
    """Returns loss (mean over windows), exact_match, f1, windows and examples.

    Where some questions have no answer, also has_answer_exact_match and has_answer_f1 of those
    that have one, and no_answer_accuracy of the others.

    Args:
        task: what was asked.
        source: the questions, their contexts and answers.
        batches: the columns of all their windows, in any order.
        outputs: from inputs to logits [B, T, 2].

    Raises:
        DataError: there are no questions.
        ModelError: the loss is not finite.
    """
    judging = Judging(task, outputs)
    candidates = [Candidates() for _ in range(len(source))]
    for columns, logits in judging.rows(batches):
        candidates[int(columns["row"])].add(columns, logits, task.max_answer_tokens)
    loss = judging.loss()
    predicted, true = [], []
    for row, offered in enumerate(candidates):
        example = source[row]
        best = offered.answers(example["context"], may_be_empty=task.may_be_empty)[0]
        predicted.append(best.text)
        true.append([text for text, _ in example["answers"]])
    return {
        "loss": loss,
        **answer_metrics(predicted, true),
        "windows": round(judging.weight),
        "examples": len(true),
    }


def answer_metrics(predicted: Sequence[str], true: Sequence[Sequence[str]]) -> dict[str, Any]:
    """Returns exact_match and f1, 0 to 1, and those of questions with and without an answer.

    Args:
        predicted: "" says that there is no answer.
        true: the answers of each question, of which the nearest counts; empty where it has none.
    """
    pairs = list(zip(predicted, true, strict=True))
    exact = np.asarray([_best(exact_match, text, answers) for text, answers in pairs], float)
    f1 = np.asarray([_best(token_f1, text, answers) for text, answers in pairs], float)
    metrics = {"exact_match": float(exact.mean()), "f1": float(f1.mean())}
    answered = np.asarray([bool(answers) for answers in true])
    if not answered.all():
        metrics["no_answer_accuracy"] = float(exact[~answered].mean())
        if answered.any():
            metrics["has_answer_exact_match"] = float(exact[answered].mean())
            metrics["has_answer_f1"] = float(f1[answered].mean())
    return metrics


def _best(score: Any, predicted: str, true: Sequence[str]) -> float:
    # An answer of which nothing is left once normalised is no answer, as in SQuAD 2.0's script.
    answers = [text for text in true if normalised(text)] or [""]
    return max(float(score(predicted, text)) for text in answers)


def normalised(text: str) -> str:
    """Returns an answer in lower case, without marks, articles and needless white space.

    In this order, as the evaluation scripts of SQuAD 1.1 and 2.0 do it (Rajpurkar et al. 2016,
    https://arxiv.org/abs/1606.05250, section 6.1).
    """
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_MARKS)).split())


def exact_match(predicted: str, true: str) -> bool:
    """Returns whether two answers are equal once normalised."""
    return normalised(predicted) == normalised(true)


def token_f1(predicted: str, true: str) -> float:
    """Returns the F1 of the words that two normalised answers share, counted with repetition."""
    given, wanted = normalised(predicted).split(), normalised(true).split()
    if not given or not wanted:
        return float(given == wanted)
    same = (Counter(given) & Counter(wanted)).total()
    return 2 * same / (len(given) + len(wanted))
