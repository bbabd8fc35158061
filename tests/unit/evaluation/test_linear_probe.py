"""Linear probes against scikit-learn, and what cross-validation and padding do to them."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from tunekit.evaluation import linear_probe
from tunekit.evaluation.linear_probe import (
    FOLDS,
    PENALTIES,
    LinearProbe,
    fit_probes,
    logistic_regression,
)

CLASSES = 3


def examples(count: int, width: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Features [N, D] of which the first tell the label, with noise."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, CLASSES, count)
    features = rng.normal(size=(count, width))
    features[:, :CLASSES] += 1.5 * np.eye(CLASSES)[labels]
    return features.astype(np.float32), labels


def sklearn_fit(features, labels, l2, weights=None, tolerance=1e-8):
    weights = np.ones(len(labels)) if weights is None else weights
    model = LogisticRegression(C=1 / (l2 * weights.sum()), tol=tolerance, max_iter=5000)
    return model.fit(features.astype(float), labels, sample_weight=weights)


def test_regressions_fitted_together_have_the_optima_of_scikit_learn():
    features, labels = examples(60, 8)
    weights = np.ones((4, 60), np.float32)
    weights[1, ::2], weights[2, :20] = 0, 0.5
    l2 = np.array([1e-2, 1e-2, 0.1, 1.0], np.float32)
    kernels, biases = logistic_regression(
        features, labels, weights, l2, classes=CLASSES, tolerance=1e-6
    )
    for kernel, bias, weight, penalty in zip(kernels, biases, weights, l2, strict=True):
        expected = sklearn_fit(features, labels, penalty, weight)
        np.testing.assert_allclose(np.asarray(kernel).T, expected.coef_, atol=5e-4)
        # Of the biases only the differences mean anything.
        got = np.asarray(bias) - np.mean(bias)
        np.testing.assert_allclose(got, expected.intercept_, atol=5e-4)


def test_two_classes_have_scikit_learns_optimum_at_twice_its_c():
    features, labels = examples(50, 4)
    labels = (labels == 0).astype(int)
    one = np.ones((1, 50), np.float32)
    l2 = np.array([0.1], np.float32)
    kernels, _ = logistic_regression(features, labels, one, l2, classes=2, tolerance=1e-6)
    expected = sklearn_fit(features, labels, 0.05)
    difference = np.asarray(kernels[0, :, 1] - kernels[0, :, 0])
    np.testing.assert_allclose(difference, expected.coef_[0], atol=5e-4)


@pytest.mark.parametrize("width", [5, 90], ids=["narrow", "wider than there are examples"])
def test_a_probe_is_scikit_learns_on_standardised_features(width):
    features, labels = examples(60, width)
    shift, scale = np.arange(width) % 7 + 10, 3.0 ** (np.arange(width) % 5)
    raw = (features * scale + shift).astype(np.float32)
    tests, truth = examples(40, width, seed=1)
    raw_tests = (tests * scale + shift).astype(np.float32)
    # Beside much wider features, so that padding has a part in it.
    others = {"other": examples(60, 50)[0]}, {"other": examples(40, 50, seed=1)[0]}
    probe = fit_probes(
        {"raw": raw, **others[0]}, labels, {"raw": raw_tests, **others[1]}, truth, classes=CLASSES
    )["raw"]
    centre, deviation = raw.mean(axis=0), raw.std(axis=0)
    expected = sklearn_fit((raw - centre) / deviation, labels, probe.l2)
    logits = raw_tests @ probe.kernel + probe.bias
    logits -= logits.mean(axis=1, keepdims=True)
    scores = expected.decision_function((raw_tests - centre) / deviation)
    np.testing.assert_allclose(logits, scores, atol=0.02)
    assert np.array_equal(probe.correct, logits.argmax(axis=1) == truth)
    assert probe.l2 in PENALTIES


def test_the_penalty_is_the_one_of_least_loss_in_cross_validation(monkeypatch):
    monkeypatch.setattr(linear_probe, "PENALTIES", (1e-2, 1.0))
    features, labels = examples(48, 6)
    noise, guess = examples(48, 40, seed=3)[0][:, CLASSES:], labels
    train = {"signal": features, "noise": noise}
    probes = fit_probes(train, labels, train, guess, classes=CLASSES)
    folds = linear_probe._folds(labels, 0)
    for name, raw in train.items():
        scaled = (raw - raw.mean(axis=0)) / raw.std(axis=0)
        losses = []
        for l2 in linear_probe.PENALTIES:
            total = 0.0
            for fold in range(FOLDS):
                fitted = sklearn_fit(scaled[folds != fold], labels[folds != fold], l2)
                p = fitted.predict_proba(scaled[folds == fold])
                total -= np.log(p[np.arange(len(p)), labels[folds == fold]]).sum()
            losses.append(total)
        assert probes[name].l2 == linear_probe.PENALTIES[int(np.argmin(losses))]


def test_few_depths_at_a_time_give_what_all_together_give(monkeypatch):
    monkeypatch.setattr(linear_probe, "PENALTIES", (0.1,))
    train = {str(width): examples(30, width)[0] for width in (4, 6, 9)}
    labels = examples(30, 4)[1]
    whole = fit_probes(train, labels, train, labels, classes=CLASSES)
    monkeypatch.setattr(linear_probe, "_TOGETHER_BYTES", 1)
    parts = fit_probes(train, labels, train, labels, classes=CLASSES)
    for name, probe in whole.items():
        np.testing.assert_allclose(probe.kernel, parts[name].kernel, atol=2e-3)


def test_a_constant_feature_and_a_class_of_one_example_spoil_nothing(monkeypatch):
    monkeypatch.setattr(linear_probe, "PENALTIES", (0.1,))
    features, labels = examples(30, 4)
    features[:, 3] = 1000.1
    labels[labels == 2] = 0
    labels[5] = 2
    probe = fit_probes({"a": features}, labels, {"a": features}, labels, classes=CLASSES)["a"]
    assert np.isfinite(probe.kernel).all() and np.isfinite(probe.bias).all()
    assert np.array_equal(probe.kernel[3], np.zeros(CLASSES))
    assert probe.accuracy > 0.7


def test_folds_share_every_class_out_evenly():
    labels = np.repeat([0, 1, 2], [9, 6, 3])
    folds = linear_probe._folds(labels, seed=0)
    counts = [np.bincount(folds[labels == label], minlength=FOLDS) for label in range(3)]
    assert np.array_equal(counts, [[3] * 3, [2] * 3, [1] * 3])


def judged(right: int, count: int) -> LinearProbe:
    return LinearProbe(np.zeros((1, 2)), np.zeros(2), 0.1, np.arange(count) < right)


def test_accuracy_has_the_standard_error_of_a_proportion():
    probe = judged(6000, 10_000)
    assert probe.accuracy == 0.6
    assert probe.standard_error == pytest.approx((0.6 * 0.4 / 10_000) ** 0.5, rel=1e-3)


def test_ten_right_answers_of_ten_are_not_certainty():
    probe = judged(10, 10)
    assert probe.accuracy == 1
    assert probe.standard_error == pytest.approx((10.5 / 11 * 0.5 / 11 / 11) ** 0.5)
