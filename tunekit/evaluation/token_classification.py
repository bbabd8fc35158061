"""How well words are tagged, and the entities that their tags mark are found."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

from tunekit.data.examples import Source
from tunekit.evaluation.evaluate import Judging
from tunekit.tasks.tags import OUTSIDE, Scheme, as_bilou
from tunekit.tasks.text_task import Outputs
from tunekit.tasks.token_classification import TokenClassification, word_logits

MISSING = -1
"""Stands for the tag of a word that was given none."""


def evaluate(
    task: TokenClassification,
    source: Source,
    batches: Iterable[Mapping[str, Any]],
    outputs: Outputs,
) -> dict[str, Any]:
    """Returns the metrics of the words' tags, and of entities where the tags mark any.

    loss (over the tokens that count in training), accuracy, words, words_missing (cut off by the
    longest length, or without a token: never right) and examples; then those of `entity_metrics`
    or of `word_metrics`.

    Args:
        task: what was asked.
        source: the tagged texts.
        batches: the columns of all of them, in any order.
        outputs: from inputs to logits [B, T, C].

    Raises:
        DataError: there are no tagged words, or all are cut off.
        ModelError: the loss is not finite.
    """
    judging = Judging(task, outputs)
    true: list[list[int]] = []
    given: list[list[int]] = []
    for columns, logits in judging.rows(batches):
        tags = [int(tag) for tag in source[int(columns["index"])]["tags"]]
        of_words = word_logits(len(tags), columns["first_pieces"], logits)
        true.append(tags)
        given.append([MISSING if row is None else int(np.argmax(row)) for row in of_words])
    loss = judging.loss()
    flat_true, flat_given = np.concatenate(true), np.concatenate(given)
    common = {
        "loss": loss,
        "accuracy": float((flat_true == flat_given).mean()),
        "words": len(flat_true),
        "words_missing": int((flat_given == MISSING).sum()),
        "examples": len(true),
    }
    if task.scheme == "none":
        return common | word_metrics(flat_true, flat_given, task.label_names)
    named = [
        [[task.label_names[tag] if tag != MISSING else OUTSIDE for tag in tags] for tags in texts]
        for texts in (true, given)
    ]
    return common | entity_metrics(*named, scheme=task.scheme)


def entity_metrics(
    true: Sequence[list[str]], given: Sequence[list[str]], *, scheme: Scheme
) -> dict[str, Any]:
    """Returns precision, recall and f1 of entities (micro), per_class and label_names, by seqeval.

    BIO counts as conlleval does, BILOU strictly. `None` where there is no entity, true or given.

    Args:
        true: the tags of each text's words.
        given: as many, given by the model.
        scheme: "bio" or "bilou".
    """
    from seqeval.metrics.sequence_labeling import (
        get_entities,
        precision_recall_fscore_support,
    )
    from seqeval.metrics.v1 import precision_recall_fscore_support as strict
    from seqeval.scheme import BILOU, Entities

    score: Any
    options: dict[str, Any] = {"zero_division": 0}
    if scheme == "bio":
        texts = [list(true), list(given)]
        types = {label for tags in texts for label, _, _ in get_entities(tags)}
        score = precision_recall_fscore_support
    else:
        texts = [[as_bilou(tags) for tags in side] for side in (true, given)]
        types = set[str]().union(*(Entities(side, BILOU).unique_tags for side in texts))
        score, options = strict, {**options, "scheme": BILOU}
    names = sorted(types)
    if not names:
        # seqeval fails where there is nothing at all.
        return {"precision": None, "recall": None, "f1": None, "per_class": {}, "label_names": []}
    precision, recall, f1, _ = score(*texts, average="micro", **options)
    rows = zip(*score(*texts, average=None, **options), strict=True)
    return {
        "precision": float(precision),
        "recall": float(recall),
        "f1": float(f1),
        "per_class": _per_class(names, rows),
        "label_names": names,
    }


def word_metrics(true: np.ndarray, given: np.ndarray, label_names: Sequence[str]) -> dict[str, Any]:
    """Returns precision_macro, recall_macro, f1_macro, per_class, confusion_matrix, label_names.

    A tag without a word takes no part in a macro average, and is among absent_labels; words
    without a tag given are not in the confusion matrix.

    Args:
        true: [N] numbers of tags.
        given: [N], MISSING where there is none.
        label_names: of the tags.
    """
    every = np.arange(len(label_names))
    zero: Any = 0  # sklearn's annotation knows words alone.
    scores: Any = precision_recall_fscore_support(true, given, labels=every, zero_division=zero)
    present = scores[3] > 0
    tagged = given != MISSING
    names = ("precision_macro", "recall_macro", "f1_macro")
    matrix = np.zeros((len(every), len(every)), int)
    if tagged.any():
        matrix = confusion_matrix(true[tagged], given[tagged], labels=every)
    return {
        **{name: float(score[present].mean()) for name, score in zip(names, scores, strict=False)},
        "per_class": _per_class(label_names, zip(*scores, strict=True)),
        "confusion_matrix": matrix.tolist(),
        "label_names": list(label_names),
        "absent_labels": [n for n, here in zip(label_names, present, strict=True) if not here],
    }


def _per_class(names: Sequence[str], rows: Iterable[Any]) -> dict[str, dict[str, Any]]:
    """Precision, recall, F1 and support by name; None throughout where there are no examples."""
    keys = ("precision", "recall", "f1")
    return {
        name: {
            **{k: float(x) if support else None for k, x in zip(keys, scores, strict=True)},
            "support": int(support),
        }
        for name, (*scores, support) in zip(names, rows, strict=True)
    }
