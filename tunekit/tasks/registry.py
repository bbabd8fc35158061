"""Every task of texts by its name in a recipe, and back from a file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, fields
from typing import Any

from tunekit.tasks.embedding import EmbeddingTask
from tunekit.tasks.image_classification import ImageClassification
from tunekit.tasks.language_modelling import LanguageModelling
from tunekit.tasks.masked_lm import MaskedLM
from tunekit.tasks.span_qa import SpanQA
from tunekit.tasks.text_classification import TextClassification
from tunekit.tasks.text_regression import TextRegression
from tunekit.tasks.text_task import TextTask
from tunekit.tasks.token_classification import TokenClassification

Task = ImageClassification | TextTask

TEXT_TASKS: dict[str, Any] = {
    "text_classification": TextClassification,
    "text_regression": TextRegression,
    "token_classification": TokenClassification,
    "span_qa": SpanQA,
    "embedding": EmbeddingTask,
    "masked_lm": MaskedLM,
    "causal_lm": LanguageModelling,
    "sft": LanguageModelling,
}
"""By the name in a recipe."""
_BY_CLASS = {cls.__name__: cls for cls in (*TEXT_TASKS.values(), ImageClassification)}


def to_json(task: Task) -> dict[str, Any]:
    """Returns the task's fields, and what it is under "task"."""
    return {"task": type(task).__name__, **asdict(task)}  # pyright: ignore[reportArgumentType]


def from_json(description: Mapping[str, Any]) -> Task:
    """Returns the task that `to_json` gave; lists become the tuples that they were."""
    given = dict(description)
    # Before there were other tasks, a save did not say which one it was of.
    cls = _BY_CLASS[given.pop("task", "ImageClassification")]
    known = {field.name for field in fields(cls)}
    return cls(**{name: _tuples(value) for name, value in given.items() if name in known})


def _tuples(value: Any) -> Any:
    return tuple(_tuples(item) for item in value) if isinstance(value, list) else value
