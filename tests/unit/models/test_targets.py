"""The words for where an adapter sits, on a small Llama, a BERT, a Swin and a ResNet."""

import keras
import pytest

from tests.unit.methods import texts
from tests.unit.models.backbone_families import Tagger, tagger
from tunekit.errors import SelectionError
from tunekit.methods.spec import (
    IA3,
    Bottleneck,
    LoRA,
    PrefixTuning,
    PromptTuning,
    VeRA,
    VisualPrompt,
)
from tunekit.models.backbone import Backbone
from tunekit.models.initialisation import without_values
from tunekit.models.layer_roles import layer_roles
from tunekit.models.model import Model
from tunekit.models.preprocessing import ImagePreprocessing
from tunekit.models.selection import selected_groups
from tunekit.models.targets import places_of, resolve_targets, targets_of
from tunekit.models.token_graph import language_head

# KerasHub's own, of masks that its attention drops.
pytestmark = pytest.mark.filterwarnings("ignore:.*Layer 'attn':UserWarning")


@pytest.fixture(scope="module")
def llama() -> Tagger:
    return tagger("llama")


@pytest.fixture(scope="module")
def bert() -> Tagger:
    return tagger("bert")


@pytest.fixture(scope="module")
def resnet() -> Tagger:
    return tagger("resnet")


@pytest.fixture(scope="module")
def swin() -> Tagger:
    return tagger("swin")


_ATTENTION = ["query", "key", "value", "attention_output"]
_UP, _GATE, _DOWN = (f"feedforward_{part}_dense" for part in ("intermediate", "gate", "output"))
_ALL = [*_ATTENTION, _UP, _GATE, _DOWN]


def _leaves(targets: tuple[str, ...], block: int = 1) -> list[str]:
    inside = f"backbone/transformer_layer_{block}/"
    return [name.rpartition("/")[2] for name in targets if name.startswith(inside)]


@pytest.mark.parametrize(
    ("targets", "leaves"),
    [
        ("auto", ["query", "value"]),
        ("attention", _ATTENTION),
        ("query", ["query"]),
        ("key, value", ["key", "value"]),
        (["value", "key"], ["key", "value"]),
        ("output", ["attention_output"]),
        ("mlp", [_UP, _GATE, _DOWN]),
        ("mlp.up", [_UP]),
        ("mlp.gate", [_GATE]),
        ("mlp.down", [_DOWN]),
        ("linear", _ALL),
        ("linear, !mlp", _ATTENTION),
        ("linear, !.*attention.*", [_UP, _GATE, _DOWN]),
        ("linear, !q_proj, !mlp.down", ["key", "value", "attention_output", _UP, _GATE]),
        (["q_proj", "v_proj"], ["query", "value"]),
        ("gate_proj,up_proj,down_proj", [_UP, _GATE, _DOWN]),
        ("all-linear", _ALL),
        ("c_attn", ["query", "key", "value"]),
        ("feedforward_gate_dense", [_GATE]),
        ("self_attention/query", ["query"]),
        ("backbone/.*/(query|key)", ["query", "key"]),
    ],
)
def test_a_target_names_these_layers_of_every_block(llama, targets, leaves):
    found = resolve_targets(targets, llama)
    for block in range(3):
        assert _leaves(found, block) == leaves
    assert len(found) == 3 * len(leaves)


def test_targets_come_in_running_order_whatever_order_they_are_named_in(llama):
    embeddings = "backbone/token_embedding"
    found = resolve_targets("backbone/transformer_layer_[20]/.*/value, embeddings", llama)
    layers = [f"backbone/transformer_layer_{i}/self_attention/value" for i in (0, 2)]
    assert list(found) == [embeddings, *layers]


def test_linear_takes_the_pooler_in_but_no_head_and_no_embedding(bert):
    found = resolve_targets("linear", bert)
    assert len(found) == 3 * 6 + 1
    assert found[-1] == "backbone/pooled_dense"


@pytest.mark.parametrize(
    ("within", "blocks"),
    [
        ("all", [0, 1, 2]),
        ("last 1", [2]),
        ("first 2", [0, 1]),
        ("blocks[1:]", [1, 2]),
        ("blocks, !blocks[1]", [0, 2]),
        (["blocks[0]", "blocks[2]"], [0, 2]),
        ("backbone, !last 1", [0, 1]),
    ],
)
def test_within_keeps_the_targets_of_some_depth(llama, within, blocks):
    found = resolve_targets("query", llama, within=within)
    assert [int(name.split("/")[1][-1]) for name in found] == blocks


def test_within_counts_the_stages_of_a_resnet(resnet):
    found = resolve_targets("convolutions", resnet, within="stage>=2")
    assert found and all(name.startswith("backbone/stack1_") for name in found)


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        ("quary", r"'quary' names no layer of this model. Did you mean 'query'\?"),
        ("qproj", r"Did you mean 'q_proj'"),
        ("convolutions", "It has attention, query, key, value, output, mlp, .* embeddings; "),
        ("!query", r"'!query' has nothing before it to take from. Write 'linear, !query'"),
        ("backbone/.*/qeury", r"'backbone/.*/qeury' names no layer of this model"),
        ("backbone/(", "'backbone/\\(' is not a regular expression"),
        ("query, !query", "leave no layer: .* nowhere, for a '!' took all away"),
        ("heads/.*", "'heads/.*' names no layer"),
        ([], "no target is given. Name layers, such as 'attention'"),
    ],
)
def test_a_target_without_layers_is_an_error_with_the_next_move(llama, targets, message):
    with pytest.raises(SelectionError, match=message):
        resolve_targets(targets, llama)


def test_a_resnet_says_what_it_has_where_it_has_no_attention(resnet):
    with pytest.raises(SelectionError, match="'attention' names no layer.*It has convolutions; "):
        resolve_targets("attention", resnet)


def test_a_query_that_is_fused_is_pointed_to_the_fused_layer(swin):
    with pytest.raises(SelectionError, match="query, key and value are one layer: 'qkv'"):
        resolve_targets("query", swin)


def test_targets_outside_the_depth_say_where_they_are(llama):
    with pytest.raises(SelectionError, match="'embeddings' within 'last 1' .* is in stem"):
        resolve_targets("embeddings", llama, within="last 1")


def test_within_is_of_depth_alone(llama):
    with pytest.raises(SelectionError, match="'norm' is no depth. Expected one of all, last 2"):
        resolve_targets("query", llama, within="norm")
    with pytest.raises(SelectionError, match="'last 9' asks for more blocks than the 3"):
        resolve_targets("query", llama, within="last 9")


def test_depth_selectors_give_groups(llama):
    assert selected_groups("last 2", llama) == {"blocks[1]", "blocks[2]", "top"}
    with pytest.raises(SelectionError, match="'stage>=1' matches no group.*has no stages"):
        selected_groups("stage>=1", llama)


@pytest.mark.parametrize(
    ("spec", "leaves"),
    [
        (LoRA(), ["query", "value"]),
        (LoRA(targets=("key", "mlp.up")), ["key", _UP]),
        (IA3(), ["key", "value", _DOWN]),
        (Bottleneck(), ["attention_output", _UP, _GATE, _DOWN]),
        (PrefixTuning(), ["key", "value"]),
        (PromptTuning(), []),
    ],
)
def test_each_method_has_targets_of_its_own(llama, spec, leaves):
    assert _leaves(targets_of(spec, llama)) == leaves


def test_the_targets_of_a_prompt_are_the_embeddings_and_a_visual_prompt_has_none(llama):
    assert targets_of(PromptTuning(), llama) == ("backbone/token_embedding",)
    assert targets_of(VisualPrompt(), llama) == ()


def test_a_prefix_has_no_targets_on_a_network_without_keys_and_says_so_itself(resnet, swin):
    for model in (resnet, swin):
        assert targets_of(PrefixTuning(), model) == ()
    assert targets_of(PromptTuning(), resnet) == ()


def test_a_method_for_dense_layers_says_what_a_resnet_has_instead(resnet):
    with pytest.raises(SelectionError, match="'auto' is query, value, qkv or else linear. It has"):
        targets_of(VeRA(), resnet)
    assert len(targets_of(IA3(within="stage>=2"), resnet)) == 3


def test_places_hold_layers_roles_blocks_and_values():
    inputs = keras.Input((8, 8, 3))
    x = keras.layers.Conv2D(4, 3, padding="same", name="first")(inputs)
    for block in range(2):
        y = keras.layers.Conv2D(4, 3, padding="same", name=f"block{block}_conv")(x)
        x = keras.layers.Add(name=f"block{block}_add")([x, y])
    body = keras.Model(inputs, x)
    model = Model(Backbone(body, ImagePreprocessing((8, 8)), "map", "any", "tiny"), ("cat", "dog"))
    targets = resolve_targets("auto", model)
    places = places_of(model, targets)
    assert places.targets == ("backbone/first", "backbone/block0_conv", "backbone/block1_conv")
    assert places.layers[""] is model.keras
    assert places.layers["backbone/first"].filters == 4
    assert places.roles == dict.fromkeys(targets, "convolution")
    assert places.blocks == tuple(
        (f"backbone/block{i}_conv", f"backbone/block{i}_add") for i in range(2)
    )
    assert (places.takes, places.prefix_tokens) == ("images", 0)
    assert places.weights.keys() == model.variables().keys()


def test_a_plain_network_of_dense_layers_is_adapted_whole():
    inputs = keras.Input((4,))
    x = keras.layers.Dense(8, name="wide")(inputs)
    with without_values():
        model = Tagger(keras.Model(inputs, keras.layers.Dense(4, name="narrow")(x)))
    assert layer_roles(model.keras) == {"backbone/wide": "linear", "backbone/narrow": "linear"}
    assert resolve_targets("auto", model) == ("backbone/wide", "backbone/narrow")


def test_a_network_without_kernels_has_no_place_for_an_adapter():
    inputs = keras.Input((4,))
    with without_values():
        model = Tagger(keras.Model(inputs, keras.layers.LayerNormalization()(inputs)))
    with pytest.raises(SelectionError, match="no dense, convolution or embedding layer"):
        resolve_targets("auto", model)


def test_a_language_head_with_a_kernel_is_a_target_by_its_name_alone():
    body = texts.NETWORKS["llama"]()
    untied = language_head(body, tied=False)
    backbone = Backbone(body, None, "tokens", "llama", "tiny", takes="tokens", language_head=untied)
    model = Model(backbone)
    linear = resolve_targets("linear", model)
    assert len(linear) == 2 * len(_ALL) and "heads/lm_head" not in linear
    assert resolve_targets("linear, lm_head", model) == (*linear, "heads/lm_head")
