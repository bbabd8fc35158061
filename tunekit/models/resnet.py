"""Residual networks as torch builds them: any widths, and either place for the stride.

KerasHub's ResNetBackbone wants a first width of 64 and strides in the 3x3 convolution; the layers
here have its names. With zero padding before the pool after a ReLU, the pool equals torch's,
which pads with minus infinity.
"""

from __future__ import annotations

from dataclasses import dataclass

import keras
from keras import layers

from tunekit.models.torch_weights import TorchWeights


@dataclass(frozen=True)
class ResNetShape:
    """What sets one residual network apart from another."""

    widths: tuple[int, ...] = (256, 512, 1024, 2048)
    """Channels that leave each stage."""
    depths: tuple[int, ...] = (3, 4, 6, 3)
    """Blocks of each stage."""
    bottleneck: bool = True
    """Blocks of 1x1, 3x3, 1x1 convolutions on a quarter of the width; else two of 3x3."""
    stem_width: int = 64
    stride_in_first_conv: bool = False
    """Bottlenecks stride in the first 1x1 (Caffe's ResNet) instead of the 3x3 (torchvision's)."""
    stride_in_first_stage: bool = False

    def blocks(self) -> list[tuple[str, int, int, int, int]]:
        """Returns (name, stage, index, width, stride) of every block, in order."""
        return [
            (f"stack{stage}_block{index}", stage, index, width, self._stride(stage, index))
            for stage, (width, depth) in enumerate(zip(self.widths, self.depths, strict=True))
            for index in range(depth)
        ]

    def _stride(self, stage: int, index: int) -> int:
        return 2 if index == 0 and (stage > 0 or self.stride_in_first_stage) else 1


@dataclass(frozen=True)
class ResNetNames:
    """Where a library keeps the tensors; `{s}` is the stage, `{b}` the block, `{c}` the layer."""

    stem: tuple[str, str]
    """Convolution and normalisation of the stem."""
    block: tuple[str, str]
    """Those of layer c of a block, counted from `first`."""
    shortcut: tuple[str, str]
    first: int
    first_stage: int


HUGGINGFACE = ResNetNames(
    stem=("embedder.embedder.convolution", "embedder.embedder.normalization"),
    block=(
        "encoder.stages.{s}.layers.{b}.layer.{c}.convolution",
        "encoder.stages.{s}.layers.{b}.layer.{c}.normalization",
    ),
    shortcut=(
        "encoder.stages.{s}.layers.{b}.shortcut.convolution",
        "encoder.stages.{s}.layers.{b}.shortcut.normalization",
    ),
    first=0,
    first_stage=0,
)
TIMM = ResNetNames(
    stem=("conv1", "bn1"),
    block=("layer{s}.{b}.conv{c}", "layer{s}.{b}.bn{c}"),
    shortcut=("layer{s}.{b}.downsample.0", "layer{s}.{b}.downsample.1"),
    first=1,
    first_stage=1,
)


def build(shape: ResNetShape, image_size: tuple[int, int]) -> keras.Model:
    """Returns the network from normalised images [B, H, W, 3] to its last feature map."""
    images = keras.Input((*image_size, 3), name="images")
    x = layers.ZeroPadding2D(3, name="conv1_pad")(images)
    x = _conv_bn(x, shape.stem_width, 7, stride=2, name="conv1", padded=True)
    x = layers.Activation("relu", name="conv1_relu")(x)
    x = layers.ZeroPadding2D(1, name="pool1_pad")(x)
    x = layers.MaxPooling2D(3, strides=2, name="pool1_pool")(x)
    for name, _, _, width, stride in shape.blocks():
        x = _block(x, shape, width, stride, name)
    return keras.Model(images, x, name="resnet")


def fill(model: keras.Model, shape: ResNetShape, weights: TorchWeights, names: ResNetNames) -> None:
    """The layers of `model` hold the tensors of `weights`."""
    conv, norm = names.stem
    weights.conv(model.get_layer("conv1_conv"), conv)
    weights.batch_norm(model.get_layer("conv1_bn"), norm)
    built = {layer.name for layer in model.layers}
    for block, stage, index, _, _ in shape.blocks():
        for layer in range(4):
            if f"{block}_{layer}_conv" not in built:
                continue
            place = {"s": stage + names.first_stage, "b": index, "c": layer - 1 + names.first}
            conv, norm = names.shortcut if layer == 0 else names.block
            weights.conv(model.get_layer(f"{block}_{layer}_conv"), conv.format(**place))
            weights.batch_norm(model.get_layer(f"{block}_{layer}_bn"), norm.format(**place))


def _block(
    x: keras.KerasTensor, shape: ResNetShape, width: int, stride: int, name: str
) -> keras.KerasTensor:
    shortcut = x
    if stride != 1 or x.shape[-1] != width:
        shortcut = _conv_bn(x, width, 1, stride=stride, name=f"{name}_0")
    if shape.bottleneck:
        early, late = (stride, 1) if shape.stride_in_first_conv else (1, stride)
        plan = [(width // 4, 1, early), (width // 4, 3, late), (width, 1, 1)]
    else:
        plan = [(width, 3, stride), (width, 3, 1)]
    for number, (filters, kernel, step) in enumerate(plan, start=1):
        x = _conv_bn(x, filters, kernel, stride=step, name=f"{name}_{number}")
        if number < len(plan):
            x = layers.Activation("relu", name=f"{name}_{number}_relu")(x)
    x = layers.Add(name=f"{name}_add")([shortcut, x])
    return layers.Activation("relu", name=f"{name}_out")(x)


def _conv_bn(
    x: keras.KerasTensor,
    filters: int,
    kernel: int,
    *,
    stride: int,
    name: str,
    padded: bool = False,
) -> keras.KerasTensor:
    if kernel > 1 and stride > 1 and not padded:
        # torch pads both sides alike; "same" pads strided convolutions at the end first.
        x = layers.ZeroPadding2D(kernel // 2, name=f"{name}_pad")(x)
    padding = "valid" if stride > 1 or padded else "same"
    conv = layers.Conv2D(
        filters,
        kernel,
        strides=stride,
        padding=padding,
        use_bias=False,
        kernel_initializer="he_normal",
        name=f"{name}_conv",
    )
    norm = layers.BatchNormalization(momentum=0.9, epsilon=1e-5, name=f"{name}_bn")
    return norm(conv(x))
