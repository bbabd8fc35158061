from __future__ import annotations

import json
from dataclasses import asdict, replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import mean_absolute_error, mean_squared_error, r2_score

from tests.unit.tasks.labelled_texts import batches_of, labelled, splits, wordpiece
from tunekit.errors import DataError, ModelError
from tunekit.evaluation.text_regression import evaluate, regression_metrics
from tunekit.tasks.spec import RegressionSpec
from tunekit.tasks.text_regression import TextRegression

TOKENIZER = wordpiece(("one", "two", "three", "and"))
TASK = TextRegression(mean=10.0, deviation=4.0)
TEXTS = labelled(["one", "two two", "three and one", "and"], [2.0, 6.5, 14.0, 11.0])


def lengths(inputs):
    """The number of tokens of each text, a little off zero, as standardised numbers [B, 1]."""
    return np.asarray(inputs["padding_mask"]).sum(axis=1, keepdims=True).astype(np.float32) - 3.5


def batch_of(targets, weight=None):
    targets = jnp.asarray(targets, jnp.float32)
    return {"target": targets, "weight": jnp.ones(len(targets)) if weight is None else weight}


def test_targets_are_standardised_by_the_training_numbers():
    task = TextRegression.bind(RegressionSpec(loss="huber"), splits(TEXTS))
    numbers = TEXTS.label_array
    assert (task.mean, task.deviation) == pytest.approx((numbers.mean(), numbers.std()))
    encode = task.encoder(TOKENIZER, 16)
    targets = [float(encode(example, None)["target"]) for example in TEXTS.examples]
    assert (np.mean(targets), np.std(targets)) == pytest.approx((0, 1), abs=1e-6)
    assert task.numbers(np.asarray(targets)) == pytest.approx(numbers, rel=1e-6)


def test_a_small_spread_far_from_zero_is_kept():
    years = labelled(["one", "two"], [1e9, 1e9 + 1])
    task = TextRegression.bind(RegressionSpec(), splits(years))
    encode = task.encoder(TOKENIZER, 16)
    assert [float(encode(example, None)["target"]) for example in years.examples] == [-1.0, 1.0]


def test_equal_numbers_leave_nothing_to_learn():
    with pytest.raises(DataError, match="every training text has the number 3"):
        TextRegression.bind(RegressionSpec(), splits(labelled(["one", "two"], [3.0, 3.0])))


@pytest.mark.parametrize(
    ("error", "expected"),
    [("mse", 0.25 + 9.0), ("mae", 0.5 + 3.0), ("huber", 0.125 + 2.5)],
)
def test_each_loss_is_its_formula(error, expected):
    task = replace(TASK, error=error)
    total, weight = task.loss(jnp.asarray([[0.5], [-3.0]]), batch_of([0.0, 0.0]))
    assert (float(total), float(weight)) == pytest.approx((expected, 2.0))


@pytest.mark.parametrize("error", ["mse", "mae", "huber"])
def test_padded_rows_give_no_loss_and_no_gradient_even_when_nan(error):
    task = replace(TASK, error=error)
    outputs = jnp.asarray([[1.0], [jnp.nan]])
    batch = batch_of([0.0, 0.0], jnp.asarray([1.0, 0.0]))
    total, weight = task.loss(outputs, batch)
    gradient = jax.grad(lambda x: task.loss(x, batch)[0])(outputs)
    assert (bool(jnp.isfinite(total)), float(weight), float(gradient[1, 0])) == (True, 1.0, 0.0)
    assert float(gradient[0, 0]) > 0


def test_metrics_are_scikit_learns_and_scipys_in_the_unit_of_the_data():
    metrics = evaluate(TASK, TEXTS, batches_of(TEXTS, TASK, TOKENIZER, batch_size=3), lengths)
    true = TEXTS.label_array
    predicted = np.asarray([-0.5, 0.5, 1.5, -0.5]) * 4 + 10
    expected = {
        "mse": mean_squared_error(true, predicted),
        "rmse": mean_squared_error(true, predicted) ** 0.5,
        "mae": mean_absolute_error(true, predicted),
        "r2": r2_score(true, predicted),
        "pearson": pearsonr(true, predicted)[0],
        "spearman": spearmanr(true, predicted)[0],
    }
    assert {name: metrics[name] for name in expected} == pytest.approx(expected, rel=1e-6)
    assert metrics["loss"] == pytest.approx(expected["mse"] / 16, rel=1e-6)
    assert metrics["examples"] == 4
    assert TASK.monitor in metrics
    json.dumps(metrics)


def test_correlations_of_equal_predictions_are_undefined():
    metrics = regression_metrics(np.ones(3), np.asarray([1.0, 2.0, 3.0]))
    assert (metrics["pearson"], metrics["spearman"]) == (None, None)
    assert metrics["r2"] == pytest.approx(-1.5)
    assert regression_metrics(np.ones(1), np.ones(1))["r2"] is None


def test_numbers_that_are_not_finite_are_refused():
    batches = batches_of(TEXTS, TASK, TOKENIZER)
    with pytest.raises(ModelError, match="the loss is not finite"):
        evaluate(TASK, TEXTS, batches, lambda inputs: lengths(inputs) * np.nan)


def test_nothing_to_evaluate_is_an_error():
    with pytest.raises(DataError, match="at least one example to evaluate on"):
        evaluate(TASK, TEXTS, [], lengths)


def test_predictions_are_in_the_unit_and_order_of_the_texts():
    found = TASK.predict(["one and two and one", "one"], TOKENIZER, 16, lengths)
    assert [p.value for p in found] == pytest.approx([24.0, 8.0])
    assert str(found[1]) == "one: 8"
    assert found[1].to_json() == {"value": 8.0, "id": "one"}


def test_a_task_survives_json():
    task = TextRegression.bind(RegressionSpec(), splits(TEXTS))
    assert TextRegression(**json.loads(json.dumps(asdict(task)))) == task
    assert (task.label_names, task.multi_label) == (("value",), False)
