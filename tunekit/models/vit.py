"""Vision transformers as Hugging Face and timm keep them, built as KerasHub's.

A plain ViT becomes a ViTBackbone. What has LayerScale, register tokens or a gated MLP becomes a
DINOV2Backbone, which has them all.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import keras
import numpy as np

from tunekit.errors import ModelError
from tunekit.models import hub
from tunekit.models.positions import resize_positions
from tunekit.models.torch_weights import TorchWeights


@dataclass(frozen=True)
class ViTShape:
    """What sets one vision transformer apart from another."""

    patch: int
    layers: int
    heads: int
    dim: int
    mlp_dim: int
    epsilon: float
    """Of every layer normalisation."""
    qkv_bias: bool = True
    class_token: bool = True
    registers: int = 0
    layer_scale: bool = False
    gated_mlp: bool = False
    antialias_positions: bool = False
    """How the origin of the weights resizes position embeddings; see `resize_positions`."""

    @property
    def is_dinov2(self) -> bool:
        """Whether it has what only KerasHub's DINOv2 has."""
        return self.layer_scale or self.gated_mlp or self.registers > 0


@dataclass(frozen=True)
class ViTNames:
    """Where a library keeps the tensors; those of a block follow `block`, `{}` being its index."""

    class_token: str
    positions: str
    registers: str
    patches: str
    norm: str
    block: str
    norms: tuple[str, str]
    qkv: tuple[str, ...]
    """Three names, or one for the fused projection."""
    output: str
    mlp: tuple[str, str]
    layer_scales: tuple[str, str]


HUGGINGFACE_VIT = ViTNames(
    class_token="embeddings.cls_token",
    positions="embeddings.position_embeddings",
    registers="embeddings.register_tokens",
    patches="embeddings.patch_embeddings.projection",
    norm="layernorm",
    block="encoder.layer.{}.",
    norms=("layernorm_before", "layernorm_after"),
    qkv=tuple(f"attention.attention.{n}" for n in ("query", "key", "value")),
    output="attention.output.dense",
    mlp=("intermediate.dense", "output.dense"),
    layer_scales=("", ""),
)
HUGGINGFACE_DINOV2 = replace(
    HUGGINGFACE_VIT,
    norms=("norm1", "norm2"),
    mlp=("mlp.fc1", "mlp.fc2"),
    layer_scales=("layer_scale1.lambda1", "layer_scale2.lambda1"),
)
HUGGINGFACE_GATED_MLP = ("mlp.weights_in", "mlp.weights_out")
TIMM = ViTNames(
    class_token="cls_token",
    positions="pos_embed",
    registers="reg_token",
    patches="patch_embed.proj",
    norm="norm",
    block="blocks.{}.",
    norms=("norm1", "norm2"),
    qkv=("attn.qkv",),
    output="attn.proj",
    mlp=("mlp.fc1", "mlp.fc2"),
    layer_scales=("ls1.gamma", "ls2.gamma"),
)


def build(shape: ViTShape, image_size: tuple[int, int]) -> keras.Model:
    """Returns KerasHub's backbone of that shape, from normalised images to tokens [B, T, D].

    Raises:
        ModelError: the image is no whole number of patches, or KerasHub has no such transformer.
    """
    if any(side % shape.patch for side in image_size):
        nearest = tuple(max(1, round(side / shape.patch)) * shape.patch for side in image_size)
        raise ModelError(
            f"image_size {image_size} is no whole number of {shape.patch}-pixel patches; "
            f"the nearest is {nearest}."
        )
    models = hub.keras_hub().models
    common: dict[str, Any] = {
        "image_shape": (*image_size, 3),
        "patch_size": shape.patch,
        "num_layers": shape.layers,
        "num_heads": shape.heads,
        "hidden_dim": shape.dim,
    }
    if not shape.is_dinov2:
        return models.ViTBackbone(
            **common,
            mlp_dim=shape.mlp_dim,
            layer_norm_epsilon=shape.epsilon,
            use_mha_bias=shape.qkv_bias,
            use_class_token=shape.class_token,
        )
    _check_dinov2(shape, image_size)
    # Positions are kept at the size of the images: KerasHub's own resize is not torch's.
    return models.DINOV2Backbone(
        **common,
        intermediate_dim=shape.mlp_dim,
        num_register_tokens=shape.registers,
        use_mask_token=False,
        use_swiglu_ffn=shape.gated_mlp,
        position_embedding_shape=(*image_size, 3),
        antialias_in_interpolation=shape.antialias_positions,
    )


def fill(
    model: Any,
    shape: ViTShape,
    weights: TorchWeights,
    names: ViTNames,
    image_size: tuple[int, int],
) -> None:
    """The layers of `model`, from `build`, hold the tensors of `weights`."""
    dinov2 = shape.is_dinov2
    embedding = model.embeddings if dinov2 else model.get_layer("vit_patching_and_embedding")
    patches = embedding.patch_embeddings.projection if dinov2 else embedding.patch_embedding
    weights.conv(patches, names.patches)
    if shape.class_token:
        token = embedding.cls_token if dinov2 else embedding.class_token
        weights.assign(token, weights.take(names.class_token).reshape(token.shape), "class token")
    if shape.registers:
        weights.assign(embedding.register_tokens, weights.take(names.registers), names.registers)
    table = _positions(weights.take(names.positions), shape, image_size)
    if dinov2:
        embedding.position_embeddings.assign(table[None])
        embedding.interpolated_position_embeddings.assign(table[None])
    else:
        weights.assign(embedding.position_embedding.embeddings, table, names.positions)
    encoder = model.encoder if dinov2 else model.get_layer("vit_encoder")
    for index, block in enumerate(encoder.layers if dinov2 else encoder.encoder_layers):
        _fill_block(block, weights, names, names.block.format(index), dinov2=dinov2)
    weights.layer_norm(model.layernorm if dinov2 else encoder.layer_norm, names.norm)


def _fill_block(
    block: Any, weights: TorchWeights, names: ViTNames, prefix: str, *, dinov2: bool
) -> None:
    norms = (block.norm1, block.norm2) if dinov2 else (block.layer_norm_1, block.layer_norm_2)
    for layer, name in zip(norms, names.norms, strict=True):
        weights.layer_norm(layer, prefix + name)
    attention = block.attention.attention if dinov2 else block.mha
    _fill_qkv(attention, weights, [prefix + name for name in names.qkv])
    weights.dense(attention.output_dense, prefix + names.output)
    mlp = block.mlp
    gated = hasattr(mlp, "weights_in")
    first, second = (
        (mlp.weights_in, mlp.weights_out)
        if gated
        else (mlp.fc1, mlp.fc2)
        if dinov2
        else (mlp.dense_1, mlp.dense_2)
    )
    first_name, second_name = HUGGINGFACE_GATED_MLP if gated else names.mlp
    weights.dense(first, prefix + first_name)
    weights.dense(second, prefix + second_name)
    if dinov2:
        scales = (block.layer_scale1, block.layer_scale2)
        for layer, name in zip(scales, names.layer_scales, strict=True):
            has_one = prefix + name in weights
            value = weights.take(prefix + name) if has_one else np.ones(layer.lambda1.shape, "f4")
            weights.assign(layer.lambda1, value, prefix + name)


def _fill_qkv(attention: Any, weights: TorchWeights, names: list[str]) -> None:
    layers = (attention.query_dense, attention.key_dense, attention.value_dense)
    if len(names) == 3:
        for layer, name in zip(layers, names, strict=True):
            weights.dense(layer, name)
        return
    (name,) = names
    kernels = np.split(weights.take(f"{name}.weight"), 3)
    for layer, kernel in zip(layers, kernels, strict=True):
        weights.assign(layer.kernel, kernel.T.reshape(layer.kernel.shape), name)
    if layers[0].bias is not None:
        for layer, bias in zip(layers, np.split(weights.take(f"{name}.bias"), 3), strict=True):
            weights.assign(layer.bias, bias.reshape(layer.bias.shape), name)


def _positions(table: np.ndarray, shape: ViTShape, image_size: tuple[int, int]) -> np.ndarray:
    """Position rows [prefix + patches, D] for images of `image_size`."""
    table = table.reshape(-1, shape.dim)
    side = round(len(table) ** 0.5)
    # timm's register models give positions to patches only ("no_embed_class").
    prefix = 0 if side * side == len(table) else 1
    grid = hub.patch_grid(image_size, shape.patch)
    resized = resize_positions(table, grid, prefix=prefix, antialias=shape.antialias_positions)
    if shape.class_token and prefix == 0:
        resized = np.concatenate([np.zeros((1, shape.dim), np.float32), resized])
    return resized


def _check_dinov2(shape: ViTShape, image_size: tuple[int, int]) -> None:
    wrong = []
    if shape.epsilon != 1e-6:
        wrong.append(f"layer norm epsilon {shape.epsilon} (1e-6)")
    if not shape.qkv_bias:
        wrong.append("attention without bias")
    if not shape.class_token:
        wrong.append("no class token")
    if image_size[0] != image_size[1]:
        wrong.append(f"image_size {image_size} (a square)")
    if wrong:
        raise ModelError(f"KerasHub's DINOv2 cannot be built with {', '.join(wrong)}.")
