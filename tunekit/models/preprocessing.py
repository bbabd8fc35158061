"""What the pretraining did to an image before the network saw it, done again on PIL.

Resizing goes through Pillow's antialiased filters, as in timm and in the image processors of
Hugging Face, so `to_pixels` equals theirs bit for bit; the affine normalisation is left to the
model, which takes pixels.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import numpy as np
from PIL import Image

from tunekit.errors import DataError

Interpolation = Literal["nearest", "box", "bilinear", "hamming", "bicubic", "lanczos"]

PIL_CODES: dict[int, Interpolation] = {
    0: "nearest",
    1: "lanczos",
    2: "bilinear",
    3: "bicubic",
    4: "box",
    5: "hamming",
}
"""Pillow's numbers for its filters, as Hugging Face writes them in `resample`."""


@dataclass(frozen=True)
class ImagePreprocessing:
    """From an image of any size to the pixels, and from pixels to the input of a backbone.

    `scale` and `offset` hold one number per channel (red, green, blue):
    ``normalised = pixel * scale + offset`` with pixels in 0..255.
    """

    image_size_px: tuple[int, int]
    """(height, width) of what the backbone takes."""
    resize: Literal["squash", "crop", "pad"] = "crop"
    """Ignore the aspect ratio; fill the size and cut off the rest; or fit in and fill the rest."""
    crop_fraction: float = 1.0
    """The image is resized to size / crop_fraction, rounded down, and its centre is cut out."""
    crop_rounding: Literal["even", "down"] = "even"
    """Where an odd margin puts the crop: as torchvision (and timm) or as Hugging Face does."""
    interpolation: Interpolation = "bicubic"
    scale: tuple[float, float, float] = (1.0, 1.0, 1.0)
    offset: tuple[float, float, float] = (0.0, 0.0, 0.0)

    def with_mean_std(
        self, mean: Sequence[float], std: Sequence[float], *, rescale: float = 1 / 255
    ) -> ImagePreprocessing:
        """Returns the same but normalising by ``(pixel * rescale - mean) / std``."""
        return replace(
            self,
            scale=tuple(rescale / s for s in std),
            offset=tuple(-m / s for m, s in zip(mean, std, strict=True)),
        )

    def with_size(self, image_size_px: tuple[int, int]) -> ImagePreprocessing:
        """Returns the same preprocessing for another size of the result."""
        return replace(self, image_size_px=image_size_px)

    def to_pixels(self, image: Image.Image | np.ndarray) -> np.ndarray:
        """Returns `image` resized, cropped and in RGB: uint8 [H, W, 3].

        Args:
            image: PIL image of any mode, or array [H, W], [H, W, 1], [H, W, 3] or [H, W, 4] with
                values 0..255.

        Raises:
            DataError: the array is no such image.
        """
        rgb = as_rgb(image)
        height, width = self.image_size_px
        new_height, new_width = self._resized(rgb.height, rgb.width)
        resized = rgb.resize((new_width, new_height), _filter(self))
        if resized.height < height or resized.width < width:
            resized = self._padded(resized)
        top, left = (
            self._margin(a, b) for a, b in zip(_size(resized), (height, width), strict=True)
        )
        return np.asarray(resized.crop((left, top, left + width, top + height)))

    def normalise(self, pixels: np.ndarray) -> np.ndarray:
        """Returns float32 `pixels * scale + offset`, shape kept ([..., 3])."""
        scale, offset = np.array(self.scale, np.float32), np.array(self.offset, np.float32)
        return pixels.astype(np.float32) * scale + offset

    def to_json(self) -> dict[str, Any]:
        """Returns the fields as plain JSON values."""
        return {key: _plain(value) for key, value in asdict(self).items()}

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> ImagePreprocessing:
        """Returns the preprocessing that `to_json` described."""
        values: dict[str, Any] = {
            k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()
        }
        return cls(**values)

    def _resized(self, height: int, width: int) -> tuple[int, int]:
        """(height, width) after the resize that precedes the centre crop."""
        target_h, target_w = (math.floor(side / self.crop_fraction) for side in self.image_size_px)
        if self.resize == "squash":
            return target_h, target_w
        if self.resize == "crop" and target_h == target_w:
            # torchvision's Resize(int) and Hugging Face's shortest edge round the long side down.
            if width <= height:
                return int(target_w * height / width), target_w
            return target_h, int(target_h * width / height)
        # timm's ResizeKeepRatio rounds to the nearest.
        ratios = height / target_h, width / target_w
        ratio = max(ratios) if self.resize == "pad" else min(ratios)
        return round(height / ratio), round(width / ratio)

    def _padded(self, image: Image.Image) -> Image.Image:
        """The image in the middle of a canvas at least as large as the result, mean-coloured."""
        height, width = (max(a, b) for a, b in zip(_size(image), self.image_size_px, strict=True))
        mean = (-o / s for o, s in zip(self.offset, self.scale, strict=True))
        canvas = Image.new("RGB", (width, height), tuple(round(min(max(m, 0), 255)) for m in mean))
        canvas.paste(image, ((width - image.width) // 2, (height - image.height) // 2))
        return canvas

    def _margin(self, have: int, want: int) -> int:
        """Pixels cut off before a centre crop of `want` out of `have`."""
        if self.crop_rounding == "down":
            return (have - want) // 2
        return round((have - want) / 2.0)  # to even: round(1.5) == 2, round(0.5) == 0


def crop_fraction(size: int, resized: int) -> float:
    """Returns the fraction f for which ``floor(size / f)`` is `resized`, despite rounding."""
    fraction = size / resized
    while math.floor(size / fraction) < resized:
        fraction = math.nextafter(fraction, 0)
    return fraction


def as_rgb(image: Image.Image | np.ndarray) -> Image.Image:
    """Returns `image` as a PIL image in RGB; see `ImagePreprocessing.to_pixels`."""
    if isinstance(image, Image.Image):
        return image if image.mode == "RGB" else image.convert("RGB")
    array = np.asarray(image)
    if array.ndim == 3 and array.shape[-1] == 1:
        array = array[..., 0]
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[-1] not in (3, 4)):
        raise DataError(
            f"an image is an array [H, W], [H, W, 1], [H, W, 3] or [H, W, 4], got shape "
            f"{np.shape(image)}; channels come last."
        )
    return Image.fromarray(_bytes(array)).convert("RGB")


def _bytes(array: np.ndarray) -> np.ndarray:
    if array.dtype == np.uint8:
        return array
    low, high = (float(array.min()), float(array.max())) if array.size else (0.0, 0.0)
    if not (low >= 0 and high <= 255):
        raise DataError(f"pixels are values in 0..255, got {low:g}..{high:g} of {array.dtype}.")
    if high <= 1 and np.issubdtype(array.dtype, np.floating) and np.any(array % 1):
        raise DataError(f"pixels are values in 0..255, got {low:g}..{high:g}; multiply by 255.")
    return np.round(array).astype(np.uint8)


def _filter(preprocessing: ImagePreprocessing) -> Image.Resampling:
    return Image.Resampling[preprocessing.interpolation.upper()]


def _size(image: Image.Image) -> tuple[int, int]:
    return image.height, image.width


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
