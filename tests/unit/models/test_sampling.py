"""Samplers: transformers' own values, closed forms, and what is drawn."""

from __future__ import annotations

import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.reference.make_generation_references import EXPECTED, SAMPLERS, logits_and_texts
from tunekit.errors import ModelError
from tunekit.models.sampling import Greedy, Sampling, choose, cut_off, penalised

LOGITS = jnp.log(jnp.array([[0.5, 0.3, 0.15, 0.05]]))


def shares(sampler: Sampling, logits: jax.Array = LOGITS) -> np.ndarray:
    """The probabilities by which the tokens of one row are drawn."""
    return np.asarray(jax.nn.softmax(cut_off(logits, sampler.controls()), axis=-1))[0]


def drawn(sampler: Any, logits: jax.Array, seed: int = 0) -> np.ndarray:
    keys = jax.random.split(jax.random.key(seed), len(logits))
    seen = jnp.zeros(logits.shape, bool)
    return np.asarray(choose(logits, seen, keys, sampler.controls()))


@pytest.mark.parametrize("case", range(len(SAMPLERS)), ids=lambda i: "+".join(SAMPLERS[i]))
def test_probabilities_are_those_that_transformers_logits_processors_leave(case):
    expected = json.loads(EXPECTED.read_text())["processed"][case]
    controls = Sampling(**SAMPLERS[case]).controls()  # type: ignore[arg-type]
    logits, texts = logits_and_texts()
    seen = np.zeros(logits.shape, bool)
    np.put_along_axis(seen, texts, True, axis=-1)
    less_likely = penalised(jnp.asarray(logits), jnp.asarray(seen), controls["repetition_penalty"])
    found = np.exp(jax.nn.log_softmax(cut_off(less_likely, controls), axis=-1))
    # null, for minus infinity, is NaN as a float.
    wanted = np.nan_to_num(np.exp(np.array(expected, np.float32)))
    assert ((found == 0) == (wanted == 0)).all()
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    ("sampler", "expected"),
    [
        (Sampling(), [0.5, 0.3, 0.15, 0.05]),
        (Sampling(temperature=0.5), np.array([0.25, 0.09, 0.0225, 0.0025]) / 0.365),
        (Sampling(top_k=2), [0.625, 0.375, 0, 0]),
        (Sampling(top_k=99), [0.5, 0.3, 0.15, 0.05]),
        (Sampling(top_p=0.79), [0.625, 0.375, 0, 0]),
        (Sampling(top_p=1e-6), [1, 0, 0, 0]),
        (Sampling(min_p=0.29), np.array([0.5, 0.3, 0.15, 0]) / 0.95),
        (Sampling(min_p=1), [1, 0, 0, 0]),
        (Sampling(top_k=3, top_p=0.6), [0.625, 0.375, 0, 0]),
    ],
    ids=str,
)
def test_what_is_cut_off_has_the_closed_form(sampler, expected):
    np.testing.assert_allclose(shares(sampler), expected, rtol=1e-5, atol=1e-7)


def test_tokens_as_likely_as_the_last_one_kept_are_kept_with_it():
    logits = jnp.log(jnp.array([[0.4, 0.25, 0.25, 0.1]]))
    np.testing.assert_allclose(shares(Sampling(top_k=2), logits)[3], 0)
    assert shares(Sampling(top_k=2), logits)[1] == shares(Sampling(top_k=2), logits)[2] > 0


def test_tokens_are_drawn_as_often_as_they_are_likely():
    sampler = Sampling(temperature=0.5, top_k=3)
    tokens = drawn(sampler, jnp.repeat(LOGITS, 40_000, axis=0))
    found = np.bincount(tokens, minlength=4) / len(tokens)
    # Four standard deviations of a share of one half.
    np.testing.assert_allclose(found, shares(sampler), atol=0.01)
    assert found[3] == 0


def test_the_same_keys_draw_the_same_and_other_keys_do_not():
    logits = jnp.zeros((64, 50))
    first = drawn(Sampling(), logits)
    np.testing.assert_array_equal(first, drawn(Sampling(), logits))
    assert (first != drawn(Sampling(), logits, seed=1)).mean() > 0.5


def test_greedy_takes_the_likeliest_token_whatever_the_keys():
    logits = jnp.asarray(logits_and_texts()[0])
    for seed in range(3):
        np.testing.assert_array_equal(drawn(Greedy(), logits, seed), logits.argmax(-1))


def test_a_penalty_makes_seen_tokens_less_likely_on_either_side_of_zero():
    logits, seen = jnp.array([[4.0, -4.0, 3.0]]), jnp.array([[True, True, False]])
    np.testing.assert_allclose(penalised(logits, seen, 2.0), [[2.0, -8.0, 3.0]])
    key = jax.random.split(jax.random.key(0), 1)
    assert choose(logits, seen, key, Greedy(repetition_penalty=2.0).controls()) == 2


def test_another_sampler_compiles_nothing():
    traced = []

    @jax.jit
    def program(logits, seen, keys, controls):
        traced.append(True)
        return choose(logits, seen, keys, controls)

    keys, seen = jax.random.split(jax.random.key(0), 1), jnp.zeros(LOGITS.shape, bool)
    for sampler in (Greedy(), Sampling(0.3), Sampling(top_k=4, top_p=0.5), Greedy(1.2)):
        program(LOGITS, seen, keys, sampler.controls())
    assert len(traced) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"temperature": 0}, r"temperature: expected a number above 0, got 0\. .*Greedy\(\)"),
        ({"temperature": float("nan")}, "temperature: expected a number above 0"),
        ({"temperature": float("inf")}, "temperature: expected a number above 0"),
        ({"top_k": 0}, "top_k: expected a whole number from 1 on or None, got 0"),
        ({"top_k": 1.5}, "top_k: expected a whole number"),
        ({"top_p": 0}, "top_p: expected a number above 0 and at most 1, got 0"),
        ({"top_p": 1.1}, "top_p: expected .* at most 1"),
        ({"min_p": -0.1}, "min_p: expected a number from 0 to 1, got -0.1"),
        ({"repetition_penalty": 0}, "repetition_penalty: expected a number above 0, got 0"),
    ],
    ids=str,
)
def test_a_number_outside_of_its_range_is_refused(arguments, message):
    with pytest.raises(ModelError, match=message):
        Sampling(**arguments)


def test_greedy_checks_its_penalty_too():
    with pytest.raises(ModelError, match="repetition_penalty: expected a number above 0, got -1"):
        Greedy(-1)
