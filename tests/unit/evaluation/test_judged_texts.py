"""Every task on labelled texts: from rows as users write them to metrics."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from tests.unit.tasks.labelled_texts import batches_of, wordpiece
from tunekit.data.spec import DataSpec
from tunekit.data.text_source import open_text, open_text_examples
from tunekit.evaluation import (
    span_qa,
    text_classification,
    text_regression,
    token_classification,
)
from tunekit.tasks.span_qa import SpanQA
from tunekit.tasks.spec import (
    ClassificationSpec,
    RegressionSpec,
    SpanQASpec,
    TokenClassificationSpec,
)
from tunekit.tasks.text_classification import TextClassification
from tunekit.tasks.text_regression import TextRegression
from tunekit.tasks.token_classification import TokenClassification

TOKENIZER = wordpiece(("ada", "met", "bob", "good", "bad", "who"))
LABELLED = [{"text": "good", "label": "yes"}, {"text": "bad", "label": "no"}]
PAIRS = [
    {"sentence1": "good", "sentence2": "bad", "label": 0},
    {"sentence1": "ada", "sentence2": "bob", "label": 1},
]
SEVERAL = [{"text": "good", "labels": ["x", "y"]}, {"text": "bad", "labels": ["x"]}]
NUMBERS = [{"text": "good", "label": 4.5}, {"text": "bad", "label": 1}]
TAGGED = [
    {"tokens": ["Ada", "met", "Bob"], "tags": ["B-PER", "O", "B-PER"]},
    {"tokens": ["Bob"], "tags": ["I-PER"]},
]
FOUND = {"text": ["Ada"], "answer_start": [8]}
ANSWERED = [
    {"question": "Who?", "context": "Bob met Ada", "answers": FOUND},
    {"question": "Who met?", "context": "Ada met Bob", "answers": {"text": [], "answer_start": []}},
]
CASES: dict[str, Any] = {
    "classes": ("labelled", TextClassification, ClassificationSpec(), LABELLED),
    "pairs": ("labelled", TextClassification, ClassificationSpec(), PAIRS),
    "several": ("labelled", TextClassification, ClassificationSpec(), SEVERAL),
    "numbers": ("number", TextRegression, RegressionSpec(), NUMBERS),
    "tags": ("tagged", TokenClassification, TokenClassificationSpec(), TAGGED),
    "answers": ("answers", SpanQA, SpanQASpec(), ANSWERED),
}
JUDGES: dict[Any, Any] = {
    TextClassification: text_classification.evaluate,
    TextRegression: text_regression.evaluate,
    TokenClassification: token_classification.evaluate,
    SpanQA: span_qa.evaluate,
}


@pytest.mark.parametrize("case", CASES)
def test_rows_are_bound_encoded_and_judged(case: str) -> None:
    kind, cls, spec, rows = CASES[case]
    data = {"train": rows, "validation": rows}
    columns = DataSpec(on_duplicate="ignore")
    task = cls.bind(spec, open_text(data, columns, kind, seed=0))
    assert task.kind == kind
    source = open_text_examples(rows, task.label_names, columns, task.kind)
    prepared = task.prepared(source, TOKENIZER, 16, training=False, seed=0)

    def zeros(inputs: Any) -> np.ndarray:
        shape = np.shape(inputs["token_ids"])[: 1 if task.stands_on == "text" else 2]
        return np.zeros((*shape, len(task.label_names)), np.float32)

    metrics = JUDGES[cls](task, source, batches_of(prepared, task, TOKENIZER), zeros)
    assert {"loss", "examples", task.monitor} <= json.loads(json.dumps(metrics)).keys()
    assert metrics["examples"] == 2
    # Logits that say nothing cost as much as there is to choose from.
    choices = {"classes": 2, "pairs": 2, "several": 2, "tags": 3, "answers": 4}
    expected = np.log(choices[case]) if case in choices else 1.0
    assert metrics["loss"] == pytest.approx(expected, rel=1e-6)
