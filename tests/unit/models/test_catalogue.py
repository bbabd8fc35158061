"""The catalogue: architectures that are those of the weights that bear their names."""

from __future__ import annotations

from math import prod
from pathlib import Path

import numpy as np
import pytest

from tunekit import load_model
from tunekit.errors import ModelError
from tunekit.models import catalogue, hub
from tunekit.models.architectures import ARCHITECTURES
from tunekit.models.backbone import Backbone
from tunekit.models.huggingface import from_config
from tunekit.models.initialisation import shapes_only
from tunekit.models.spec import BackboneSpec
from tunekit.names import structural_names, variable_roles

FRESH = BackboneSpec(pretrained=False)
POOLER = {"bert_base": 768, "bert_large": 1024, "minilm_l6": 384}
"""Width of a dense layer that is counted on the model cards, and no part of the hidden states."""


def parameters(backbone: Backbone) -> int:
    """Numbers of a backbone and its language head, BatchNorm's statistics among them."""
    layers = [backbone.keras, *([backbone.language_head] if backbone.language_head else [])]
    found = {}
    for layer in layers:
        roles = variable_roles(layer)
        named = structural_names(layer).items()
        found |= {id(v): prod(v.shape) for name, v in named if roles[name] != "seed"}
    return sum(found.values())


@pytest.mark.parametrize("name", catalogue.names())
def test_an_architecture_has_as_many_parameters_as_are_published(name: str) -> None:
    with shapes_only():
        backbone = catalogue.load(name, FRESH, seed=0)
    pooler = POOLER.get(name, 0)
    assert parameters(backbone) + pooler * (pooler + 1) * bool(pooler) == (
        ARCHITECTURES[name].parameters
    )


@pytest.mark.parametrize("class_name", ["ResNetBackbone", "ViTBackbone", "GemmaBackbone"])
def test_what_is_published_is_what_the_presets_of_keras_hub_say(class_name: str) -> None:
    presets = getattr(hub.keras_hub().models, class_name).presets
    named = {preset: catalogue.name_of(preset) for preset in presets}
    known = {preset: name for preset, name in named.items() if name is not None}
    assert known
    for preset, name in known.items():
        assert presets[preset]["metadata"]["params"] == ARCHITECTURES[name].parameters


def test_every_handle_is_of_one_architecture_and_no_name_is_a_preset() -> None:
    handles = [handle for one in ARCHITECTURES.values() for handle in one.handles]
    assert len(handles) == len(set(handles))
    assert all(catalogue.name_of(handle) for handle in handles)
    presets = {*hub.preset_names(), *hub.text_preset_names()}
    assert presets.isdisjoint(catalogue.names())
    assert {handle for handle in handles if not handle.startswith("hf://")} <= presets


def test_an_architecture_is_built_with_fresh_weights_where_none_are_asked_for() -> None:
    model = load_model("resnet_18", pretrained=False, image_size=32, labels=["cat", "dog"])
    assert model.keras.output_shape == (None, 2)
    assert np.asarray(model.variables()["backbone/conv1_conv/kernel"]).std() > 0


@pytest.mark.parametrize(
    ("name", "said"),
    [
        (
            "llama3_8b",
            "no weights. Name what holds them, such as 'hf://meta-llama/Meta-Llama-3-8B'",
        ),
        ("vit_small_16", "or set pretrained: false to begin with random ones"),
    ],
)
def test_pretrained_weights_of_an_architecture_are_said_where_to_find(name: str, said: str) -> None:
    with pytest.raises(ModelError, match=said):
        load_model(name)


def test_a_depth_is_built_with_the_language_head_and_refused_where_stages_differ() -> None:
    with shapes_only():
        backbone = catalogue.load("smollm2_135m", FRESH, seed=0, depth=3)
    assert len(backbone.keras.transformer_layers) == 3  # type: ignore[attr-defined]
    assert backbone.language_head is not None
    assert catalogue.depth_of("smollm2_135m") == 30
    assert catalogue.depth_of("resnet_50") is None
    with pytest.raises(ModelError, match="'resnet_50' has stages of different blocks"):
        catalogue.load("resnet_50", FRESH, seed=0, depth=3)


def test_an_incomplete_config_is_said_by_the_key_that_it_lacks() -> None:
    config = {k: v for k, v in ARCHITECTURES["bert_base"].config.items() if k != "vocab_size"}
    with pytest.raises(ModelError, match="has no 'vocab_size', which a 'bert' is built by"):
        from_config(Path("bert"), config, FRESH, seed=0)
