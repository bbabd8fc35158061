from __future__ import annotations

import io
import re

import numpy as np
import pytest
from PIL import Image

from tunekit.data.decode import array_to_rgb, damage, decode, to_rgb
from tunekit.errors import DataError


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def test_exif_orientation_is_applied(picture):
    image = picture(width=6, height=4)
    exif = Image.Exif()
    exif[0x0112] = 6  # shown rotated by 90 degrees clockwise
    upright = decode(encoded(image, "PNG", exif=exif), "a.png")
    assert np.array_equal(np.asarray(upright), np.rot90(np.asarray(image), -1))


def test_grey_is_repeated_in_three_channels():
    grey = Image.fromarray(np.arange(12, dtype=np.uint8).reshape(3, 4))
    rgb = np.asarray(decode(encoded(grey, "PNG"), "a.png"))
    assert np.array_equal(rgb, np.repeat(np.asarray(grey)[..., None], 3, -1))


def test_sixteen_bit_grey_is_scaled_and_not_clipped():
    levels = np.array([[0, 257, 257 * 128, 65535]], np.uint16)
    rgb = np.asarray(decode(encoded(Image.fromarray(levels), "PNG"), "a.png"))
    assert rgb[0, :, 0].tolist() == [0, 1, 128, 255]


def test_transparent_pixels_are_laid_over_white():
    image = Image.fromarray(np.array([[[9, 9, 9, 0], [10, 20, 30, 255]]], np.uint8))
    assert np.asarray(to_rgb(image)).tolist() == [[[255, 255, 255], [10, 20, 30]]]


def test_palette_colours_are_looked_up(picture):
    image = picture().convert("P")
    rgb = decode(encoded(image, "GIF"), "a.gif")
    assert np.array_equal(np.asarray(rgb), np.asarray(image.convert("RGB")))


def test_cmyk_jpeg_keeps_its_colour():
    red = Image.new("RGB", (16, 16), (255, 0, 0)).convert("CMYK")
    rgb = np.asarray(decode(encoded(red, "JPEG"), "a.jpg")).astype(int)
    assert np.abs(rgb - [255, 0, 0]).max() <= 3


def test_one_bit_image_becomes_black_and_white():
    image = Image.fromarray(np.array([[True, False]]))
    assert np.asarray(to_rgb(image))[0].tolist() == [[255] * 3, [0] * 3]


def test_float_image_is_refused(tmp_path):
    path = tmp_path / "a.tif"
    Image.fromarray(np.zeros((2, 2), np.float32)).save(path)
    with pytest.raises(DataError, match=r"a\.tif: cannot be read as an image \(float pixels have"):
        decode(path, str(path))
    assert "float pixels" in str(damage(path.read_bytes()))


def test_wide_grey_beyond_16_bits_is_refused():
    with pytest.raises(ValueError, match="grey levels 0..70000 do not fit 16 bits"):
        to_rgb(Image.fromarray(np.array([[0, 70000]], np.int32)))


def test_text_named_jpg_is_refused_by_name(tmp_path):
    path = tmp_path / "a.jpg"
    path.write_text("hello")
    expected = re.escape(f"{path}: cannot be read as an image (not an image of a known format)")
    with pytest.raises(DataError, match=expected):
        decode(path, str(path))


def test_missing_file_is_named(tmp_path):
    with pytest.raises(DataError, match=r"gone\.jpg: no such file"):
        decode(tmp_path / "gone.jpg", str(tmp_path / "gone.jpg"))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP"])
def test_cut_off_file_is_damaged_and_a_whole_one_is_not(picture, kind):
    content = encoded(picture(width=64, height=64), kind)
    assert damage(content) is None
    assert damage(content[: len(content) * 2 // 3])


def test_empty_file_is_damaged():
    assert damage(b"") == "not an image of a known format"


def test_black_floats_are_black_in_either_range():
    assert array_to_rgb(np.zeros((2, 2, 3)), "x").max() == 0


@pytest.mark.parametrize("shape", [(4, 5), (4, 5, 1)])
def test_grey_array_is_repeated(shape):
    assert array_to_rgb(np.full(shape, 7, np.uint8), "x").tolist() == np.full((4, 5, 3), 7).tolist()


def test_whole_range_floats_are_rounded_to_bytes():
    pixels = np.array([[[0.4, 254.6, 3.0]]])
    rgb = array_to_rgb(pixels, "x")
    assert rgb.dtype == np.uint8 and rgb.tolist() == [[[0, 255, 3]]]


@pytest.mark.parametrize(
    ("pixels", "message"),
    [
        (np.zeros((2, 2, 4), np.uint8), r"expected an image of shape .* got \[2, 2, 4\]"),
        (np.zeros(3, np.uint8), r"got \[3\]"),
        (np.full((2, 2, 3), 0.5), r"got float64 in 0\.5\.\.0\.5; multiply by 255"),
        (np.linspace(-1, 1, 12).reshape(2, 2, 3), "undo the normalisation"),
        (np.full((2, 2, 3), np.nan), "12 pixels are NaN or infinite"),
        (np.full((2, 2, 3), 300.0), "rescale them"),
        (np.full((2, 2, 3), 4000, np.uint16), "divide 16-bit pixels by 257"),
        (np.zeros((2, 2, 3), bool), "got dtype bool"),
    ],
)
def test_array_that_is_no_image_says_what_to_do(pixels, message):
    with pytest.raises(DataError, match=f"^x: .*{message}"):
        array_to_rgb(pixels, "x")
