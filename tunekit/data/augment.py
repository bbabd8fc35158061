"""Random variations of one image, on the host, before it joins a batch.

RandAugment is our own, on Pillow: Keras' `RandAugment` layer chooses its operations with Python's
`random` while it is traced, so under `jit` every batch would get the same ones.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

from tunekit.data.spec import AugmentSpec, RandAugmentSpec

FILL = (128, 128, 128)
"""Colour of what geometry moves into view: mid-grey, as in the AutoAugment code."""


def augment(
    image: Image.Image,
    spec: AugmentSpec,
    size_px: tuple[int, int],
    interpolation: str,
    rng: np.random.Generator,
) -> np.ndarray:
    """Returns a random variation of an image as uint8 [H, W, 3].

    Args:
        image: mode RGB, any size.
        spec: which variations; mixup and cutmix are not applied here.
        size_px: (height, width) of the result.
        interpolation: a name of `PIL.Image.Resampling`, in lower case.
        rng: the only source of chance.
    """
    height, width = size_px
    box = None
    if spec.random_resized_crop is not None:
        box = crop_box(image.width, image.height, spec.random_resized_crop, rng)
    image = image.resize((width, height), Image.Resampling[interpolation.upper()], box)
    if spec.horizontal_flip and rng.random() < 0.5:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    if spec.vertical_flip and rng.random() < 0.5:
        image = image.transpose(Image.Transpose.FLIP_TOP_BOTTOM)
    if spec.randaugment is not None:
        image = rand_augment(image, spec.randaugment, rng)
    return np.asarray(image)


def crop_box(
    width: int, height: int, area: tuple[float, float], rng: np.random.Generator
) -> tuple[int, int, int, int]:
    """Returns a random box (left, top, right, bottom) of a share of the area.

    The share is uniform in `area`, the aspect ratio log-uniform in 3/4..4/3; after ten boxes that
    do not fit, the largest central box of an allowed ratio.

    Source: Szegedy et al. 2015 (arXiv:1409.4842), as completed by torchvision.
    """
    for _ in range(10):
        pixels = width * height * rng.uniform(*area)
        ratio = math.exp(rng.uniform(math.log(3 / 4), math.log(4 / 3)))
        w, h = round(math.sqrt(pixels * ratio)), round(math.sqrt(pixels / ratio))
        if 0 < w <= width and 0 < h <= height:
            left, top = int(rng.integers(width - w + 1)), int(rng.integers(height - h + 1))
            return left, top, left + w, top + h
    w = min(width, round(height * 4 / 3))
    h = min(height, round(width / (3 / 4)))
    left, top = (width - w) // 2, (height - h) // 2
    return left, top, left + w, top + h


def rand_augment(
    image: Image.Image, spec: RandAugmentSpec, rng: np.random.Generator
) -> Image.Image:
    """Returns the image after `num_ops` operations, each drawn from all with equal chance.

    Strength is magnitude / 10 of each operation's full range; its direction, where it has one, is
    chosen by a coin.

    Source: Cubuk et al. 2019 (arXiv:1909.13719). Departures: timm's operations (the paper's, less
    identity, with invert and solarize_add), torchvision's ranges, so that magnitude 0 changes
    little, and every drawn operation is applied.
    """
    strength = spec.magnitude / 10
    for index in rng.integers(len(OPERATIONS), size=spec.num_ops):
        sign = 1 if rng.random() < 0.5 else -1
        image = list(OPERATIONS.values())[index](image, strength, sign)
    return image


Operation = Callable[[Image.Image, float, int], Image.Image]


def _affine(image: Image.Image, a: float, b: float, c: float, d: float, e: float, f: float):
    """Returns the image whose pixel (x, y) is the one at (ax + by + c, dx + ey + f)."""
    return image.transform(
        image.size,
        Image.Transform.AFFINE,
        (a, b, c, d, e, f),
        Image.Resampling.BILINEAR,
        fillcolor=FILL,
    )


def _shear_x(image: Image.Image, strength: float, sign: int) -> Image.Image:
    return _affine(image, 1, 0.3 * strength * sign, 0, 0, 1, 0)


def _shear_y(image: Image.Image, strength: float, sign: int) -> Image.Image:
    return _affine(image, 1, 0, 0, 0.3 * strength * sign, 1, 0)


def _translate_x(image: Image.Image, strength: float, sign: int) -> Image.Image:
    return _affine(image, 1, 0, 0.45 * strength * sign * image.width, 0, 1, 0)


def _translate_y(image: Image.Image, strength: float, sign: int) -> Image.Image:
    return _affine(image, 1, 0, 0, 0, 1, 0.45 * strength * sign * image.height)


def _rotate(image: Image.Image, strength: float, sign: int) -> Image.Image:
    return image.rotate(30 * strength * sign, Image.Resampling.BILINEAR, fillcolor=FILL)


def _enhance(kind: Callable[[Image.Image], ImageEnhance._Enhance]) -> Operation:
    """Returns the operation that moves a quality up or down by at most 0.9 of itself."""
    return lambda image, strength, sign: kind(image).enhance(1 + 0.9 * strength * sign)


def _posterize(image: Image.Image, strength: float, sign: int) -> Image.Image:
    return ImageOps.posterize(image, 8 - round(4 * strength))


def _solarize(image: Image.Image, strength: float, sign: int) -> Image.Image:
    return ImageOps.solarize(image, 256 - round(256 * strength))


def _solarize_add(image: Image.Image, strength: float, sign: int) -> Image.Image:
    added = round(110 * strength)
    return image.point([min(255, i + added) if i < 128 else i for i in range(256)] * 3)


OPERATIONS: dict[str, Operation] = {
    "auto_contrast": lambda image, strength, sign: ImageOps.autocontrast(image),
    "equalize": lambda image, strength, sign: ImageOps.equalize(image),
    "invert": lambda image, strength, sign: ImageOps.invert(image),
    "rotate": _rotate,
    "posterize": _posterize,
    "solarize": _solarize,
    "solarize_add": _solarize_add,
    "color": _enhance(ImageEnhance.Color),
    "contrast": _enhance(ImageEnhance.Contrast),
    "brightness": _enhance(ImageEnhance.Brightness),
    "sharpness": _enhance(ImageEnhance.Sharpness),
    "shear_x": _shear_x,
    "shear_y": _shear_y,
    "translate_x": _translate_x,
    "translate_y": _translate_y,
}
"""What RandAugment draws from, in this order: (image, strength in 0..1, sign) to image."""
