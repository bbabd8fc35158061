"""The second half of SetFit: a classifier on vectors that contrast has set apart."""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.linear_model import LogisticRegression

from tunekit.data.sequences import SequenceBatches, buckets
from tunekit.errors import DataError
from tunekit.models.model import Model
from tunekit.models.spec import HeadSpec
from tunekit.models.tokenizing import Tokenizer
from tunekit.tasks.contrast import pooled_states
from tunekit.tasks.embedding import EmbeddingTask
from tunekit.tasks.text_classification import TextClassification
from tunekit.tasks.text_task import Outputs

_MAX_ITERATIONS = 1000


def fit_head(
    model: Model,
    task: EmbeddingTask,
    source: Any,
    outputs: Outputs,
    tokenizer: Tokenizer,
    max_length: int,
    *,
    batch_size: int = 32,
) -> TextClassification:
    """Puts a linear head on the model, fitted to the vectors of labelled texts.

    Logistic regression with scikit-learn's own penalty, as Tunstall et al. 2022
    (https://arxiv.org/abs/2209.11055) have it, on pooled states divided by their mean length: one
    factor, which the kernel takes up, so that the head is an ordinary linear one.

    Args:
        model: gets the head, with the labels of `source`.
        task: what the vectors were trained for; says how they are pooled.
        source: of labelled texts, one label each: those that training drew its pairs from.
        outputs: the model's hidden states [B, T, D] of a batch's inputs.
        tokenizer: of the model.
        max_length: most tokens of a text.
        batch_size: texts at a time.

    Returns:
        The task that the model can do now.

    Raises:
        DataError: texts have several labels, or a label has no text.
    """
    names, labels = tuple(source.label_names), np.asarray(source.label_array)
    _check(names, labels)
    vectors = _pooled(task, source, outputs, tokenizer, max_length, batch_size)
    length = np.linalg.norm(vectors, axis=-1).mean()
    regression = LogisticRegression(max_iter=_MAX_ITERATIONS).fit(vectors / length, labels)
    kernel, bias = regression.coef_.T / length, regression.intercept_
    if len(names) == 2:  # One column, the logit of the second against the first.
        kernel, bias = kernel * [-0.5, 0.5], bias * [-0.5, 0.5]
    model.replace_head(names, HeadSpec(pooling=task.pooling), keep=False, multi_label=False)
    variables = model.variables()
    variables["heads/label/logits/kernel"].assign(kernel)
    variables["heads/label/logits/bias"].assign(bias)
    return TextClassification(names)


def _check(names: tuple[str, ...], labels: np.ndarray) -> None:
    if labels.ndim != 1:
        raise DataError(
            "a head on embeddings gives each text one label, and these texts have several; "
            "train it by task: text_classification."
        )
    empty = [name for i, name in enumerate(names) if not (labels == i).any()]
    if empty or len(names) < 2:
        raise DataError(
            "a head on embeddings is fitted to texts of every label, 2 labels at least; got "
            f"{len(names)} and no text of {', '.join(empty) or 'a second one'}."
        )


def _pooled(
    task: EmbeddingTask,
    source: Any,
    outputs: Outputs,
    tokenizer: Tokenizer,
    max_length: int,
    batch_size: int,
) -> np.ndarray:
    """Pooled hidden states of every text, float32 [N, D]."""
    batches = SequenceBatches(
        source,
        task.encoder(tokenizer, max_length),
        batch_size=min(batch_size, len(source)),
        seed=0,
        shuffle=False,
        buckets=buckets(max_length),
        pad_id=tokenizer.pad_id,
    )
    found: dict[int, np.ndarray] = {}
    for batch in batches.epoch(0):
        inputs = task.inputs(batch)
        rows = np.asarray(pooled_states(outputs(inputs), inputs["padding_mask"], task.pooling))
        found |= {
            int(index): row
            for index, row, weight in zip(batch["index"], rows, batch["weight"], strict=True)
            if weight > 0
        }
    return np.stack([found[place] for place in range(len(source))])
