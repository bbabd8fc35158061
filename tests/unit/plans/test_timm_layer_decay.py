"""Layer decay on real architectures, against what timm gives the same ones."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tunekit.models.backbone import Backbone
from tunekit.models.hub import keras_hub
from tunekit.models.initialisation import without_values
from tunekit.models.loading import load_model
from tunekit.models.model import Model
from tunekit.models.preprocessing import ImagePreprocessing
from tunekit.models.selection import resolve_selection
from tunekit.plans.builders import expand_plan
from tunekit.plans.builders_rates import LayerDecay
from tunekit.plans.resolve import resolve_plan

TIMM = json.loads((Path(__file__).parents[2] / "reference" / "layer_decay.json").read_text())
_TOP = ("norm", "conv_head", "bn2")
_HEAD = ("head", "fc", "classifier")
LABELS = ("cat", "dog")


def vit() -> Model:
    body = keras_hub().models.ViTBackbone(
        image_shape=(32, 32, 3),
        patch_size=16,
        num_layers=12,
        num_heads=3,
        hidden_dim=12,
        mlp_dim=24,
    )
    return Model(
        Backbone(body, ImagePreprocessing((32, 32)), "tokens", "vit", "tiny", prefix_tokens=1),
        LABELS,
    )


def resnet() -> Model:
    body = keras_hub().models.ResNetBackbone(
        input_conv_filters=[8],
        input_conv_kernel_sizes=[7],
        stackwise_num_filters=[64, 64, 64, 64],
        stackwise_num_blocks=[3, 4, 6, 3],
        stackwise_num_strides=[1, 2, 2, 2],
        block_type="bottleneck_block",
        image_shape=(32, 32, 3),
    )
    return Model(Backbone(body, ImagePreprocessing((32, 32)), "map", "resnet", "tiny"), LABELS)


def efficientnet() -> Model:
    return load_model("efficientnet_lite0", labels=LABELS, pretrained=False)


def factors_of_timm(name: str) -> dict[str, float]:
    """Returns the factors of timm by the name of our depth group."""
    found: dict[str, float] = {}
    blocks = 0
    for part, scale in TIMM["scales"][name].items():
        if re.fullmatch(r"(layer\d|blocks)\..*", part):
            group, blocks = f"blocks[{blocks}]", blocks + 1
        else:
            group = "top" if part in _TOP else "heads/label" if part in _HEAD else "stem"
        assert found.setdefault(group, scale) == scale
    return found


@pytest.mark.parametrize(
    ("name", "build"),
    [
        ("vit_tiny_patch16_224", vit),
        ("resnet50", resnet),
        ("tf_efficientnet_lite0", efficientnet),
    ],
)
def test_every_variable_has_the_factor_that_timm_gives_its_part(name, build):
    with without_values():
        model = build()
    (phase,) = resolve_plan(
        expand_plan([LayerDecay(TIMM["layer_decay"])], model.groups()),
        lambda selectors: resolve_selection(selectors, model),
        default_train=("all",),
        steps_per_epoch=lambda phase: 1,
    )
    expected = factors_of_timm(name)
    assert {group.name for group in model.groups()} == set(expected)
    ours = {n: expected[group.name] for group in model.groups() for n in group.weights}
    assert phase.multipliers == pytest.approx(ours, rel=1e-12)
