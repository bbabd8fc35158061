"""The selectors of what trains, on a small residual network with two stages and on a ViT."""

import re

import keras
import pytest

from tunekit.errors import SelectionError
from tunekit.models.backbone import Backbone
from tunekit.models.hub import keras_hub
from tunekit.models.initialisation import without_values
from tunekit.models.model import Model
from tunekit.models.preprocessing import ImagePreprocessing
from tunekit.models.selection import resolve_selection, syntax_issues


def _residual_network() -> keras.Model:
    layers = keras.layers
    inputs = keras.Input((8, 8, 3))
    x = layers.Conv2D(4, 3, padding="same", name="first")(inputs)
    for stage, blocks in ((1, 2), (2, 3)):
        for block in range(blocks):
            name = f"stage{stage}_block{block}"
            y = layers.BatchNormalization(name=f"{name}_bn")(x)
            y = layers.Conv2D(4, 3, padding="same", name=f"{name}_conv")(y)
            x = layers.Add(name=f"{name}_add")([x, y])
    return keras.Model(inputs, layers.BatchNormalization(name="last_bn")(x))


def _model(body: keras.Model, labels: tuple[str, ...] = ("cat", "dog"), features="map") -> Model:
    prefix_tokens = 1 if features == "tokens" else 0
    size = body.inputs[0].shape[1:3]
    backbone = Backbone(
        body, ImagePreprocessing(size), features, "any", "tiny", prefix_tokens=prefix_tokens
    )
    return Model(backbone, labels)


@pytest.fixture(scope="module")
def model() -> Model:
    with without_values():
        return _model(_residual_network())


@pytest.fixture(scope="module")
def vit() -> Model:
    with without_values():
        body = keras_hub().models.ViTBackbone(
            image_shape=(32, 32, 3),
            patch_size=16,
            num_layers=2,
            num_heads=2,
            hidden_dim=8,
            mlp_dim=16,
        )
        return _model(body, features="tokens")


_STEM = {"first/kernel", "first/bias"}
_TOP = {"last_bn/gamma", "last_bn/beta"}
_HEAD = {"heads/label/logits/kernel", "heads/label/logits/bias"}
_NAMES = ["stage1_block0", "stage1_block1", "stage2_block0", "stage2_block1", "stage2_block2"]


def _blocks(*indices: int) -> set[str]:
    leaves = ("bn/gamma", "bn/beta", "conv/kernel", "conv/bias")
    return {f"{_NAMES[index]}_{leaf}" for index in indices for leaf in leaves}


def _full(names: set[str]) -> set[str]:
    return {name if name.startswith("heads/") else f"backbone/{name}" for name in names}


_ALL = _STEM | _blocks(*range(5)) | _TOP | _HEAD
_NORM = {name for name in _ALL if "bn/" in name}


@pytest.mark.parametrize(
    ("selectors", "expected"),
    [
        ("head", _HEAD),
        ("all", _ALL),
        ("none", set()),
        ("backbone", _ALL - _HEAD),
        ("stem", _STEM),
        ("top", _TOP),
        ("blocks", _blocks(*range(5))),
        ("last 2", _blocks(3, 4) | _TOP),
        ("last 5", _blocks(*range(5)) | _TOP),
        ("first 2", _STEM | _blocks(0, 1)),
        ("blocks[-2:]", _blocks(3, 4)),
        ("blocks[:1]", _blocks(0)),
        ("blocks[1:-2]", _blocks(1, 2)),
        ("blocks[3]", _blocks(3)),
        ("blocks[-1]", _blocks(4)),
        ("stage>=2", _blocks(2, 3, 4)),
        ("stage < 2", _blocks(0, 1)),
        ("stage==1", _blocks(0, 1)),
        ("stage!=1", _blocks(2, 3, 4)),
        ("norm", _NORM),
        ("bias", {name for name in _ALL if name.endswith(("/bias", "/beta"))}),
        ("backbone/stage1_.*/kernel", {f"{name}_conv/kernel" for name in _NAMES[:2]}),
        (".*/(first|last_bn)/.*", _STEM | _TOP),
        (["head", "last 1"], _HEAD | _blocks(4) | _TOP),
        ("head, last 1", _HEAD | _blocks(4) | _TOP),
        (("head,stem", "top"), _HEAD | _STEM | _TOP),
        ("all, !norm", _ALL - _NORM),
        ("all, ! first 2, top", _ALL - _STEM - _blocks(0, 1)),
        ("last 1, !norm, blocks[0]", _blocks(4) - _NORM | _blocks(0)),
        ("heads/.{1,9}/logits/kernel, stem", {"heads/label/logits/kernel"} | _STEM),
    ],
)
def test_a_selector_selects_what_it_says(model, selectors, expected):
    assert resolve_selection(selectors, model) == _full(expected)


@pytest.mark.parametrize("pattern", [".*moving.*", "backbone/.*/moving_mean"])
def test_running_statistics_cannot_be_selected(model, pattern):
    with pytest.raises(SelectionError, match=re.escape(f"'{pattern}' matches no variable")):
        resolve_selection(pattern, model)


def test_a_frozen_flag_does_not_hinder_selection():
    with without_values():
        body = _residual_network()
    body.trainable = False
    assert resolve_selection("stem", _model(body)) == _full(_STEM)


def test_embeddings_are_positions_and_learned_tokens_not_the_patch_projection(vit):
    place = "backbone/vit_patching_and_embedding"
    assert resolve_selection("embeddings", vit) == {
        f"{place}/class_token",
        f"{place}/position_embedding/embeddings",
    }


def test_the_last_blocks_of_a_vit_come_with_its_final_norm(vit):
    selected = resolve_selection("last 1", vit)
    assert {name.split("/")[2] for name in selected} == {"transformer_block_2", "ln"}


def test_the_norms_of_a_vit_are_its_layer_norms(vit):
    selected = resolve_selection("norm", vit)
    assert {name.split("/")[-2] for name in selected} == {"ln_1", "ln_2", "ln"}


@pytest.mark.parametrize(
    ("selectors", "message"),
    [
        ("head/.*", "'head/.*' matches no variable. Did you mean 'heads/.*'? 2 begin with 'heads/"),
        ("heads/label", "matches no variable. Did you mean 'heads/label.*'? 2 match."),
        ("all, !head/.*", "'!head/.*' matches no variable. Did you mean 'heads/.*'?"),
        ("hed", "'hed' is no selector. Did you mean 'head'?"),
        ("last two", "'last two' is no selector. Did you mean 'last 2'?"),
        ("zzz", "'zzz' is no selector. Expected a pattern of names, or one of all, none,"),
        ("blocks[]", "'blocks[]' is no selector."),
        ("backbone/(", "'backbone/(' is not a regular expression: missing )"),
        ("last 0", "'last 0' counts from 1, got 0."),
        ("stage>=0", "'stage>=0' counts from 1, got 0."),
        ("last 6", "'last 6' asks for more blocks than the 5 of this backbone"),
        ("blocks[5]", "'blocks[5]' asks for more blocks than the 5 of this backbone"),
        ("blocks[-6]", "'blocks[-6]' asks for more blocks than the 5 of this backbone"),
        ("blocks[5:]", "'blocks[5:]' matches no variable. The backbone has 5 blocks."),
        ("stage>2", "'stage>2' matches no variable. The stages are 1, 2."),
        ("embeddings", "'embeddings' matches no variable. This model has stem, blocks, top, head."),
        ("!norm", "'!norm' has nothing before it to take from. Write 'all, !norm'."),
        ([], "no selector is given."),
        (" , ", "no selector is given."),
    ],
)
def test_a_selector_that_selects_nothing_is_an_error(model, selectors, message):
    with pytest.raises(SelectionError, match=re.escape(message)):
        resolve_selection(selectors, model)


def test_a_vit_has_no_stages_to_select(vit):
    with pytest.raises(SelectionError, match="This backbone has no stages; select blocks"):
        resolve_selection("stage>=1", vit)


def test_the_head_of_a_headless_model_cannot_be_selected():
    with without_values():
        headless = _model(_residual_network(), labels=())
    with pytest.raises(SelectionError, match="'head' matches no variable. The model has no head"):
        resolve_selection("head", headless)


def test_every_mistake_of_syntax_is_reported_at_once():
    assert syntax_issues(["hed", "last 2", "last 0", "a/("]) == [
        "'hed' is no selector. Did you mean 'head'?",
        "'last 0' counts from 1, got 0.",
        "'a/(' is not a regular expression: missing ), unterminated subpattern at position 2.",
    ]


@pytest.mark.parametrize("selectors", ["head", ["all", "!bias"], "last 2, stage>=3", ".*", ()])
def test_good_syntax_has_no_issues(selectors):
    assert syntax_issues(selectors) == []
