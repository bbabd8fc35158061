from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tunekit.data.mixing import box_mask, mix, partners

B, H, W, C = 6, 8, 10, 4
RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (B, H, W, 3)).astype(np.float32)
TARGETS = np.eye(C, dtype=np.float32)[RNG.integers(0, C, B)]
WEIGHT = np.array([1, 1, 0, 1, 1, 0], np.float32)
REAL = WEIGHT > 0
mixed = jax.jit(mix, static_argnums=(4, 5))


def keys(count):
    return jax.random.split(jax.random.key(0), count)


def test_partners_are_a_cycle_of_the_real_rows():
    for key in keys(20):
        partner = np.asarray(partners(key, jnp.asarray(WEIGHT)))
        assert sorted(partner) == list(range(B))
        assert (partner[~REAL] == np.flatnonzero(~REAL)).all()
        assert (partner[REAL] != np.flatnonzero(REAL)).all()


def test_partners_change_with_the_key():
    assert len({tuple(np.asarray(partners(key, jnp.ones(B)))) for key in keys(20)}) > 10


@pytest.mark.parametrize("weight", [np.zeros(B), np.eye(B)[3]])
def test_a_row_without_others_is_its_own_partner(weight):
    partner = partners(keys(1)[0], jnp.asarray(weight, jnp.float32))
    assert np.asarray(partner).tolist() == list(range(B))


def test_mixup_equals_the_formula_in_numpy():
    for key in keys(5):
        images, targets = map(np.asarray, mixed(key, IMAGES, TARGETS, WEIGHT, 0.4, 0.0))
        _, partner_key, lambda_key, _ = jax.random.split(key, 4)
        partner = np.asarray(partners(partner_key, jnp.asarray(WEIGHT)))
        share = float(jax.random.beta(lambda_key, 0.4, 0.4))
        np.testing.assert_allclose(
            images, share * IMAGES + (1 - share) * IMAGES[partner], rtol=1e-5, atol=1e-4
        )
        np.testing.assert_allclose(
            targets, share * TARGETS + (1 - share) * TARGETS[partner], rtol=1e-5, atol=1e-6
        )


def test_cutmix_pastes_one_box_and_mixes_targets_by_its_area():
    distinct = np.arange(B, dtype=np.float32)[:, None, None, None] * np.ones(
        (B, H, W, 3), np.float32
    )
    identity = np.eye(B, dtype=np.float32)
    shares = []
    for key in keys(10):
        images, targets = map(np.asarray, mixed(key, distinct, identity, WEIGHT, 0.0, 1.0))
        partner = np.asarray(partners(jax.random.split(key, 4)[1], jnp.asarray(WEIGHT)))
        pasted = images[0, :, :, 0] != 0
        rows, columns = pasted.any(1), pasted.any(0)
        assert np.array_equal(pasted, np.outer(rows, columns))
        for row in np.flatnonzero(REAL):
            expected = np.where(pasted, partner[row], row)
            assert np.array_equal(images[row, :, :, 1], expected)
            area = pasted.mean()
            expected = (1 - area) * identity[row] + area * identity[partner[row]]
            np.testing.assert_allclose(targets[row], expected, atol=1e-6)
        shares.append(pasted.mean())
    assert min(shares) < 0.3 and max(shares) > 0.4


def test_box_has_the_area_asked_for_where_the_border_does_not_cut_it():
    for key in keys(30):
        mask = np.asarray(box_mask(key, 64, 64, jnp.float32(0.75)))
        rows, columns = mask.any(1), mask.any(0)
        assert np.array_equal(mask, np.outer(rows, columns))
        inside = not (rows[[0, -1]].any() or columns[[0, -1]].any())
        assert mask.mean() == 0.25 if inside else mask.mean() <= 0.25


@pytest.mark.parametrize("alphas", [(0.4, 0.0), (0.0, 1.0), (0.4, 1.0)])
def test_padded_rows_neither_give_nor_take(alphas):
    poisoned = np.where(REAL[:, None, None, None], IMAGES, np.float32(np.nan))
    for key in keys(6):
        images, targets = map(np.asarray, mixed(key, poisoned, TARGETS, WEIGHT, *alphas))
        assert np.isfinite(images[REAL]).all() and np.isnan(images[~REAL]).all()
        assert np.array_equal(targets[~REAL], TARGETS[~REAL])


@pytest.mark.parametrize("alphas", [(0.4, 0.0), (0.0, 1.0), (0.4, 1.0)])
def test_targets_keep_their_sum(alphas):
    for key in keys(5):
        targets = np.asarray(mixed(key, IMAGES, TARGETS, WEIGHT, *alphas)[1])
        np.testing.assert_allclose(targets.sum(1), 1, atol=1e-6)


def test_with_both_on_some_batches_take_either():
    kinds = set()
    for key in keys(12):
        both = mixed(key, IMAGES, TARGETS, WEIGHT, 0.4, 1.0)
        for kind, alphas in (("mixup", (0.4, 0.0)), ("cutmix", (0.0, 1.0))):
            if np.array_equal(both[0], mixed(key, IMAGES, TARGETS, WEIGHT, *alphas)[0]):
                kinds.add(kind)
    assert kinds == {"mixup", "cutmix"}


def test_off_changes_nothing_but_the_type():
    images, targets = mix(keys(1)[0], jnp.asarray(IMAGES, jnp.uint8), TARGETS, WEIGHT, 0.0, 0.0)
    assert images.dtype == jnp.float32 and np.array_equal(images, IMAGES)
    assert np.array_equal(targets, TARGETS)
