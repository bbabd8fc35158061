from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from scipy.special import expit, softmax
from sklearn import metrics as sk

from tunekit.errors import DataError, ModelError
from tunekit.evaluation.metrics import classification_metrics, expected_calibration_error

NAMES = ("cat", "dog", "emu", "fox")
RNG = np.random.default_rng(0)
LOGITS = RNG.normal(0, 2, (200, 4))
LABELS = np.where(RNG.random(200) < 0.5, LOGITS.argmax(1), RNG.integers(0, 4, 200))
MANY = (LOGITS + RNG.normal(0, 2, LOGITS.shape) > 0).astype(np.float32)


def one(labels=LABELS, logits=LOGITS, **kwargs):
    return classification_metrics(logits, labels, NAMES, **kwargs)


def many(labels=MANY, logits=LOGITS):
    return classification_metrics(logits, labels, NAMES, multi_label=True)


def test_one_label_metrics_are_scikit_learns():
    found, p, predicted = one(top_k=2), softmax(LOGITS, axis=1), LOGITS.argmax(1)
    expected = {
        "loss": sk.log_loss(LABELS, p),
        "accuracy": sk.accuracy_score(LABELS, predicted),
        "top_k_accuracy": sk.top_k_accuracy_score(LABELS, LOGITS, k=2),
        "precision_macro": sk.precision_score(LABELS, predicted, average="macro"),
        "recall_macro": sk.recall_score(LABELS, predicted, average="macro"),
        "f1_macro": sk.f1_score(LABELS, predicted, average="macro"),
        "auc": sk.roc_auc_score(LABELS, p, multi_class="ovr", average="macro"),
    }
    assert {name: found[name] for name in expected} == pytest.approx(expected)
    assert found["confusion_matrix"] == sk.confusion_matrix(LABELS, predicted).tolist()


def test_per_class_rows_are_scikit_learns_report():
    report: Any = sk.classification_report(
        LABELS, LOGITS.argmax(1), target_names=NAMES, output_dict=True
    )
    for name, row in one()["per_class"].items():
        expected = {key.replace("f1-score", "f1"): value for key, value in report[name].items()}
        assert row == pytest.approx(expected)


def test_two_classes_have_the_auc_of_the_second():
    labels, logits = (LABELS > 1).astype(int), LOGITS[:, :2]
    found = classification_metrics(logits, labels, NAMES[:2])
    assert found["auc"] == pytest.approx(sk.roc_auc_score(labels, softmax(logits, axis=1)[:, 1]))


def test_multi_label_metrics_are_scikit_learns():
    found, p, predicted = many(), expit(LOGITS), (LOGITS >= 0).astype(int)
    expected = {
        "loss": np.mean([sk.log_loss(MANY[:, c], p[:, c]) for c in range(4)]),
        "accuracy": sk.accuracy_score(MANY, predicted),
        "mean_average_precision": sk.average_precision_score(MANY, p, average="macro"),
        "precision_macro": sk.precision_score(MANY, predicted, average="macro"),
        "recall_macro": sk.recall_score(MANY, predicted, average="macro"),
        "f1_micro": sk.f1_score(MANY, predicted, average="micro"),
        "f1_macro": sk.f1_score(MANY, predicted, average="macro"),
        "auc": sk.roc_auc_score(MANY, p, average="macro"),
    }
    assert {name: found[name] for name in expected} == pytest.approx(expected)


def test_a_class_absent_from_the_data_is_named_and_left_out_of_the_averages():
    keep = LABELS != 2
    labels, logits = LABELS[keep], LOGITS[keep]
    found = one(labels, logits)
    assert found["absent_labels"] == ["emu"]
    assert found["per_class"]["emu"] == {
        "precision": None,
        "recall": None,
        "f1": None,
        "support": 0,
    }
    assert found["recall_macro"] == pytest.approx(
        sk.recall_score(labels, logits.argmax(1), labels=[0, 1, 3], average="macro")
    )
    p = softmax(logits, axis=1)
    expected = np.mean([sk.roc_auc_score(labels == c, p[:, c]) for c in (0, 1, 3)])
    assert found["auc"] == pytest.approx(expected)
    assert np.shape(found["confusion_matrix"]) == (4, 4)


def test_auc_of_a_single_class_is_undefined_not_an_error():
    found = one(np.zeros(5, int), LOGITS[:5])
    assert found["auc"] is None
    assert found["accuracy"] == pytest.approx(np.mean(LOGITS[:5].argmax(1) == 0))


def test_multi_label_classes_without_a_positive_are_left_out():
    labels = MANY.copy()
    labels[:, 1] = 0
    labels[:, 3] = 1
    found = many(labels)
    p = expit(LOGITS)
    assert found["absent_labels"] == ["dog"]
    assert found["auc"] == pytest.approx(
        np.mean([sk.roc_auc_score(labels[:, c], p[:, c]) for c in (0, 2)])
    )
    assert many(np.zeros_like(MANY))["mean_average_precision"] is None


def test_top_k_accuracy_of_at_most_k_classes_says_nothing():
    assert one(top_k=9)["top_k_accuracy"] is None


def test_top_one_is_accuracy_even_where_logits_tie():
    found = one(np.asarray([0, 1]), np.zeros((2, 4)), top_k=1)
    assert found["top_k_accuracy"] == found["accuracy"] == 0.5


def test_expected_calibration_error_in_closed_form():
    # Two bins: three at 0.9 of which two right, one at 0.45 that is wrong.
    probability = np.asarray([0.9, 0.9, 0.9, 0.45])
    happened = np.asarray([True, True, False, False])
    expected = 3 / 4 * abs(2 / 3 - 0.9) + 1 / 4 * abs(0 - 0.45)
    assert expected_calibration_error(probability, happened) == pytest.approx(expected)


def test_calibration_bins_are_closed_above():
    # 3/15 belongs to the bin (2/15, 3/15]; with 0.21 in the next one the gaps cannot cancel.
    probability = np.asarray([3 / 15, 0.21])
    happened = np.asarray([False, True])
    assert expected_calibration_error(probability, happened) == pytest.approx((0.2 + 0.79) / 2)


def test_probabilities_of_zero_and_one_have_bins():
    assert expected_calibration_error(np.asarray([0.0, 1.0]), np.asarray([False, True])) == 0.0


def test_one_label_calibration_is_of_the_predicted_class():
    confidence = softmax(LOGITS, axis=1).max(1)
    expected = expected_calibration_error(confidence, LOGITS.argmax(1) == LABELS)
    assert one()["expected_calibration_error"] == expected


@pytest.mark.parametrize("compute", [one, many], ids=["one label", "many"])
def test_metrics_are_strict_json(compute):
    found = compute()
    assert json.loads(json.dumps(found, allow_nan=False)) == found


def test_no_examples_is_an_error():
    with pytest.raises(DataError, match="at least one example"):
        one(np.zeros(0, int), np.zeros((0, 4)))


def test_logits_of_another_head_are_refused():
    with pytest.raises(DataError, match=r"logits of shape \(200, 4\) .* got \(200, 3\)"):
        one(logits=LOGITS[:, :3])


def test_labels_of_the_other_kind_are_refused():
    with pytest.raises(DataError, match=r"shape \(200,\) of class numbers, got \(200, 4\)"):
        one(MANY)
    with pytest.raises(DataError, match=r"shape \(200, 4\) of 0 and 1, got \(200,\)"):
        many(LABELS)


def test_a_label_number_without_a_name_is_refused():
    with pytest.raises(DataError, match="from 0 to 3, got 0 to 4"):
        one(np.where(np.arange(200) == 7, 4, 0))


def test_logits_that_diverged_are_said_to_have():
    logits = LOGITS.copy()
    logits[3, 1] = np.nan
    with pytest.raises(ModelError, match="1 of 200 examples are not finite"):
        one(logits=logits)
