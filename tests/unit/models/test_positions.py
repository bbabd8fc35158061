"""Bicubic resizing of position tables; tests/real compares it with torch through whole models."""

import numpy as np
import pytest

from tunekit.models.positions import resize_positions

TABLE = np.random.default_rng(0).standard_normal((1 + 49, 4)).astype(np.float32)


def test_the_same_grid_changes_nothing() -> None:
    assert np.array_equal(resize_positions(TABLE, (7, 7), prefix=1, antialias=True), TABLE)


@pytest.mark.parametrize("antialias", [False, True])
def test_a_constant_stays_constant_and_the_prefix_is_kept(antialias: bool) -> None:
    table = np.concatenate([TABLE[:1], np.full((49, 4), 3.0, np.float32)])
    resized = resize_positions(table, (4, 11), prefix=1, antialias=antialias)
    assert resized.shape == (1 + 44, 4)
    assert np.array_equal(resized[0], TABLE[0])
    np.testing.assert_allclose(resized[1:], 3.0, rtol=1e-6)


def test_antialiased_shrinking_equals_pillow() -> None:
    from PIL import Image

    plane = TABLE[1:, 0].reshape(7, 7)
    expected = Image.fromarray(plane).resize((3, 4), Image.Resampling.BICUBIC)
    resized = resize_positions(TABLE, (4, 3), prefix=1, antialias=True)
    np.testing.assert_allclose(resized[1:, 0].reshape(4, 3), np.asarray(expected), atol=1e-5)


def test_plain_bicubic_at_a_doubled_grid_has_the_weights_of_a_minus_three_quarters() -> None:
    table = np.zeros((49, 1), np.float32)
    table[24] = 1.0  # the middle of 7 x 7
    resized = resize_positions(table, (7, 14), prefix=0, antialias=False).reshape(7, 14)
    # Keys' kernel with a = -0.75 at distances 1.75, 1.25, 0.75, 0.25 from the middle.
    taps = [-0.03515625, -0.10546875, 0.26171875, 0.87890625]
    np.testing.assert_allclose(resized[3, 3:11], [*taps, *taps[::-1]], atol=1e-6)
