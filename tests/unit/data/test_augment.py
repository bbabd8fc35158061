from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from tunekit.data.augment import FILL, OPERATIONS, augment, crop_box, rand_augment
from tunekit.data.spec import AugmentSpec, RandAugmentSpec


@pytest.fixture
def image(picture):
    return picture(width=24, height=16)


def varied(image, seed=0, size=(16, 24), **fields):
    return augment(image, AugmentSpec(**fields), size, "bicubic", np.random.default_rng(seed))


def test_nothing_asked_is_a_plain_resize(image):
    expected = np.asarray(image.resize((12, 8), Image.Resampling.BICUBIC))
    assert np.array_equal(varied(image, size=(8, 12)), expected)


@pytest.mark.parametrize(("field", "axis"), [("horizontal_flip", 1), ("vertical_flip", 0)])
def test_flips_mirror_half_of_the_images(image, field, axis):
    pixels = np.asarray(image)
    flipped = 0
    for seed in range(60):
        found = varied(image, seed, **{field: True})
        flipped += np.array_equal(found, np.flip(pixels, axis))
        assert np.array_equal(found, pixels) or np.array_equal(found, np.flip(pixels, axis))
    assert 18 < flipped < 42


def test_same_chance_gives_the_same_image(image):
    fields = {
        "horizontal_flip": True,
        "random_resized_crop": (0.3, 1.0),
        "randaugment": RandAugmentSpec(),
    }
    assert np.array_equal(varied(image, 5, **fields), varied(image, 5, **fields))
    found = {varied(image, seed, **fields).tobytes() for seed in range(10)}
    assert len(found) == 10


def test_crop_is_inside_and_of_the_area_and_ratio_asked_for():
    rng = np.random.default_rng(0)
    areas = []
    for _ in range(300):
        left, top, right, bottom = crop_box(400, 300, (0.2, 0.6), rng)
        assert 0 <= left < right <= 400 and 0 <= top < bottom <= 300
        width, height = right - left, bottom - top
        assert 0.74 < width / height < 1.35
        areas.append(width * height / 120_000)
    assert 0.19 < min(areas) < 0.25 and 0.5 < max(areas) < 0.61


def test_crop_that_cannot_fit_falls_back_to_the_centre():
    assert crop_box(1000, 10, (1.0, 1.0), np.random.default_rng(0)) == (493, 0, 506, 10)


def test_crop_is_resized_to_the_size(image):
    assert varied(image, size=(7, 9), random_resized_crop=(0.5, 0.5)).shape == (7, 9, 3)


def test_every_operation_keeps_size_mode_and_input(image):
    before = image.tobytes()
    for name, operation in OPERATIONS.items():
        for sign in (-1, 1):
            found = operation(image, 0.9, sign)
            assert (found.size, found.mode) == (image.size, "RGB"), name
    assert image.tobytes() == before


@pytest.mark.parametrize("name", sorted(set(OPERATIONS) - {"auto_contrast", "equalize", "invert"}))
def test_strength_zero_changes_nothing_and_full_strength_does(image, name):
    for sign in (-1, 1):
        assert np.array_equal(OPERATIONS[name](image, 0.0, sign), image)
        assert not np.array_equal(OPERATIONS[name](image, 1.0, sign), image)


def test_point_operations_equal_their_formulas(image):
    pixels = np.asarray(image).astype(int)
    expected = {
        "invert": 255 - pixels,
        "solarize": np.where(pixels >= 128, 255 - pixels, pixels),
        "solarize_add": np.where(pixels < 128, np.minimum(pixels + 55, 255), pixels),
        "posterize": pixels & 0b11111100,
    }
    for name, formula in expected.items():
        assert np.array_equal(OPERATIONS[name](image, 0.5, 1), formula), name


def test_brightness_scales_pixels_both_ways():
    grey = Image.new("RGB", (2, 2), (100, 100, 100))
    assert np.asarray(OPERATIONS["brightness"](grey, 1.0, 1)).flat[0] == 190
    assert np.asarray(OPERATIONS["brightness"](grey, 1.0, -1)).flat[0] == 10


def test_translation_moves_by_a_share_of_the_side_and_fills_with_grey():
    white = Image.new("RGB", (20, 20), "white")
    moved = np.asarray(OPERATIONS["translate_x"](white, 1.0, 1))
    assert (moved[:, :11] == 255).all() and (moved[:, 11:] == FILL).all()
    moved = np.asarray(OPERATIONS["translate_y"](white, 1.0, -1))
    assert (moved[9:] == 255).all() and (moved[:9] == FILL).all()


def test_rotation_turns_counter_clockwise_for_a_positive_sign(image):
    expected = image.rotate(15, Image.Resampling.BILINEAR, fillcolor=FILL)
    assert np.array_equal(OPERATIONS["rotate"](image, 0.5, 1), expected)


def test_randaugment_draws_all_operations_anew_for_every_image(image):
    spec = RandAugmentSpec(num_ops=1, magnitude=7)
    rng = np.random.default_rng(0)
    found = {rand_augment(image, spec, rng).tobytes() for _ in range(400)}
    possible = {op(image, 0.7, sign).tobytes() for op in OPERATIONS.values() for sign in (-1, 1)}
    assert found == possible


def test_randaugment_applies_as_many_operations_as_asked(image):
    one, three = (
        rand_augment(image, RandAugmentSpec(num_ops=n, magnitude=5), np.random.default_rng(4))
        for n in (1, 3)
    )
    assert not np.array_equal(one, three)
