"""The metrics of every task of texts, behind one door."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from tunekit.data.examples import Source
from tunekit.evaluation import (
    embedding,
    language_modelling,
    masked_lm,
    span_qa,
    text_classification,
    text_regression,
    token_classification,
)
from tunekit.tasks.registry import TEXT_TASKS
from tunekit.tasks.text_task import Outputs, TextTask

_BY_TASK: dict[str, Callable[..., dict[str, Any]]] = {
    "text_classification": text_classification.evaluate,
    "text_regression": text_regression.evaluate,
    "token_classification": token_classification.evaluate,
    "span_qa": span_qa.evaluate,
    "embedding": embedding.evaluate,
    "masked_lm": masked_lm.evaluate,
    "causal_lm": language_modelling.evaluate,
    "sft": language_modelling.evaluate,
}
_BY_CLASS = {TEXT_TASKS[name]: evaluate for name, evaluate in _BY_TASK.items()}


def evaluate(
    task: TextTask, source: Source, batches: Iterable[Mapping[str, Any]], outputs: Outputs
) -> dict[str, Any]:
    """Returns every metric of a task by name; numbers, and what JSON can hold.

    Args:
        task: what was asked.
        source: the examples.
        batches: of what the task prepared of them, in order.
        outputs: of the model, for a batch's inputs.
    """
    return _BY_CLASS[type(task)](task, source, batches, outputs)
