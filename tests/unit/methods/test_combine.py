"""Combinations of adapters against PEFT's own, plain NumPy and a real grouped convolution."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import keras
import numpy as np
import pytest

from tunekit.errors import ModelError
from tunekit.methods.combine import CombineKind, Factors, agreeing_mean, combine, dropped, trimmed
from tunekit.methods.linear import linear_form

PEFT = Path(__file__).parents[2] / "reference" / "peft_factors.npz"
PEFT_WEIGHTS, PEFT_DENSITY = (0.7, -0.4), 0.4
WEIGHTS = (0.7, -0.4, 1.5)


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def drawn(rank: int, seed: int, scaling: float = 2.0, shape: tuple[int, int] = (9, 7)) -> Factors:
    return Factors(
        normal(shape[0], rank, seed=seed), normal(rank, shape[1], seed=100 + seed), scaling
    )


def three(*ranks: int) -> list[dict[str, Factors]]:
    return [{"q": drawn(rank, seed, seed / 2)} for seed, rank in enumerate(ranks, start=1)]


def weighted_sum(adapters: list[dict[str, Factors]]) -> np.ndarray:
    deltas = [one["q"].scaling * one["q"].a @ one["q"].b for one in adapters]
    return sum(weight * delta for weight, delta in zip(WEIGHTS, deltas, strict=True))


def nearest(matrix: np.ndarray, rank: int) -> np.ndarray:
    left, values, right = np.linalg.svd(matrix, full_matrices=False)
    return left[:, :rank] * values[:rank] @ right[:rank]


@pytest.mark.parametrize(
    ("pair", "kind"),
    [("equal", kind) for kind in ("linear", "cat", "svd", "ties")]
    + [("unequal", kind) for kind in ("cat", "svd")],
)
def test_combined_deltas_are_those_of_peft(pair, kind):
    with np.load(PEFT) as peft:
        adapters = [
            {
                layer: Factors(
                    *(peft[f"{pair}/{one}/{layer}/{key}"] for key in ("a", "b")),
                    float(peft[f"{pair}/{one}/{layer}/scaling"]),
                )
                for layer in ("first", "second")
                if f"{pair}/{one}/{layer}/a" in peft
            }
            for one in ("0", "1")
        ]
        expected = {layer: peft[f"{pair}/{kind}/{layer}"] for layer in ("first", "second")}
    assert [len(adapter) for adapter in adapters] == [2, 1]

    combined = combine(adapters, PEFT_WEIGHTS, kind, density=PEFT_DENSITY)

    for layer, delta in expected.items():
        np.testing.assert_allclose(combined[layer].delta, delta, atol=5e-6)


def test_linear_has_the_cross_terms_of_its_factors():
    one, two = drawn(2, 1, scaling=3.0), drawn(2, 2, scaling=0.5)

    made = combine([{"q": one}, {"q": two}], [0.5, -2.0], "linear")["q"]

    a = np.sqrt(1.5) * one.a - np.sqrt(1.0) * two.a
    b = np.sqrt(1.5) * one.b + np.sqrt(1.0) * two.b
    np.testing.assert_allclose(made.delta, a @ b, atol=1e-5)


def test_linear_of_one_adapter_is_that_adapter_at_its_weight():
    one = drawn(2, 1)

    made = combine([{"q": one}], [-0.3], "linear")["q"]

    np.testing.assert_allclose(made.delta, -0.3 * one.delta, atol=1e-5)


def test_cat_is_the_weighted_sum_of_the_deltas_at_the_sum_of_the_ranks():
    adapters = three(2, 1, 3)

    made = combine(adapters, WEIGHTS, "cat")["q"]

    assert made.a.shape == (9, 6) and made.scaling == 1
    np.testing.assert_allclose(made.delta, weighted_sum(adapters), atol=1e-5)


@pytest.mark.parametrize(("rank", "width"), [(None, 3), (1, 1), (5, 5), (50, 6)])
def test_svd_is_the_matrix_of_that_rank_nearest_to_the_weighted_sum(rank, width):
    adapters = three(2, 1, 3)

    made = combine(adapters, WEIGHTS, "svd", rank=rank)["q"]

    assert made.a.shape == (9, width)
    np.testing.assert_allclose(made.delta, nearest(weighted_sum(adapters), width), atol=1e-5)


def test_ties_follows_the_paper_s_three_steps():
    adapters = three(2, 1, 3)
    deltas = np.stack([one["q"].delta for one in adapters])
    kept = int(0.3 * deltas[0].size)
    for delta in deltas:
        delta.flat[np.argsort(np.abs(delta), axis=None)[:-kept]] = 0
    elected = np.sign(deltas.sum(axis=0))
    expected = np.zeros_like(deltas[0])
    for place in np.ndindex(expected.shape):
        voters = [k for k in range(3) if deltas[k][place] * elected[place] > 0]
        if voters:
            expected[place] = np.mean([WEIGHTS[k] * deltas[k][place] for k in voters])

    made = combine(adapters, WEIGHTS, "ties", density=0.3, rank=7)["q"]

    np.testing.assert_allclose(made.delta, expected, atol=1e-5)


def test_trimmed_keeps_the_largest_whatever_their_sign():
    delta = np.array([[3.0, -1.0, 0.5, -4.0]])

    np.testing.assert_array_equal(trimmed(delta, 0.5), [[3.0, 0, 0, -4.0]])
    np.testing.assert_array_equal(trimmed(delta, 1.0), delta)
    np.testing.assert_array_equal(trimmed(delta, 0.1), np.zeros((1, 4)))


def test_agreeing_mean_leaves_the_outvoted_and_the_zeros_out():
    deltas = [np.array([3.0, 1.0, 0.0, 2.0]), np.array([-1.0, 3.0, 0.0, 0.0])]

    np.testing.assert_array_equal(agreeing_mean(deltas, [1.0, 0.5]), [3.0, 1.25, 0.0, 2.0])


def test_dropped_entries_are_zero_and_the_rest_make_up_for_them():
    delta = np.full((200, 100), 2.0, np.float32)

    sparse = dropped(delta, 0.25, np.random.default_rng(0))

    assert set(np.unique(sparse)) == {0.0, 8.0}
    np.testing.assert_allclose((sparse != 0).mean(), 0.25, atol=0.01)


def test_dare_at_full_density_drops_nothing():
    adapters = three(2, 1, 3)

    added = combine(adapters, WEIGHTS, "dare_linear", density=1.0, rank=7)["q"]
    elected = combine(adapters, WEIGHTS, "dare_ties", density=1.0, rank=7)["q"]

    np.testing.assert_allclose(added.delta, weighted_sum(adapters), atol=1e-5)
    ties = combine(adapters, WEIGHTS, "ties", density=1.0, rank=7)["q"]
    np.testing.assert_allclose(elected.delta, ties.delta, atol=1e-5)


def test_dare_is_the_weighted_sum_on_average():
    adapters = three(2, 1, 3)
    made = [
        combine(adapters, WEIGHTS, "dare_linear", density=0.5, rank=7, seed=seed)["q"].delta
        for seed in range(400)
    ]

    error = np.abs(np.mean(made, axis=0) - weighted_sum(adapters)).max()

    assert error < 5 * np.std(made, axis=0).max() / np.sqrt(len(made))


def test_dare_drops_anew_for_each_seed_and_layer_but_not_for_the_company():
    layer = drawn(2, 1)

    def made(names: str, seed: int) -> dict[str, Factors]:
        return combine([dict.fromkeys(names, layer)], [1.0], "dare_linear", density=0.5, seed=seed)

    np.testing.assert_array_equal(made("q", 0)["q"].a, made("vq", 0)["q"].a)
    assert np.abs(made("q", 0)["q"].delta - made("q", 1)["q"].delta).max() > 0.1
    assert np.abs(made("vq", 0)["q"].delta - made("vq", 0)["v"].delta).max() > 0.1


@pytest.mark.parametrize("kind", get_args(CombineKind))
def test_fresh_adapters_make_one_that_changes_nothing(kind):
    fresh = Factors(normal(9, 2), np.zeros((2, 7), np.float32), 2.0)

    made = combine([{"q": fresh}, {"q": fresh}], [0.5, 0.5], kind)["q"]

    assert not made.delta.any()
    assert made.a.dtype == made.b.dtype == np.float32


@pytest.mark.parametrize("kind", get_args(CombineKind))
def test_layers_of_one_adapter_alone_are_kept(kind):
    one, other = drawn(2, 1), drawn(2, 2, shape=(4, 5))

    made = combine([{"q": one}, {"v": other}], [1.0, 0.5], kind, density=1.0)

    assert list(made) == ["q", "v"]
    np.testing.assert_allclose(made["q"].delta, one.delta, atol=1e-5)
    np.testing.assert_allclose(made["v"].delta, 0.5 * other.delta, atol=1e-5)


def test_cat_of_a_grouped_convolution_adds_the_kernels_of_its_groups():
    """The delta is what the factors do when a real layer applies them, group by group."""
    layer = keras.layers.Conv2D(6, 2, groups=2, use_bias=False)
    layer.build((None, 5, 5, 4))
    form = linear_form("conv", layer)
    adapters = [Factors(normal(8, 4, seed=s), normal(2, 6, seed=100 + s), s / 2) for s in (1, 2)]
    x = normal(1, 5, 5, 4)

    made = combine([{"conv": one} for one in adapters], [0.5, -1.0], "cat")["conv"]

    def applied(one: Factors) -> np.ndarray:
        hidden = form.product(x, one.a, per_example=False)
        return one.scaling * np.asarray(form.outputs(hidden, one.b, per_example=False))

    expected = 0.5 * applied(adapters[0]) - applied(adapters[1])
    assert made.groups == 2 and made.b.shape == (4, 6)
    np.testing.assert_allclose(applied(made), expected, atol=1e-4)
    layer.kernel.assign(form.kernel(made.delta))
    np.testing.assert_allclose(layer(x), expected, atol=1e-4)


def test_svd_of_a_grouped_convolution_shares_the_rank_among_its_groups():
    adapters = [Factors(normal(8, 4, seed=s), normal(2, 6, seed=100 + s)) for s in (1, 2)]

    made = combine([{"conv": one} for one in adapters], [1.0, 1.0], "svd", rank=2)["conv"]

    whole = adapters[0].delta + adapters[1].delta
    assert made.a.shape == (8, 2) and made.b.shape == (1, 6)
    expected = np.concatenate([nearest(block, 1) for block in np.split(whole, 2, axis=1)], axis=1)
    np.testing.assert_allclose(made.delta, expected, atol=1e-5)


def test_an_unknown_kind_is_an_error_with_near_matches():
    with pytest.raises(ModelError, match="one of linear, cat.*got 'tie'. Did you mean 'ties'"):
        combine(three(2), [1.0], "tie")  # pyright: ignore[reportArgumentType]


def test_weights_that_do_not_pair_with_adapters_are_an_error():
    with pytest.raises(ModelError, match="got 2 adapters and 1 weights"):
        combine(three(2, 2), [1.0], "cat")
    with pytest.raises(ModelError, match="got 0 adapters and 0 weights"):
        combine([], [], "cat")


def test_linear_of_different_ranks_is_an_error():
    with pytest.raises(ModelError, match="q: 'linear' .* have 2, 3. Use 'svd', or 'cat'"):
        combine(three(2, 3), [1.0, 1.0], "linear")


def test_adapters_of_different_networks_are_an_error():
    adapters = [{"q": drawn(2, 1)}, {"q": drawn(2, 1, shape=(9, 8))}]
    with pytest.raises(ModelError, match="q: .* 9 x 7 and 9 x 8; combine adapters of one network"):
        combine(adapters, [1.0, 1.0], "svd")


@pytest.mark.parametrize("density", [0.0, 1.5, -1.0])
def test_a_density_that_is_no_fraction_is_an_error(density):
    with pytest.raises(ModelError, match=f"in \\(0, 1\\]; got {density}"):
        combine(three(2), [1.0], "ties", density=density)


def test_a_rank_of_zero_is_an_error():
    with pytest.raises(ModelError, match="at least 1, or None; got 0"):
        combine(three(2), [1.0], "svd", rank=0)
