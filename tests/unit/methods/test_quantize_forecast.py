"""The forecast of a merge: divergence and agreement, from logits alone."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from tests.unit.methods import small
from tunekit.errors import ModelError
from tunekit.methods.merge_forecast import merge_forecast


def test_divergence_of_two_classes_is_the_closed_form():
    p, q = 0.8, 0.6
    adapted, merged = (jnp.log(jnp.array([[x, 1 - x]])) for x in (p, q))
    expected = p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q))
    assert merge_forecast(adapted, merged).kl == pytest.approx(expected, rel=1e-5)


def test_agreement_counts_equal_top_classes():
    adapted, merged = jnp.eye(4), jnp.eye(4)[jnp.array([0, 1, 3, 3])]
    assert merge_forecast(adapted, merged).top1_agreement == 0.75


def test_forecasts_of_batches_add_up_to_that_of_all():
    adapted, merged = small.normal(5, 3, 7), small.normal(5, 3, 7, seed=2)
    weights = (small.normal(5, 3, seed=3) > 0).astype(np.float32)
    whole = merge_forecast(adapted, merged, weights)
    parts = [merge_forecast(adapted[i], merged[i], weights[i]) for i in range(5)]
    total = sum(parts[1:], start=parts[0])
    assert total.kl == pytest.approx(whole.kl, rel=1e-5)
    assert total.top1_agreement == pytest.approx(whole.top1_agreement)
    assert total.positions == whole.positions == weights.sum()


def test_padding_does_not_count_whatever_it_holds():
    adapted, merged = small.normal(4, 3), small.normal(4, 3, seed=2)
    weights = np.array([1, 1, 0, 1], np.float32)
    spoiled = adapted.copy()
    spoiled[2] = np.nan
    expected = merge_forecast(adapted[weights > 0], merged[weights > 0])
    assert merge_forecast(spoiled, merged, weights).kl == pytest.approx(expected.kl, rel=1e-5)
    assert merge_forecast(adapted, merged, 0 * weights).positions == 0


def test_classes_that_are_ruled_out_add_nothing():
    logits = jnp.array([[1.0, 0.0, -jnp.inf]])
    assert merge_forecast(logits, logits).kl == 0


def test_a_forecast_prints_on_one_line():
    logits = small.normal(1200, 4)
    forecast = merge_forecast(logits, logits)
    assert str(forecast) == "merged: KL 0 nats, same top prediction at 100.0% of 1,200"


def test_logits_of_two_shapes_are_refused():
    with pytest.raises(ModelError, match=r"of one shape.*got \(2, 3\), \(2, 4\) and \(2,\)"):
        merge_forecast(small.normal(2, 3), small.normal(2, 4))
