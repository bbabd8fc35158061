"""Depth groups of real architectures without weights, and of plain networks."""

import json
from types import SimpleNamespace

import keras
import pytest

from tunekit.models import bundled, catalogue
from tunekit.models.depth import Group, depth_groups
from tunekit.models.hub import keras_hub
from tunekit.models.initialisation import shapes_only, without_values
from tunekit.models.merging import make_room_for_packed
from tunekit.models.model import Model
from tunekit.models.spec import BackboneSpec
from tunekit.names import structural_names

_SMALL = {"weights": None, "include_top": False, "input_shape": (32, 32, 3)}


def _groups(body: keras.Model) -> tuple[Group, ...]:
    """Groups of `body`, having checked that they hold every variable once."""
    body = keras.Model(body.inputs[0], body.outputs[0], name="backbone")
    pixels = keras.Input(body.inputs[0].shape[1:])
    root = keras.Model(pixels, body(pixels))
    groups = depth_groups(SimpleNamespace(keras=root))
    grouped = [name for group in groups for name in group.variables]
    assert sorted(grouped) == sorted(structural_names(root))
    return groups


def _blocks(groups: tuple[Group, ...]) -> list[Group]:
    return [group for group in groups if group.kind == "block"]


def _sizes(groups: tuple[Group, ...]) -> list[int]:
    """How many blocks each stage has."""
    stages = [group.stage for group in _blocks(groups)]
    return [stages.count(stage) for stage in sorted(set(stages))]


@pytest.mark.parametrize(
    ("architecture", "stages"),
    [
        ("ResNet50", [3, 4, 6, 3]),
        ("ResNet50V2", [3, 4, 6, 3]),
        ("ConvNeXtTiny", [3, 3, 9, 3]),
        ("DenseNet121", [6, 12, 24, 16]),
        ("MobileNetV3Small", [1, 2, 5, 3]),
        ("EfficientNetV2B0", [1, 2, 2, 3, 5, 8]),
        ("VGG16", [1, 1, 1, 1, 1]),
    ],
)
def test_every_application_has_its_papers_blocks_and_stages(architecture, stages):
    with without_values():
        groups = _groups(getattr(keras.applications, architecture)(**_SMALL))
    assert _sizes(groups) == stages
    kinds = [group.kind for group in groups]
    assert kinds == sorted(kinds, key=["stem", "block", "top"].index)


def test_a_kerashub_resnet_has_sixteen_blocks_in_four_stages():
    with without_values():
        body = keras_hub().models.ResNetBackbone(
            input_conv_filters=[64],
            input_conv_kernel_sizes=[7],
            stackwise_num_filters=[64, 64, 64, 64],
            stackwise_num_blocks=[3, 4, 6, 3],
            stackwise_num_strides=[1, 2, 2, 2],
            block_type="bottleneck_block",
            image_shape=(32, 32, 3),
        )
    assert _sizes(_groups(body)) == [3, 4, 6, 3]


def test_efficientnet_lite0_has_sixteen_blocks_though_only_nine_are_residual():
    config = json.loads((bundled.folder("efficientnet_lite0") / "config.json").read_text())
    with without_values():
        groups = _groups(keras.saving.deserialize_keras_object(config))
    assert _sizes(groups) == [1, 2, 2, 3, 3, 4, 1]
    assert [group.name for group in groups[:2]] == ["stem", "blocks[0]"]
    assert groups[-1].kind == "top"
    assert "backbone/top_conv/kernel" in groups[-1].weights


@pytest.mark.parametrize("layers", [12, 2, 1])
def test_a_vit_has_one_block_for_each_transformer_layer(layers):
    groups = _groups(_vit(layers))
    assert len(_blocks(groups)) == layers
    assert {group.stage for group in _blocks(groups)} == {None}
    assert any("position_embedding" in name for name in groups[0].weights)


def test_the_final_norm_of_a_vit_stands_above_its_blocks():
    top = _groups(_vit(2))[-1]
    assert (top.kind, top.layers) == ("top", ("backbone/vit_encoder/ln",))


def _vit(layers: int) -> keras.Model:
    with without_values():
        return keras_hub().models.ViTBackbone(
            image_shape=(32, 32, 3),
            patch_size=16,
            num_layers=layers,
            num_heads=2,
            hidden_dim=8,
            mlp_dim=16,
        )


def test_dinov2_has_one_block_for_each_transformer_layer():
    groups = _groups(
        keras_hub().models.DINOV2Backbone(
            patch_size=16,
            num_layers=3,
            hidden_dim=8,
            num_heads=2,
            intermediate_dim=16,
            image_shape=(32, 32, 3),
            position_embedding_shape=(32, 32, 3),
        )
    )
    assert [group.kind for group in groups] == ["stem", "block", "block", "block", "top"]
    # The pretrained table is kept as it was; what trains is its copy for this image size.
    table = "backbone/embeddings/position_embeddings"
    assert table in groups[0].variables
    assert table not in groups[0].weights
    assert "backbone/embeddings/interpolated_position_embeddings" in groups[0].weights


# KerasHub's own, of a mask that its attention drops.
@pytest.mark.filterwarnings("ignore:.*Layer 'attn':UserWarning")
def test_swin_opens_a_stage_with_the_merging_that_leads_into_it():
    with without_values():
        body = keras_hub().models.SwinTransformerBackbone(
            image_shape=(32, 32, 3),
            patch_size=2,
            embed_dim=8,
            depths=(2, 2, 3),
            num_heads=(1, 1, 2),
            window_size=2,
        )
    groups = _groups(body)
    assert _sizes(groups) == [2, 2, 3]
    assert any("downsample" in name or "merg" in name for name in _blocks(groups)[2].weights)


def test_positions_that_go_past_an_encoder_leave_its_blocks_apart():
    with without_values():
        body = keras_hub().models.DINOV3Backbone(
            patch_size=16,
            num_layers=3,
            hidden_dim=8,
            num_heads=2,
            intermediate_dim=16,
            image_shape=(32, 32, 3),
        )
    assert [g.kind for g in _groups(body)] == ["stem", "block", "block", "block", "top"]


def test_a_plain_network_has_a_block_for_each_kernel_after_the_first():
    layers = keras.layers
    body = keras.Sequential(
        [
            keras.Input((8, 8, 3)),
            layers.Conv2D(4, 3),
            layers.BatchNormalization(),
            layers.ReLU(),
            layers.Conv2D(4, 3, strides=2),
            layers.BatchNormalization(),
            layers.Conv2D(4, 1),
        ]
    )
    groups = _groups(body)
    assert [group.name for group in groups] == ["stem", "blocks[0]", "blocks[1]"]
    assert groups[1].layers == ("backbone/conv2d_1", "backbone/batch_normalization_1")


def test_attention_and_mlp_branches_without_names_make_one_block():
    x = inputs = keras.Input((8, 8, 3))
    x = keras.layers.Reshape((64, 3))(x)
    x = keras.layers.Dense(4)(x)
    for _ in range(3):
        y = keras.layers.LayerNormalization()(x)
        x = x + keras.layers.MultiHeadAttention(1, 4)(y, y)
        y = keras.layers.LayerNormalization()(x)
        x = x + keras.layers.Dense(4)(keras.layers.Dense(8)(y))
    groups = _groups(keras.Model(inputs, keras.layers.LayerNormalization()(x)))
    assert [group.kind for group in groups] == ["stem", "block", "block", "block", "top"]
    assert len({group.parameters for group in _blocks(groups)}) == 1


def test_misleading_names_do_not_tear_a_residual_block_apart():
    x = inputs = keras.Input((8, 8, 3))
    x = keras.layers.Conv2D(4, 3, padding="same", name="stem")(x)
    for i in range(2):
        y = keras.layers.Conv2D(4, 3, padding="same", name=f"block{2 * i}_conv")(x)
        y = keras.layers.Conv2D(4, 3, padding="same", name=f"block{2 * i + 1}_conv")(y)
        x = keras.layers.Add()([x, y])
    groups = _groups(keras.Model(inputs, x))
    assert [len(group.layers) for group in _blocks(groups)] == [3, 3]


def test_a_gate_is_part_of_the_block_around_it():
    x = inputs = keras.Input((8, 8, 4))
    for i in range(2):
        x = keras.layers.Conv2D(4, 3, padding="same", name=f"unit{i}_conv")(x)
        gate = keras.layers.GlobalAveragePooling2D(keepdims=True)(x)
        gate = keras.layers.Conv2D(4, 1, activation="sigmoid", name=f"unit{i}_gate")(gate)
        x = keras.layers.Multiply()([x, gate])
        x = keras.layers.Conv2D(4, 1, name=f"unit{i}_project")(x)
    groups = _groups(keras.Model(inputs, x))
    assert [len(group.weights) for group in groups] == [6, 6]


def test_a_layer_used_twice_belongs_where_it_is_used_first():
    shared = keras.layers.Conv2D(3, 3, padding="same", name="shared")
    x = inputs = keras.Input((8, 8, 3))
    for i in range(2):
        y = keras.layers.Conv2D(3, 1, name=f"own{i}")(shared(x))
        x = keras.layers.Add()([x, y])
    first, second = _blocks(_groups(keras.Model(inputs, x)))
    assert "backbone/shared/kernel" in first.weights
    assert second.weights == ("backbone/own1/kernel", "backbone/own1/bias")


def test_a_nested_model_is_opened():
    inner = _residual(3)
    x = keras.Input((8, 8, 3))
    assert len(_blocks(_groups(keras.Model(x, inner(x))))) == 3


def _residual(blocks: int) -> keras.Model:
    x = inputs = keras.Input((8, 8, 3))
    for _ in range(blocks):
        x = keras.layers.Add()([x, keras.layers.Conv2D(3, 3, padding="same")(x)])
    return keras.Model(inputs, x)


def test_frozen_flags_do_not_change_what_counts_as_a_weight():
    body = _residual(2)
    before = [group.weights for group in _groups(body)]
    body.trainable = False
    assert [group.weights for group in _groups(body)] == before


@pytest.mark.parametrize("name", ["smollm2_135m", "vit_small_16"])
def test_packed_kernels_leave_the_blocks_of_a_network_as_they_are(name: str) -> None:
    with shapes_only():
        backbone = catalogue.load(name, BackboneSpec(pretrained=False), seed=0, depth=3)
        model = Model(backbone)
        before = [(group.name, group.layers) for group in model.groups()]
        make_room_for_packed(model, "nf4")
        assert [(group.name, group.layers) for group in model.groups()] == before
    assert sum(group.kind == "block" for group in model.groups()) == 3
