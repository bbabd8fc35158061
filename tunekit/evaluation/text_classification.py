"""How well texts are classified."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from tunekit.data.examples import Source
from tunekit.evaluation.evaluate import collect_logits
from tunekit.evaluation.metrics import classification_metrics
from tunekit.tasks.text_classification import TextClassification
from tunekit.tasks.text_task import Outputs


def evaluate(
    task: TextClassification,
    source: Source,
    batches: Iterable[Mapping[str, Any]],
    outputs: Outputs,
) -> dict[str, Any]:
    """Returns the metrics of `classification_metrics` by name.

    Args:
        task: what was asked.
        source: the labelled texts.
        batches: the columns of all of them, in any order.
        outputs: from inputs to logits [B, C].

    Raises:
        DataError: there are no texts.
        ModelError: logits are not finite.
    """
    asked = ({**batch, "inputs": task.inputs(batch)} for batch in batches)
    logits, labels = collect_logits(outputs, asked, "inputs")
    return classification_metrics(
        logits, labels, task.label_names, multi_label=task.multi_label, top_k=task.top_k
    )
