"""Turns anything that is an image into 8-bit RGB."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from tunekit.errors import DataError

IMAGE_SUFFIXES = frozenset(
    ".avif .bmp .gif .jfif .jpe .jpeg .jpg .pbm .pgm .png .pnm .ppm .tif .tiff .webp".split()
)


def decode(encoded: bytes | Path, name: str) -> Image.Image:
    """Returns the upright 8-bit RGB image in a file or in a file's bytes.

    Args:
        encoded: a path, or the content of an image file.
        name: what to call the image in an error.

    Raises:
        DataError: the bytes are no image, or a damaged one.
    """
    try:
        with Image.open(io.BytesIO(encoded) if isinstance(encoded, bytes) else encoded) as image:
            return to_rgb(image)
    except FileNotFoundError:
        raise DataError(f"{name}: no such file") from None
    # Damaged files raise almost anything in Pillow's decoders, struct.error and SyntaxError too.
    except Exception as error:
        raise DataError(f"{name}: cannot be read as an image ({_reason(error)})") from error


def damage(encoded: bytes) -> str | None:
    """Returns why the bytes cannot be decoded to the last row, or None where they can."""
    try:
        with Image.open(io.BytesIO(encoded)) as image:
            # A JPEG decoded at an eighth of its size still reads every byte, in less time.
            image.draft(None, (max(1, image.width // 8), max(1, image.height // 8)))
            to_rgb(image)
    except Exception as error:
        return _reason(error)
    return None


def to_rgb(image: Image.Image) -> Image.Image:
    """Returns the image upright (EXIF orientation applied) in mode RGB.

    16-bit grey is scaled to 8 bits, where Pillow's own conversion clips at 255; transparent pixels
    are laid over white, where Pillow's would show whatever colour is stored below them.

    Raises:
        ValueError: the pixels are floats, or integers wider than 16 bits.
    """
    image = ImageOps.exif_transpose(image)
    if image.mode == "RGB":
        return image
    if image.mode.startswith("I"):
        return _from_wide_grey(image)
    if image.mode == "F":
        raise ValueError("float pixels have no known range; save it with 8 or 16 bits")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def array_to_rgb(array: Any, name: str) -> np.ndarray:
    """Returns uint8 [H, W, 3] of one image array, grey [H, W] or [H, W, 1] repeated.

    Args:
        array: pixels in 0..255, [H, W], [H, W, 1] or [H, W, 3], uint8 or whole-range numbers.
        name: what to call the image in an error.

    Raises:
        DataError: the shape or the range is not an image's.
    """
    pixels = np.asarray(array)
    if pixels.ndim == 2:
        pixels = pixels[..., None]
    if pixels.ndim != 3 or pixels.shape[-1] not in (1, 3) or 0 in pixels.shape:
        raise DataError(
            f"{name}: expected an image of shape [height, width, 3] or [height, width], "
            f"got {list(np.shape(array))}"
        )
    problem = range_problem(pixels)
    if problem:
        raise DataError(f"{name}: {problem}")
    if pixels.dtype != np.uint8:
        pixels = np.rint(pixels).astype(np.uint8)
    return np.repeat(pixels, 3, axis=-1) if pixels.shape[-1] == 1 else pixels


def range_problem(pixels: np.ndarray) -> str | None:
    """Returns why numbers are not pixels in 0..255, or None where they are.

    uint8 is always taken; other numbers must lie in 0..255 and reach beyond 1, or be all black.
    """
    if pixels.dtype == np.uint8:
        return None
    if pixels.dtype.kind not in "iuf":
        return f"expected pixels as uint8 in 0..255, got dtype {pixels.dtype}"
    if pixels.dtype.kind == "f" and not np.isfinite(pixels).all():
        return f"{int((~np.isfinite(pixels)).sum())} pixels are NaN or infinite"
    low, high = float(pixels.min()), float(pixels.max())
    if low == high == 0 or (0 <= low and 1 < high <= 255):
        return None
    came = f"expected pixels in 0..255, got {pixels.dtype} in {low:g}..{high:g}; "
    if high <= 1:
        return came + ("multiply by 255" if low >= 0 else "undo the normalisation")
    if pixels.dtype.kind in "iu" and low >= 0 and high < 2**16:
        return came + "divide 16-bit pixels by 257"
    return came + "rescale them"


def _from_wide_grey(image: Image.Image) -> Image.Image:
    pixels = np.asarray(image).astype(np.int64)
    if pixels.min() < 0 or pixels.max() >= 2**16:
        raise ValueError(f"grey levels {pixels.min()}..{pixels.max()} do not fit 16 bits")
    return Image.fromarray(((pixels + 128) // 257).astype(np.uint8)).convert("RGB")


def _reason(error: Exception) -> str:
    text = str(error)
    if "cannot identify image file" in text:
        return "not an image of a known format"
    return text or type(error).__name__
