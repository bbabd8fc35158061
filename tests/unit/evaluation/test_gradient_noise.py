"""Signal and noise of gradients against closed forms."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tunekit.evaluation.gradient_noise import gradient_noise

WEIGHTS = {"a": jnp.array([3.0, 4.0]), "b": jnp.array([2.0])}
GROUPS = {"first": ["a"], "second": ["b"], "both": ["a", "b"], "none": []}


def mean_of_rows(weights, batch):
    """The gradient of a loss that is linear in the weights: the mean row of the batch."""

    def loss(weights):
        return jnp.mean(batch["x"] @ weights["a"] + batch["y"] * weights["b"])

    return jax.grad(loss)(weights)


def batches_of(x, y, size):
    starts = range(0, len(x), size)
    return [{"x": x[i : i + size], "y": y[i : i + size]} for i in starts]


def test_signal_and_noise_are_the_formula_of_the_module():
    rng = np.random.default_rng(0)
    x = (rng.normal(size=(24, 2)) + [1.0, -2.0]).astype(np.float32)
    y = rng.normal(size=24).astype(np.float32)
    found = gradient_noise(mean_of_rows, WEIGHTS, batches_of(x, y, 4), GROUPS)["first"]
    gradients = x.reshape(6, 4, 2).astype(float).mean(axis=1)
    mean = gradients.mean(axis=0)
    noise = ((gradients - mean) ** 2).sum() / 5
    signal = (mean**2).sum() - noise / 6
    assert found.snr == pytest.approx(signal / noise, rel=1e-4)
    assert found.relative_norm == pytest.approx(signal**0.5 / 5, rel=1e-4)


def test_signal_to_noise_estimates_that_of_the_population_without_bias():
    # Rows (1, 1) + noise of variance 1 a number: a batch of 8 has |G|^2 / S = 2 / (2 / 8).
    rng = np.random.default_rng(1)
    x = (1 + rng.normal(size=(8 * 400, 2))).astype(np.float32)
    found = gradient_noise(mean_of_rows, WEIGHTS, batches_of(x, x[:, 0] * 0, 8), GROUPS)
    assert found["first"].snr == pytest.approx(8, rel=0.15)


def test_a_group_of_several_weights_adds_their_signals_and_their_noise():
    rng = np.random.default_rng(2)
    x = (rng.normal(size=(12, 2)) + 2).astype(np.float32)
    y = (rng.normal(size=12) + 2).astype(np.float32)
    batches = batches_of(x, y, 3)
    both = gradient_noise(mean_of_rows, WEIGHTS, batches, GROUPS)["both"]
    rows = np.hstack([x, y[:, None]])
    joined = {"a": jnp.concatenate([WEIGHTS["a"], WEIGHTS["b"]])}

    def gradient(weights, batch):
        return jax.grad(lambda w: jnp.mean(batch @ w["a"]))(weights)

    expected = gradient_noise(gradient, joined, list(rows.reshape(4, 3, 3)), {"all": ["a"]})["all"]
    assert both.snr == pytest.approx(expected.snr, rel=1e-4)
    assert both.relative_norm == pytest.approx(expected.relative_norm, rel=1e-4)


def test_gradients_without_a_mean_have_no_signal():
    x = np.array([[1, 0], [-1, 0]], np.float32)
    found = gradient_noise(mean_of_rows, WEIGHTS, batches_of(x, x[:, 0], 1), GROUPS)
    assert (found["first"].snr, found["first"].relative_norm) == (0, 0)


def test_a_group_without_weights_has_neither_signal_nor_noise():
    x = np.ones((2, 2), np.float32)
    found = gradient_noise(mean_of_rows, WEIGHTS, batches_of(x, x[:, 0], 1), GROUPS)
    assert (found["none"].snr, found["none"].relative_norm) == (0, 0)


def test_gradients_of_half_precision_are_summed_in_single():
    weights = {"a": jnp.ones(2, jnp.bfloat16)}
    batches = [np.full((1, 2), value, np.float32) for value in (1.0, 1.0, 1.0078125)]

    def gradient(weights, batch):
        return {"a": jnp.asarray(batch[0], jnp.bfloat16)}

    found = gradient_noise(gradient, weights, batches, {"a": ["a"]})["a"]
    gradients = np.array([1.0, 1.0, 1.0078125])
    noise = 2 * gradients.var(ddof=1)
    assert found.snr == pytest.approx(2 * gradients.mean() ** 2 / noise, rel=0.05)


def test_one_batch_shows_no_noise_and_is_refused():
    with pytest.raises(AssertionError, match="noise shows between batches"):
        gradient_noise(mean_of_rows, WEIGHTS, batches_of(np.ones((1, 2)), np.ones(1), 1), GROUPS)
