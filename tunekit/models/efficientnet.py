"""EfficientNet as timm keeps it, built as KerasHub's, with torch's or TensorFlow's padding."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

from tunekit.models import hub
from tunekit.models.torch_weights import TorchWeights

# Width and depth coefficients of the paper's table (Tan and Le, 2019).
COEFFICIENTS: dict[str, tuple[float, float]] = {
    "b0": (1.0, 1.0),
    "b1": (1.0, 1.1),
    "b2": (1.1, 1.2),
    "b3": (1.2, 1.4),
    "b4": (1.4, 1.8),
    "b5": (1.6, 2.2),
    "lite0": (1.0, 1.0),
}
_KERNELS = (3, 3, 5, 3, 5, 5, 3)
_REPEATS = (1, 2, 2, 3, 3, 4, 1)
_STRIDES = (1, 2, 2, 2, 1, 2, 1)
_EXPANSIONS = (1, 6, 6, 6, 6, 6, 6)


@dataclass(frozen=True)
class EfficientNetShape:
    """What sets one EfficientNet apart from another."""

    variant: str
    """A key of `COEFFICIENTS`."""
    same_padding: bool
    """Weights from TensorFlow ("tf_" in timm's names): its SAME padding, its epsilon of 1e-3."""

    @property
    def lite(self) -> bool:
        """Without squeeze-and-excitation, with ReLU6."""
        return self.variant.startswith("lite")

    def kernels(self) -> list[int]:
        """Returns the kernel size built for each stage.

        KerasHub pads alike on both sides, SAME pads strided convolutions more at the end. The
        same sums come out of a kernel 2 larger that holds the old one off its centre.
        """
        widened = self.same_padding
        return [k + 2 if s == 2 and widened else k for k, s in zip(_KERNELS, _STRIDES, strict=True)]

    def repeats(self) -> list[int]:
        """Returns the number of blocks in each stage."""
        return [math.ceil(r * COEFFICIENTS[self.variant][1]) for r in _REPEATS]


def build(shape: EfficientNetShape, image_size: tuple[int, int]) -> keras.Model:
    """Returns KerasHub's backbone of that shape, from normalised images to a feature map."""
    width, depth = COEFFICIENTS[shape.variant]
    return hub.keras_hub().models.EfficientNetBackbone(
        stackwise_width_coefficients=[width] * 7,
        stackwise_depth_coefficients=[depth] * 7,
        stackwise_squeeze_and_excite_ratios=[0 if shape.lite else 0.25] * 7,
        stackwise_kernel_sizes=shape.kernels(),
        stackwise_num_repeats=list(_REPEATS),
        stackwise_input_filters=[32, 16, 24, 40, 80, 112, 192],
        stackwise_output_filters=[16, 24, 40, 80, 112, 192, 320],
        stackwise_expansion_ratios=list(_EXPANSIONS),
        stackwise_strides=list(_STRIDES),
        stackwise_block_types=["v1"] * 7,
        activation="relu6" if shape.lite else "swish",
        min_depth=None,
        use_depth_divisor_as_min_depth=True,
        cap_round_filter_decrease=True,
        include_stem_padding=not shape.same_padding,
        stem_conv_padding="same" if shape.same_padding else "valid",
        batch_norm_epsilon=1e-3 if shape.same_padding else 1e-5,
        dropout=0.0,
        input_shape=(*image_size, 3),
    )


def fill(model: keras.Model, shape: EfficientNetShape, weights: TorchWeights) -> None:
    """The layers of `model`, from `build`, hold the tensors of `weights`, named as in timm."""
    weights.conv(model.get_layer("stem_conv"), "conv_stem")
    weights.batch_norm(model.get_layer("stem_bn"), "bn1")
    for stage, repeats in enumerate(shape.repeats()):
        for index in range(repeats):
            keras_name, name = f"block{stage + 1}{chr(97 + index)}_", f"blocks.{stage}.{index}."
            _fill_block(model, weights, keras_name, name, expands=_EXPANSIONS[stage] != 1)
    weights.conv(model.get_layer("top_conv"), "conv_head")
    weights.batch_norm(model.get_layer("top_bn"), "bn2")


def _fill_block(
    model: keras.Model, weights: TorchWeights, keras_name: str, name: str, *, expands: bool
) -> None:
    def layer(suffix: str) -> Any:
        return model.get_layer(keras_name + suffix)

    if expands:
        weights.conv(layer("expand_conv"), f"{name}conv_pw")
        weights.batch_norm(layer("expand_bn"), f"{name}bn1")
    kernel = weights.take(f"{name}conv_dw.weight").transpose(2, 3, 0, 1)
    depthwise = layer("dwconv")
    weights.assign(depthwise.kernel, _placed(kernel, depthwise), f"{name}conv_dw.weight")
    weights.batch_norm(layer("dwconv_bn"), f"{name}bn{2 if expands else 1}")
    if f"{name}se.conv_reduce.weight" in weights:
        weights.conv(layer("se_reduce"), f"{name}se.conv_reduce")
        weights.conv(layer("se_expand"), f"{name}se.conv_expand")
    weights.conv(layer("project"), f"{name}{'conv_pwl' if expands else 'conv_pw'}")
    weights.batch_norm(layer("project_bn"), f"{name}bn{3 if expands else 2}")


def _placed(kernel: np.ndarray, layer: Any) -> np.ndarray:
    """`kernel` [k, k, channels, 1] inside one of the size built; see `kernels`."""
    size, built = kernel.shape[0], layer.kernel.shape[0]
    if size == built:
        return kernel
    # The layer's input is padded already; SAME is symmetric for an odd side, and for stride 1.
    sides = [side - 2 * (built // 2) for side in layer.input.shape[1:3]]
    top, left = (2 if layer.strides[0] == 2 and side % 2 == 0 else 1 for side in sides)
    placed = np.zeros((built, built, *kernel.shape[2:]), kernel.dtype)
    placed[top : top + size, left : left + size] = kernel
    return placed
