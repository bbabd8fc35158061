"""A text as the model gets it, and which of its tokens are trained on: to be looked at."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np

from tunekit.models.tokenizing import Tokenizer
from tunekit.tasks.language_modelling import LanguageModelling
from tunekit.tasks.text_task import TextTask

MOST_TOKENS = 600
"""Of a view; the rest is counted."""
_BETWEEN = " ⇄ "


@dataclass(frozen=True)
class Run:
    """Neighbouring tokens that are alike."""

    text: str
    trained: bool
    """Whether they are in the loss: the model learns to give them, or to label them."""
    special: bool
    """Whether they are no text, such as <|im_end|> and [SEP]."""


@dataclass(frozen=True)
class View:
    """One example."""

    name: str
    """What messages call it: its file and line."""
    note: str
    """What is asked of it, and what is not shown; may be empty."""
    runs: tuple[Run, ...]


def token_view(
    task: TextTask, example: Mapping[str, Any], tokenizer: Tokenizer, max_length: int
) -> View:
    """Returns an example of the task's prepared source as the task encodes it."""
    columns = task.encoder(tokenizer, max_length)(dict(example), np.random.default_rng(0))
    texts = columns["token_ids"]
    if isinstance(texts, tuple):
        parts = [_runs(ids, np.zeros(len(ids), bool), tokenizer) for ids in texts]
        between = Run(_BETWEEN, trained=False, special=True)
        runs = [run for part in parts for run in (between, *part)][1:]
        return View(str(example["id"]), _note(task, example), tuple(runs))
    trained = trained_tokens(task, columns)
    notes = [_note(task, example)]
    if example.get("answers") and not trained.any():
        notes.append("which is not in this piece")
    if len(texts) == max_length:
        notes.append(f"{max_length} tokens, as many as fit")
    if len(texts) > MOST_TOKENS:
        notes.append(f"{len(texts) - MOST_TOKENS} more tokens are not shown")
    runs = _runs(texts[:MOST_TOKENS], trained[:MOST_TOKENS], tokenizer)
    return View(str(example["id"]), ", ".join(filter(None, notes)), tuple(runs))


def trained_tokens(task: TextTask, columns: Mapping[str, np.ndarray]) -> np.ndarray:
    """Returns which tokens are in the loss, bool [T]: those to be given, to be found, to be tagged.

    Args:
        task: whose loss it is.
        columns: of one example, as its encoder gives them.
    """
    trained = np.zeros(len(columns["token_ids"]), bool)
    if "start" in columns:
        start, end = int(columns["start"]), int(columns["end"])
        trained[start : end + 1] = (start, end) != (0, 0)
        return trained
    weights = columns.get("loss_weights", columns.get("token_weights"))
    if weights is None:
        return trained
    if isinstance(task, LanguageModelling):  # A weight there is of the token that comes next.
        trained[1:] = weights[:-1] > 0
        return trained
    return np.asarray(weights) > 0


def _runs(ids: np.ndarray, trained: np.ndarray, tokenizer: Tokenizer) -> list[Run]:
    special = np.isin(ids, np.fromiter(tokenizer.special_ids, np.int64))
    kinds = list(zip(trained.tolist(), special.tolist(), strict=True))
    found, stop, before = [], 0, ""
    for (is_trained, is_special), group in groupby(kinds):
        stop += len(list(group))
        # Decoded from the beginning: what stands between two tokens depends on both.
        so_far = tokenizer.decode(ids[:stop], special=True)
        text = so_far[len(before) :] if so_far.startswith(before) else so_far.rsplit(" ", 1)[-1]
        found.append(Run(text, is_trained, is_special))
        before = so_far
    return found


def _note(task: TextTask, example: Mapping[str, Any]) -> str:
    if "answers" in example:
        answers = [text for text, _ in example["answers"]]
        return f"answer: {answers[0]}" if answers else "without an answer"
    if example.get("score") is not None:
        return f"score {example['score']:g}"
    label = example.get("label")
    if label is None:
        return ""
    if task.multi_label:
        names = [task.label_names[i] for i in np.flatnonzero(label)]
        return f"labels: {', '.join(names) or 'none'}"
    named = isinstance(label, int) and label < len(task.label_names)
    return f"label: {task.label_names[label]}" if named else f"label {label:g}"
