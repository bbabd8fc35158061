"""One small network of each family, loaded as a user loads it, and images that can be learnt."""

from __future__ import annotations

from collections.abc import Callable

import keras
import numpy as np

from tunekit.models import hub
from tunekit.models.loading import load_model
from tunekit.models.model import Model

SIDE_PX = 32
LABELS = ("blue", "green", "red")


def images(count: int = 18, seed: int = 0) -> tuple[np.ndarray, list[str]]:
    """Noisy uint8 images [N, 32, 32, 3], one channel bright: the label."""
    rng = np.random.default_rng(seed)
    channel = np.arange(count) % 3
    pixels = rng.integers(0, 150, (count, SIDE_PX, SIDE_PX, 3))
    pixels[np.arange(count), :, :, channel] += 80
    names = ("red", "green", "blue")
    return pixels.astype(np.uint8), [names[c] for c in channel]


def resnet() -> keras.Model:
    """Two stages of one basic block: BatchNorm everywhere."""
    return hub.keras_hub().models.ResNetBackbone(
        input_conv_filters=[64],
        input_conv_kernel_sizes=[3],
        stackwise_num_filters=[64, 64],
        stackwise_num_blocks=[1, 1],
        stackwise_num_strides=[1, 2],
        block_type="basic_block",
        image_shape=(SIDE_PX, SIDE_PX, 3),
    )


def vit() -> keras.Model:
    """Two transformer layers with dropout: a container layer with blocks inside."""
    return hub.keras_hub().models.ViTBackbone(
        image_shape=(SIDE_PX, SIDE_PX, 3),
        patch_size=16,
        num_layers=2,
        num_heads=2,
        hidden_dim=16,
        mlp_dim=32,
        dropout_rate=0.1,
    )


def dinov2() -> keras.Model:
    """Two transformer layers with LayerScale."""
    return hub.keras_hub().models.DINOV2Backbone(
        patch_size=16,
        num_layers=2,
        hidden_dim=16,
        num_heads=2,
        intermediate_dim=32,
        layer_scale_init_value=1.0,
        num_register_tokens=0,
        use_mask_token=False,
        use_swiglu_ffn=False,
        dropout_rate=0.0,
        drop_path_rate=0.0,
        image_shape=(SIDE_PX, SIDE_PX, 3),
        position_embedding_shape=(SIDE_PX, SIDE_PX),
    )


def plain_cnn() -> keras.Model:
    """What a user builds: no residuals, BatchNorm, dropout, a stride."""
    layers = keras.layers
    x = inputs = keras.Input((SIDE_PX, SIDE_PX, 3))
    x = layers.Rescaling(1 / 255)(x)
    for width in (8, 16):
        x = layers.Conv2D(width, 3, strides=2, padding="same")(x)
        x = layers.BatchNormalization()(x)
        x = layers.ReLU()(x)
        x = layers.SpatialDropout2D(0.1)(x)
    return keras.Model(inputs, x)


def efficientnet() -> Model:
    """The first blocks of the bundled network: depthwise convolutions, real weights."""
    return load_model("efficientnet_lite0", image_size=SIDE_PX, blocks=6, labels=LABELS)


def fixed(network: keras.Model) -> keras.Model:
    """Returns the network with values that are always the same: Keras draws from a global seed."""
    rng = np.random.default_rng(0)
    for variable in network.variables:
        if variable.dtype == "float32" and len(variable.shape) > 1:
            fan_in = max(int(np.prod(variable.shape[:-1])), 1)
            variable.assign(rng.normal(size=variable.shape) * (1.5 / fan_in) ** 0.5)
        elif variable.name == "bias":  # random too in KerasHub's ViT
            variable.assign(np.zeros(variable.shape))
    return network


def _loaded(build: Callable[[], keras.Model]) -> Callable[[], Model]:
    return lambda: load_model(fixed(build()), labels=LABELS)


FAMILIES: dict[str, Callable[[], Model]] = {
    "resnet": _loaded(resnet),
    "vit": _loaded(vit),
    "dinov2": _loaded(dinov2),
    "plain_cnn": _loaded(plain_cnn),
    "efficientnet": efficientnet,
}
"""Each gives a fresh model, always with the same values."""
