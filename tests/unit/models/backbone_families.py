"""Small backbones of many families, and by hand what their stem, blocks and top are.

A part is written as the beginnings of its weights' names below "backbone/".
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import keras

from tunekit.models import bundled
from tunekit.models.adapters import AdapterSet
from tunekit.models.hub import keras_hub
from tunekit.models.inference import Inference
from tunekit.models.initialisation import without_values
from tunekit.models.model import Model

_IMAGE = (32, 32, 3)
_KERAS = {"weights": None, "include_top": False, "input_shape": _IMAGE}
_TEXT = {"vocabulary_size": 11, "num_layers": 3, "hidden_dim": 8, "intermediate_dim": 16}
_HEADS = {"num_heads": 2, "max_sequence_length": 8}
_QUERIES = {"num_query_heads": 2, "num_key_value_heads": 1}
_PATCHES = {"image_shape": _IMAGE, "patch_size": 16, "num_layers": 3, "num_heads": 2}


@dataclass(frozen=True)
class Family:
    """A network, and its parts as one reads them off its paper."""

    build: Callable[[], keras.Model]
    stem: tuple[str, ...]
    blocks: tuple[tuple[str, ...], ...]
    top: tuple[str, ...] = ()


class Tagger(Model):
    """A head on any backbone, whatever it takes, with the methods of a tunekit model."""

    def __init__(self, body: keras.Model) -> None:  # noqa: D107
        body = keras.Model(body.input, body.output, name="backbone")
        inputs = keras.tree.map_structure(
            lambda x: keras.Input(x.shape[1:], dtype=x.dtype, name=x.name), body.input
        )
        outputs = body(inputs)
        if isinstance(outputs, dict):
            wanted = [name for name in outputs if name.endswith("sequence_output")]
            outputs = outputs[(wanted or list(outputs))[-1]]
        features = keras.Input(outputs.shape[1:])
        logits = keras.layers.Dense(2, name="logits")(features)
        head = keras.Model(features, logits, name="label")
        heads = keras.Model(features, head(features), name="heads")
        self.keras = keras.Model(inputs, heads(outputs))
        self.labels = ("yes", "no")
        self.adapters = AdapterSet()
        self._inference = Inference(self.keras)


def tagger(name: str) -> Tagger:
    """The family's network with a head; its values are placeholders."""
    with without_values():
        return Tagger(FAMILIES[name].build())


def _numbered(pattern: str, numbers: Sequence[object]) -> tuple[tuple[str, ...], ...]:
    return tuple((pattern.format(number),) for number in numbers)


def _resnet(**options: object) -> keras.Model:
    return keras_hub().models.ResNetBackbone(
        input_conv_filters=[64],
        input_conv_kernel_sizes=[3],
        stackwise_num_filters=[64, 64],
        stackwise_num_blocks=[2, 1],
        stackwise_num_strides=[1, 2],
        image_shape=_IMAGE,
        **options,
    )


def _efficientnet_lite() -> keras.Model:
    config = json.loads((bundled.folder("efficientnet_lite0") / "config.json").read_text())
    return keras.saving.deserialize_keras_object(config)


def _efficientnet_v2() -> keras.Model:
    return keras_hub().models.EfficientNetBackbone(
        stackwise_width_coefficients=[1.0] * 3,
        stackwise_depth_coefficients=[1.0] * 3,
        stackwise_kernel_sizes=[3] * 3,
        stackwise_num_repeats=[1, 2, 2],
        stackwise_input_filters=[8, 8, 16],
        stackwise_output_filters=[8, 16, 16],
        stackwise_expansion_ratios=[1, 4, 4],
        stackwise_squeeze_and_excite_ratios=[0, 0, 0.25],
        stackwise_strides=[1, 2, 2],
        stackwise_block_types=["fused", "fused", "unfused"],
        input_shape=_IMAGE,
    )


def _mit() -> keras.Model:
    return keras_hub().models.MiTBackbone(
        layerwise_depths=[2, 1, 2],
        num_layers=3,
        layerwise_num_heads=[1, 1, 2],
        layerwise_sr_ratios=[2, 2, 1],
        max_drop_path_rate=0.1,
        layerwise_patch_sizes=[3, 3, 3],
        layerwise_strides=[4, 2, 2],
        hidden_dims=[8, 8, 16],
        image_shape=_IMAGE,
    )


def _swin() -> keras.Model:
    return keras_hub().models.SwinTransformerBackbone(
        image_shape=_IMAGE,
        patch_size=2,
        embed_dim=8,
        depths=(2, 2, 1),
        num_heads=(1, 1, 2),
        window_size=2,
    )


def _darknet() -> keras.Model:
    return keras_hub().models.CSPNetBackbone(
        stage_type="dark",
        block_type="dark_block",
        stem_filters=8,
        stem_kernel_size=3,
        stem_strides=2,
        stackwise_depth=[2, 2],
        stackwise_strides=[2, 2],
        stackwise_num_filters=[8, 16],
        image_shape=_IMAGE,
    )


def _densenet() -> keras.Model:
    return keras_hub().models.DenseNetBackbone(
        stackwise_num_repeats=[2, 3], growth_rate=4, image_shape=_IMAGE
    )


def _vgg() -> keras.Model:
    return keras_hub().models.VGGBackbone(
        stackwise_num_repeats=[1, 2, 2], stackwise_num_filters=[4, 8, 8], image_shape=_IMAGE
    )


def _hgnet() -> keras.Model:
    return keras_hub().models.HGNetV2Backbone(
        depths=[1, 2],
        embedding_size=8,
        hidden_sizes=[8, 16],
        stem_channels=[3, 8, 8],
        hidden_act="relu",
        use_learnable_affine_block=False,
        stackwise_stage_filters=[[8, 8, 8, 1, 2, 3], [8, 8, 16, 2, 2, 3]],
        apply_downsample=[False, True],
        use_lightweight_conv_block=[False, False],
        image_shape=_IMAGE,
        out_features=["stage2"],
    )


def _smollm3() -> keras.Model:
    return keras_hub().models.SmolLM3Backbone(
        **_TEXT,
        num_attention_heads=2,
        num_key_value_heads=1,
        attention_bias=False,
        attention_dropout=0.0,
        rope_layer_enabled_list=[True] * 3,
        layer_types=["full_attention"] * 3,
        mlp_bias=False,
        layer_norm_epsilon=1e-6,
        max_position_embeddings=8,
        rope_theta=1e4,
        partial_rotary_factor=1.0,
    )


def _hub(name: str, **options: object) -> Callable[[], keras.Model]:
    return lambda: getattr(keras_hub().models, f"{name}Backbone")(**options)


def _keras(name: str) -> Callable[[], keras.Model]:
    return lambda: getattr(keras.applications, name)(**_KERAS)


def _vit(name: str, width: str) -> Callable[[], keras.Model]:
    return _hub(name, **_PATCHES, hidden_dim=8, **{width: 16})


def _dino(name: str, **options: object) -> Callable[[], keras.Model]:
    return _hub(name, **_PATCHES, hidden_dim=8, intermediate_dim=16, **options)


_LAYERS = _numbered("transformer_layer_{}/", range(3))
_LITE = ("1a", "2a", "2b", "3a", "3b", "4a", "4b", "4c", "5a", "5b", "5c", "6a", "6b", "6c", "6d")
_CONVNEXT = tuple(
    (f"convnext_tiny_stage_{stage}_block_{i}_",)
    if i or not stage
    else (f"convnext_tiny_downsampling_block_{stage - 1}/", f"convnext_tiny_stage_{stage}_block_0_")
    for stage, depth in enumerate((3, 3, 9, 3))
    for i in range(depth)
)

FAMILIES: dict[str, Family] = {
    "resnet": Family(
        lambda: _resnet(block_type="basic_block"),
        ("conv1_",),
        _numbered("stack{}_", ("0_block0", "0_block1", "1_block0")),
    ),
    "resnet_v2": Family(
        lambda: _resnet(block_type="bottleneck_block", use_pre_activation=True),
        ("conv1_",),
        _numbered("stack{}_", ("0_block0", "0_block1", "1_block0")),
        ("post_bn/",),
    ),
    "densenet": Family(
        _densenet,
        ("conv1_",),
        (
            ("stack1_block1_",),
            ("stack1_block2_",),
            ("transition1_", "stack2_block1_"),
            ("stack2_block2_",),
            ("stack2_block3_",),
        ),
        ("bn/",),
    ),
    "vgg": Family(_vgg, (), _numbered("block{}_", (1, 2, 3))),
    "mobilenet": Family(
        _keras("MobileNet"),
        ("conv1/", "conv1_bn/"),
        tuple(
            (f"conv_dw_{i}/", f"conv_dw_{i}_bn/", f"conv_pw_{i}/", f"conv_pw_{i}_bn/")
            for i in range(1, 14)
        ),
    ),
    "mobilenet_v2": Family(
        _keras("MobileNetV2"),
        ("Conv1/", "bn_Conv1/"),
        (("expanded_conv_",), *_numbered("block_{}_", range(1, 17))),
        ("Conv_1/", "Conv_1_bn/"),
    ),
    "efficientnet_lite": Family(
        _efficientnet_lite, ("stem_",), _numbered("block{}_", (*_LITE, "7a")), ("top_",)
    ),
    "efficientnet_v2": Family(
        _efficientnet_v2,
        ("stem_",),
        _numbered("block{}_", ("1a", "2a", "2b", "3a", "3b")),
        ("top_",),
    ),
    "convnext": Family(
        _keras("ConvNeXtTiny"), ("convnext_tiny_stem/",), _CONVNEXT, ("layer_normalization/",)
    ),
    # The convolution before the first block is the stem's, though it is named after a stage.
    "darknet": Family(
        _darknet,
        ("csp_stem_", "stage_0_dark_conv_down_", "stage_0_dark_bn_"),
        (
            ("stage_0_block_0_",),
            ("stage_0_block_1_",),
            ("stage_1_dark_conv_down_", "stage_1_dark_bn_", "stage_1_block_0_"),
            ("stage_1_block_1_",),
        ),
    ),
    "hgnet_v2": Family(
        _hgnet,
        ("embedder/",),
        (
            ("encoder/encoder_stage_0/encoder_stage_0_block_0/",),
            (
                "encoder/encoder_stage_1/encoder_stage_1_downsample/",
                "encoder/encoder_stage_1/encoder_stage_1_block_0/",
            ),
            ("encoder/encoder_stage_1/encoder_stage_1_block_1/",),
        ),
    ),
    "swin": Family(
        _swin,
        ("patch_embedding/",),
        (
            ("stage_0/blocks_0/",),
            ("stage_0/blocks_1/",),
            ("stage_0/downsample/", "stage_1/blocks_0/"),
            ("stage_1/blocks_1/",),
            ("stage_1/downsample/", "stage_2/blocks_0/"),
        ),
        ("norm/",),
    ),
    "mit": Family(
        _mit,
        ("patch_and_embed_0/",),
        (
            ("hierarchical_encoder_0_0/",),
            ("hierarchical_encoder_0_1/",),
            ("layer_normalization/", "patch_and_embed_1/", "hierarchical_encoder_1_0/"),
            ("layer_normalization_1/", "patch_and_embed_2/", "hierarchical_encoder_2_0/"),
            ("hierarchical_encoder_2_1/",),
        ),
        ("layer_normalization_2/",),
    ),
    "vit": Family(
        _vit("ViT", "mlp_dim"),
        ("vit_patching_and_embedding/",),
        _numbered("vit_encoder/transformer_block_{}/", (1, 2, 3)),
        ("vit_encoder/ln/",),
    ),
    "deit": Family(
        _vit("DeiT", "intermediate_dim"),
        ("deit_patching_and_embedding/",),
        _numbered("deit_encoder/transformer_block_{}/", (1, 2, 3)),
        ("deit_encoder/ln/",),
    ),
    "dinov2": Family(
        _dino("DINOV2", position_embedding_shape=_IMAGE),
        ("embeddings/",),
        _numbered("encoder/layers_{}/", range(3)),
        ("layernorm/",),
    ),
    "dinov3": Family(
        _dino("DINOV3"),
        ("embeddings/",),
        _numbered("encoder/layers_{}/", range(3)),
        ("layernorm/",),
    ),
    "bert": Family(
        _hub("Bert", **_TEXT, **_HEADS),
        ("token_embedding/", "position_embedding/", "segment_embedding/", "embeddings_layer_norm/"),
        _LAYERS,
        ("pooled_dense/",),
    ),
    "roberta": Family(
        _hub("Roberta", **_TEXT, **_HEADS), ("embeddings/", "embeddings_layer_norm/"), _LAYERS
    ),
    "distilbert": Family(
        _hub("DistilBert", **_TEXT, **_HEADS),
        ("token_and_position_embedding/", "embeddings_layer_norm/"),
        _LAYERS,
    ),
    "deberta_v3": Family(
        _hub("DebertaV3", **_TEXT, **_HEADS, bucket_size=4),
        ("token_embedding/", "rel_embedding/", "embeddings_layer_norm/"),
        _numbered("disentangled_attention_encoder_layer_{}/", range(3)),
    ),
    "gpt2": Family(
        _hub("GPT2", **_TEXT, **_HEADS),
        ("token_embedding/", "position_embedding/"),
        _LAYERS,
        ("layer_norm/",),
    ),
    "llama": Family(
        _hub("Llama", **_TEXT, **_QUERIES),
        ("token_embedding/",),
        _LAYERS,
        ("sequence_output_layernorm/",),
    ),
    "llama3": Family(
        _hub("Llama3", **_TEXT, **_QUERIES, tie_word_embeddings=True),
        ("token_embedding/",),
        _LAYERS,
        ("sequence_output_layernorm/",),
    ),
    "gemma": Family(
        _hub("Gemma", **_TEXT, **_QUERIES, head_dim=4),
        ("token_embedding/",),
        _numbered("decoder_block_{}/", range(3)),
        ("final_normalization/",),
    ),
    "mistral": Family(
        _hub("Mistral", **_TEXT, **_QUERIES),
        ("token_embedding/",),
        _LAYERS,
        ("sequence_output_layernorm/",),
    ),
    "qwen2": Family(
        _hub("Qwen2", **_TEXT, **_QUERIES),
        ("token_embedding/",),
        _LAYERS,
        ("sequence_output_layernorm/",),
    ),
    "smollm3": Family(_smollm3, ("token_embedding/",), _LAYERS, ("sequence_output_layernorm/",)),
    # What joins encoder and decoder opens the decoder's first block.
    "t5": Family(
        _hub("T5", **_TEXT, num_heads=2),
        ("token_embedding/",),
        (
            *_numbered("transformer_encoder_layer_{}/", range(3)),
            ("encoder_output_layer_norm/", "transformer_decoder_layer_0/"),
            *_numbered("transformer_decoder_layer_{}/", (1, 2)),
        ),
        ("decoder_output_layer_norm/",),
    ),
}
