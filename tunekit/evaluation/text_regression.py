"""How near the numbers given to texts are to the true ones, in the unit of the data."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import r2_score

from tunekit.data.examples import Source
from tunekit.evaluation.evaluate import Judging
from tunekit.tasks.text_regression import TextRegression
from tunekit.tasks.text_task import Outputs


def evaluate(
    task: TextRegression,
    source: Source,
    batches: Iterable[Mapping[str, Any]],
    outputs: Outputs,
) -> dict[str, Any]:
    """Returns loss (in standard deviations, as in training), mse, rmse, mae, r2, pearson, spearman.

    r2 and the correlations are `None` where the data, or equal predictions, leave them undefined.

    Args:
        task: what was asked.
        source: the texts and their numbers.
        batches: the columns of all of them, in any order.
        outputs: from inputs to standardised numbers [B, 1].

    Raises:
        DataError: there are no texts.
        ModelError: the loss is not finite.
    """
    judging = Judging(task, outputs)
    pairs = [(row[0], columns["target"]) for columns, row in judging.rows(batches)]
    loss = judging.loss()
    given, true = task.numbers(np.asarray(pairs)).T
    return {"loss": loss, **regression_metrics(given, true)}


def regression_metrics(predicted: np.ndarray, true: np.ndarray) -> dict[str, Any]:
    """Returns mse, rmse, mae, r2, pearson, spearman and the number of examples.

    Args:
        predicted: [N].
        true: [N].
    """
    residual = predicted - true
    mse = float(np.mean(np.square(residual)))
    spread = [len(set(values.tolist())) > 1 for values in (true, predicted)]

    def correlation(measure: Any) -> float | None:
        return float(measure(predicted, true)[0]) if all(spread) else None

    return {
        "mse": mse,
        "rmse": mse**0.5,
        "mae": float(np.mean(np.abs(residual))),
        "r2": float(r2_score(true, predicted)) if spread[0] else None,
        "pearson": correlation(pearsonr),
        "spearman": correlation(spearmanr),
        "examples": len(true),
    }
