"""Initial factors against PEFT's, closed forms and NumPy's own decompositions."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tunekit.errors import ModelError
from tunekit.methods.factors import (
    alternating_loftq,
    leading_directions,
    loftq_factors,
    random_factors,
    weight_factors,
)

PEFT = Path(__file__).parents[2] / "reference" / "peft_factors.npz"
RANK, SCALING = 3, 2.0


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def in_steps_of_a_half(matrix: np.ndarray) -> np.ndarray:
    """Stands for a quantiser: the nearest multiple of one half."""
    return np.round(matrix * 2) / 2


def nearest(matrix: np.ndarray, rank: int) -> np.ndarray:
    left, values, right = np.linalg.svd(matrix, full_matrices=False)
    return left[:, :rank] * values[:rank] @ right[:rank]


@pytest.mark.parametrize("init", ["default", "gaussian"])
@pytest.mark.parametrize("embedding", [False, True])
def test_random_factors_have_a_product_of_exactly_zero(init, embedding):
    made = random_factors(init, (5, 4), RANK, np.random.default_rng(0), embedding=embedding)

    assert made.a.shape == (5, RANK) and made.b.shape == (RANK, 4) and made.start is None
    assert made.a.dtype == made.b.dtype == np.float32
    assert not (made.a @ made.b).any()
    assert made.a.any() != made.b.any()


def test_default_fills_the_range_of_a_kaiming_uniform_linear_layer():
    a = random_factors("default", (400, 4), 50, np.random.default_rng(0)).a

    assert 0.999 / 20 < np.abs(a).max() <= 1 / 20
    np.testing.assert_allclose(a.std(), 1 / 20 / np.sqrt(3), rtol=0.02)


def test_gaussian_has_a_standard_deviation_of_one_over_the_rank():
    a = random_factors("gaussian", (400, 4), 50, np.random.default_rng(0)).a

    np.testing.assert_allclose(a.std(), 1 / 50, rtol=0.02)


def test_an_embedding_begins_with_zero_rows_and_standard_normal_columns():
    made = random_factors("default", (9, 500), 40, np.random.default_rng(0), embedding=True)

    assert not made.a.any()
    np.testing.assert_allclose(made.b.std(), 1, rtol=0.02)


def test_orthogonal_factors_are_both_nonzero_with_a_product_of_zero_to_rounding():
    made = random_factors("orthogonal", (400, 300), 8, np.random.default_rng(0))

    assert np.linalg.matrix_rank(made.a) == np.linalg.matrix_rank(made.b) == 4
    assert np.abs(made.a @ made.b).max() < 1e-7
    # A row of the basis has a length of 1: each entry has a variance of 4 / 8, over 10.
    np.testing.assert_allclose([made.a.std(), made.b.std()], np.sqrt(0.5) / 10, rtol=0.05)


def test_orthogonal_with_an_odd_rank_is_an_error():
    with pytest.raises(ModelError, match="needs an even one; got 3: set rank to 4"):
        random_factors("orthogonal", (5, 4), 3, np.random.default_rng(0))


def test_the_same_seed_draws_the_same_factors():
    first, second = (random_factors("default", (5, 4), 2, np.random.default_rng(7)) for _ in "ab")

    np.testing.assert_array_equal(first.a, second.a)


@pytest.mark.parametrize("init", ["pissa", "olora"])
@pytest.mark.parametrize("layer", ["first", "second"])
def test_factors_of_the_weights_are_those_of_peft(init, layer):
    """Singular vectors have no sign, so pairs are compared; the residual is PEFT's base."""
    with np.load(PEFT) as peft:
        theirs = {key: peft[f"{init}/{layer}/{key}"] for key in ("a", "b", "residual")}
        matrix = peft[f"weight/{layer}"]

    made = weight_factors(init, matrix, RANK, SCALING)

    for mine, other in ((made.a, theirs["a"]), (made.b.T, theirs["b"].T)):
        np.testing.assert_allclose(np.abs(mine), np.abs(other), atol=2e-6)
    residual = matrix - SCALING * made.a @ made.b
    np.testing.assert_allclose(residual, theirs["residual"], atol=2e-6)


@pytest.mark.parametrize("init", ["pissa", "olora"])
def test_factors_of_the_weights_are_subtracted_as_they_are(init):
    made = weight_factors(init, normal(6, 5), RANK, SCALING)

    assert made.start is not None
    np.testing.assert_array_equal(made.a, made.start[0])
    np.testing.assert_array_equal(made.b, made.start[1])


def test_pissa_factors_times_the_scaling_are_the_nearest_matrix_of_that_rank():
    matrix = normal(8, 12)

    made = weight_factors("pissa", matrix, RANK, SCALING)

    np.testing.assert_allclose(SCALING * made.a @ made.b, nearest(matrix, RANK), atol=1e-5)
    np.testing.assert_allclose(made.a.T @ made.a, made.b @ made.b.T, atol=1e-5)


def test_pissa_of_a_matrix_with_fewer_directions_than_the_rank_has_no_nan():
    matrix = np.outer(normal(6), normal(5, seed=1))

    made = weight_factors("pissa", matrix, RANK, SCALING)

    np.testing.assert_allclose(SCALING * made.a @ made.b, matrix, atol=1e-5)


@pytest.mark.parametrize("init", ["pissa", "olora"])
def test_a_rank_above_the_matrix_s_is_an_error(init):
    with pytest.raises(ModelError, match=f"'{init}'.* 6 x 5 has 5 directions, not 7.*at most 5"):
        weight_factors(init, normal(6, 5), 7, SCALING)


def test_loftq_factors_are_the_best_correction_of_the_quantised_matrix():
    matrix = normal(8, 6)
    quantised = in_steps_of_a_half(matrix)

    made = loftq_factors(matrix, quantised, RANK, SCALING)

    expected = nearest(matrix - quantised, RANK)
    np.testing.assert_allclose(SCALING * made.a @ made.b, expected, atol=1e-6)
    assert made.start is None


def test_one_alternation_of_loftq_is_its_short_form():
    matrix = normal(8, 6)

    made, quantised = alternating_loftq(matrix, in_steps_of_a_half, RANK, SCALING, steps=1)

    short = loftq_factors(matrix, in_steps_of_a_half(matrix), RANK, SCALING)
    np.testing.assert_array_equal(quantised, in_steps_of_a_half(matrix))
    np.testing.assert_array_equal(made.a, short.a)


def test_alternating_loftq_quantises_what_the_factors_leave_and_comes_nearer():
    matrix = normal(24, 16)
    update = np.zeros_like(matrix)
    errors = []
    for steps in (1, 2, 3):
        expected = in_steps_of_a_half(matrix - update)
        update = nearest(matrix - expected, RANK)
        errors.append(np.linalg.norm(matrix - expected - update))

        made, quantised = alternating_loftq(matrix, in_steps_of_a_half, RANK, SCALING, steps)

        np.testing.assert_array_equal(quantised, expected)
        np.testing.assert_allclose(SCALING * made.a @ made.b, update, atol=1e-5)
    assert errors[2] < 0.99 * errors[0] < np.linalg.norm(matrix - in_steps_of_a_half(matrix))


def test_loftq_with_a_rank_above_the_matrix_s_is_an_error():
    with pytest.raises(ModelError, match="'loftq'.*has 5 directions, not 7"):
        loftq_factors(normal(6, 5), normal(6, 5), 7, SCALING)


@pytest.mark.parametrize("shape", [(7, 12), (12, 7)])
def test_leading_directions_are_those_of_a_whole_decomposition(shape):
    matrix = normal(*shape)

    left, values, right = leading_directions(matrix, 4)

    np.testing.assert_allclose(values, np.linalg.svd(matrix)[1][:4], rtol=1e-6)
    np.testing.assert_allclose(left * values @ right, nearest(matrix, 4), atol=1e-5)
    np.testing.assert_allclose(left.T @ left, np.eye(4), atol=1e-10)
    np.testing.assert_allclose(right @ right.T, np.eye(4), atol=1e-10)


@pytest.mark.parametrize("matrix", [np.zeros((3, 5)), np.outer(normal(3), normal(5))])
def test_directions_that_the_matrix_lacks_are_zero(matrix):
    _, values, right = leading_directions(matrix, 3)

    assert not values[1:].any() and not right[1:].any()
