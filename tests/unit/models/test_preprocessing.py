"""Pixels as timm and Hugging Face make them; tests/real compares whole photographs."""

import json
import math

import numpy as np
import pytest
from PIL import Image

from tunekit.errors import DataError
from tunekit.models.preprocessing import ImagePreprocessing, as_rgb, crop_fraction


def picture(height: int, width: int) -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def test_an_image_of_the_right_size_is_kept_as_it_is() -> None:
    image = picture(16, 24)
    assert np.array_equal(ImagePreprocessing((16, 24)).to_pixels(image), np.asarray(image))


def test_squash_ignores_the_aspect_ratio() -> None:
    image = picture(40, 20)
    expected = np.asarray(image.resize((8, 8), Image.Resampling.BILINEAR))
    squash = ImagePreprocessing((8, 8), resize="squash", interpolation="bilinear")
    assert np.array_equal(squash.to_pixels(image), expected)


def test_crop_resizes_the_short_side_and_cuts_the_centre() -> None:
    image = picture(30, 50)
    resized = image.resize((int(16 * 50 / 30), 16), Image.Resampling.BICUBIC)  # (26, 16)
    expected = np.asarray(resized)[1:15, 6:20]
    crop = ImagePreprocessing((14, 14), crop_fraction=0.875)
    assert np.array_equal(crop.to_pixels(image), expected)


def test_an_odd_margin_rounds_to_even_for_timm_and_down_for_hugging_face() -> None:
    pixels = np.arange(8 * 11 * 3, dtype=np.uint8).reshape(8, 11, 3)  # margin of 3: 1.5
    even, down = (ImagePreprocessing((8, 8), crop_rounding=r) for r in ("even", "down"))
    assert np.array_equal(even.to_pixels(pixels), pixels[:, 2:10])
    assert np.array_equal(down.to_pixels(pixels), pixels[:, 1:9])


def test_pad_keeps_the_whole_image_on_the_mean_colour() -> None:
    pad = ImagePreprocessing((8, 8), resize="pad").with_mean_std((0.5, 0.25, 1.0), (1, 1, 1))
    pixels = pad.to_pixels(picture(4, 8))
    assert np.array_equal(pixels[2:6], np.asarray(picture(4, 8)))
    assert pixels[0, 0].tolist() == [128, 64, 255]


def test_a_rectangle_is_filled_along_its_tighter_side() -> None:
    assert ImagePreprocessing((8, 16)).to_pixels(picture(100, 90)).shape == (8, 16, 3)
    assert ImagePreprocessing((16, 8)).to_pixels(picture(90, 100)).shape == (16, 8, 3)


def test_normalising_by_mean_and_std_equals_the_definition() -> None:
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    pixels = np.asarray(picture(4, 4))
    got = ImagePreprocessing((4, 4)).with_mean_std(mean, std).normalise(pixels)
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, (pixels / 255 - mean) / std, atol=1e-6)


def test_json_gives_the_same_preprocessing_back() -> None:
    before = ImagePreprocessing((8, 16), "pad", 0.875, "down", "lanczos", (1, 2, 3), (4, 5, 6))
    assert ImagePreprocessing.from_json(json.loads(json.dumps(before.to_json()))) == before


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK", "1", "I;16"])
def test_every_mode_of_pillow_becomes_rgb(mode: str) -> None:
    image = Image.new(mode, (5, 4))
    assert ImagePreprocessing((4, 5)).to_pixels(image).shape == (4, 5, 3)


def test_grey_arrays_and_alpha_become_rgb() -> None:
    grey = np.arange(20, dtype=np.uint8).reshape(4, 5)
    for array in (grey, grey[..., None], np.stack([grey] * 3 + [grey], -1)):
        assert np.array_equal(np.asarray(as_rgb(array)), np.stack([grey] * 3, -1))


def test_float_arrays_of_pixels_are_rounded() -> None:
    array = np.full((2, 2, 3), 12.6, np.float32)
    assert np.asarray(as_rgb(array)).max() == 13


def test_floats_between_0_and_1_are_refused() -> None:
    with pytest.raises(DataError, match=r"0\.\.255, got 0\.5\.\.0\.5; multiply by 255"):
        as_rgb(np.full((2, 2, 3), 0.5))


def test_values_beyond_255_are_refused() -> None:
    with pytest.raises(DataError, match=r"0\.\.255, got 0\.\.300 of int64"):
        as_rgb(np.array([[0, 300]]))


def test_channels_first_is_refused() -> None:
    with pytest.raises(DataError, match=r"got shape \(3, 8, 8\); channels come last"):
        as_rgb(np.zeros((3, 8, 8), np.uint8))


def test_a_crop_fraction_gives_back_the_side_it_was_made_from() -> None:
    for size in range(1, 400, 7):
        for resized in range(size, 520, 3):
            assert math.floor(size / crop_fraction(size, resized)) == resized
