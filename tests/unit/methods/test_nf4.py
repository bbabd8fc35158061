"""Packed kernels: the levels, the blocks and the scales of scales, against the QLoRA paper."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from scipy.stats import norm

from tunekit.methods.packing import LEVELS, MODES, pack, packed_leaves, unpack

ROWS, COLUMNS = 96, 200
"""300 blocks: more than one superblock, the last not full; rows that are no whole blocks."""


def drawn(rows: int = ROWS, columns: int = COLUMNS, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 0.02, (rows, columns)).astype(np.float32)


def through(kernel: np.ndarray, mode: str) -> np.ndarray:
    return np.asarray(unpack(pack(jnp.asarray(kernel), mode), *kernel.shape, mode))


def relative_error(kernel: np.ndarray, mode: str) -> float:
    return float(np.linalg.norm(through(kernel, mode) - kernel) / np.linalg.norm(kernel))


def reference_nf4(kernel: np.ndarray, *, double: bool = True) -> np.ndarray:
    """Section 3 of the paper, number by number."""
    flat = kernel.reshape(-1)
    scales = [np.abs(flat[i : i + 64]).max() for i in range(0, flat.size, 64)]
    if double:
        mean = np.mean(scales, dtype=np.float32)
        read = []
        for i in range(0, len(scales), 256):
            centred = np.array(scales[i : i + 256], np.float32) - mean
            unit = np.abs(centred).max() / np.float32(448)
            read += list((centred / unit).astype(ml_dtypes.float8_e4m3fn).astype(np.float32) * unit)
        scales = [value + mean for value in read]
    out = np.empty_like(flat)
    for i, scale in enumerate(scales):
        block = flat[i * 64 : (i + 1) * 64]
        nearest = np.abs(block[:, None] / scale - LEVELS["nf4"]).argmin(axis=1)
        out[i * 64 : (i + 1) * 64] = LEVELS["nf4"][nearest] * scale
    return out.reshape(kernel.shape)


def test_levels_are_quantiles_of_the_normal_distribution():
    # Eight steps to the left of zero and seven to the right, from the average of the outermost
    # quantiles of 2 x 15 and 2 x 16 equal parts; equation 4 with zero once.
    outermost = (1 - 1 / 30 + 1 - 1 / 32) / 2
    negative = -norm.ppf(np.linspace(outermost, 0.5, 8))[:-1]
    positive = norm.ppf(np.linspace(outermost, 0.5, 9))[:-1]
    levels = np.sort(np.concatenate([negative, [0], positive])) / norm.ppf(outermost)
    np.testing.assert_allclose(LEVELS["nf4"], levels, atol=2e-7)


def test_nf4_is_that_of_the_paper():
    kernel = drawn()
    ours, paper = through(kernel, "nf4"), reference_nf4(kernel)
    # A weight halfway between two levels may fall on either side.
    assert np.mean(np.abs(ours - paper) > 1e-7) < 1e-3


def test_a_second_quantisation_costs_next_to_nothing():
    kernel = drawn(256, 1024)
    single = np.linalg.norm(reference_nf4(kernel, double=False) - kernel)
    double = np.linalg.norm(through(kernel, "nf4") - kernel)
    assert double < 1.005 * single


@pytest.mark.parametrize("mode", MODES)
def test_bits_of_a_weight(mode):
    # The mean of all scales is a number of its own.
    bits = 8 + 32 / 4096 if mode == "int8" else 4 + 8 / 64 + 32 / (64 * 256) + 32 / 4096**2
    leaves = packed_leaves(4096, 4096, mode).values()
    counted = 8 * sum(leaf.size * leaf.dtype.itemsize for leaf in leaves) / 4096**2
    assert counted == pytest.approx(bits)


@pytest.mark.parametrize("mode", MODES)
def test_arrays_have_the_announced_shapes(mode):
    packed = pack(jnp.asarray(drawn()), mode)
    announced = packed_leaves(ROWS, COLUMNS, mode)
    assert {n: (x.shape, x.dtype) for n, x in packed.items()} == {
        n: (x.shape, x.dtype) for n, x in announced.items()
    }


def test_normal_weights_lose_least_with_nf4():
    kernel = drawn(256, 512)
    paper = np.linalg.norm(reference_nf4(kernel) - kernel) / np.linalg.norm(kernel)
    assert relative_error(kernel, "nf4") == pytest.approx(paper, rel=1e-3)
    assert relative_error(kernel, "nf4") < 0.9 * relative_error(kernel, "int4")
    assert relative_error(kernel, "int8") < 0.01


@pytest.mark.parametrize("mode", ["int4", "nf4"])
def test_every_weight_has_the_nearest_level(mode):
    kernel = drawn(4, 64)
    read = through(kernel, mode)
    for row, of_row in zip(kernel, read, strict=True):
        # Of the level of largest magnitude that occurs one knows the scale.
        scale = np.abs(of_row).max()
        distances = np.abs(row[:, None] - LEVELS[mode] * scale)
        np.testing.assert_allclose(np.abs(row - of_row), distances.min(axis=1), atol=1e-8)


def test_int8_is_within_half_a_step_of_each_row():
    kernel = drawn() * np.logspace(-3, 3, ROWS, dtype=np.float32)[:, None]
    step = np.abs(kernel).max(axis=1, keepdims=True) / 127
    assert (np.abs(through(kernel, "int8") - kernel) <= step * 0.5001).all()


@pytest.mark.parametrize("mode", ["int4", "nf4"])
def test_an_outlier_costs_its_own_block_alone(mode):
    # With scales as 8-bit integers the unit of 256 of them would follow the outlier.
    kernel = drawn(256, 64)
    before = relative_error(kernel, mode)
    spoiled = kernel.copy()
    spoiled[7, 3] = 5.0
    rest = np.arange(256) != 7
    lost = through(spoiled, mode)[rest] - kernel[rest]
    assert np.linalg.norm(lost) / np.linalg.norm(kernel[rest]) < 1.03 * before


@pytest.mark.parametrize("mode", MODES)
def test_zeros_stay_zero(mode):
    kernel = drawn(8, 64)
    kernel[2] = 0
    assert not through(kernel, mode)[2].any()
    assert not through(np.zeros((3, 5), np.float32), mode).any()


def rounded_at_random(row: np.ndarray, mode: str, draws: int) -> np.ndarray:
    """[draws, 64]: one block, whose scale is exact, packed and read back by as many keys."""

    def read(key: jax.Array) -> jax.Array:
        return unpack(pack(jnp.asarray(row[None]), mode, key), 1, 64, mode)[0]

    return np.asarray(jax.vmap(read)(jax.random.split(jax.random.key(0), draws)))


@pytest.mark.parametrize("mode", MODES)
def test_rounded_at_random_a_weight_is_one_of_its_two_neighbours_and_in_the_mean_itself(mode):
    (row,), draws = drawn(1, 64), 4096
    read = rounded_at_random(row, mode, draws).astype(np.float64)
    levels = np.arange(-127, 128) / 127 if mode == "int8" else LEVELS[mode]
    levels = levels * np.abs(row).max()
    next_up = np.clip(np.searchsorted(levels, row, side="right"), 1, len(levels) - 1)
    below, above = levels[next_up - 1], levels[next_up]
    error = np.minimum(np.abs(read - below), np.abs(read - above))
    np.testing.assert_allclose(error, 0, atol=1e-7)
    # Up with probability (w - below) / (above - below): mean w, variance (w - below)(above - w).
    variance = np.maximum((row - below) * (above - row), 0)
    assert (np.abs(read.mean(0) - row) <= 4.5 * np.sqrt(variance / draws) + 1e-7).all()
    np.testing.assert_allclose(read.var(0).sum(), variance.sum(), rtol=0.05)


@pytest.mark.parametrize("mode", MODES)
def test_rounded_at_random_a_weight_on_a_level_stays_there(mode):
    row = through(drawn(1, 64), mode)[0]
    moved = np.abs(rounded_at_random(row, mode, 64) - row) > 1e-7
    # A last bit lost leads away from a level once in a hundred thousand times.
    assert moved.mean() <= 2 / 4096


@pytest.mark.parametrize("mode", MODES)
def test_a_bfloat16_kernel_packs_like_its_float32_values(mode):
    kernel = jnp.asarray(drawn()).astype("bfloat16")
    narrow, wide = pack(kernel, mode), pack(kernel.astype("float32"), mode)
    assert all((narrow[name] == wide[name]).all() for name in wide)
