"""What each layer is for, over every family: by hand, in the order the layers run."""

import re

import keras
import pytest

from tests.unit.models.backbone_families import FAMILIES, Tagger, tagger
from tunekit.models.hub import keras_hub
from tunekit.models.initialisation import without_values
from tunekit.models.layer_roles import layer_roles
from tunekit.models.targets import resolve_targets

# KerasHub's own, of masks that its attention drops.
pytestmark = pytest.mark.filterwarnings(
    "ignore:Layer .* was passed an input with a mask:UserWarning",
    "ignore:.*Layer 'attn':UserWarning",
)

_LAYERS = "backbone/transformer_layer_{}"
_ENCODER = {
    "query": "query",
    "key": "key",
    "value": "value",
    "attention_output": "attention_output",
}


def _keras_encoder(attention: str) -> dict[str, str]:
    return {
        **{f"{attention}/{leaf}": role for leaf, role in _ENCODER.items()},
        "feedforward_intermediate_dense": "mlp_up",
        "feedforward_output_dense": "mlp_down",
    }


def _keras_decoder(attention: str) -> dict[str, str]:
    return {**_keras_encoder(attention), "feedforward_gate_dense": "mlp_gate"}


_LLAMA = (_LAYERS, _keras_decoder("self_attention"), ("token_embedding",))
_T5_ATTENTION = {
    "query_projector": "query",
    "key_projector": "key",
    "value_projector": "value",
    "output_projector": "attention_output",
}
_PROJECTIONS = {"q_proj": "query", "k_proj": "key", "v_proj": "value", "o_proj": "attention_output"}

# Family: where its blocks are, the layers in each by role, and the embeddings of tokens.
TRANSFORMERS: dict[str, tuple[str, dict[str, str], tuple[str, ...]]] = {
    "vit": (
        "backbone/vit_encoder/transformer_block_{}",
        {
            **{f"mha/{leaf}": role for leaf, role in _ENCODER.items()},
            "mlp/dense": "mlp_up",
            "mlp/dense_1": "mlp_down",
        },
        (),
    ),
    "deit": (
        "backbone/deit_encoder/transformer_block_{}",
        {
            **{f"mha/{leaf}": role for leaf, role in _ENCODER.items()},
            "mlp/dense": "mlp_up",
            "output_layer/output": "mlp_down",
        },
        (),
    ),
    "dinov2": (
        "backbone/encoder/layers_{}",
        {
            **{f"attention/attention/{leaf}": role for leaf, role in _ENCODER.items()},
            "mlp/fc1": "mlp_up",
            "mlp/fc2": "mlp_down",
        },
        (),
    ),
    "dinov3": (
        "backbone/encoder/layers_{}",
        {
            **{f"attention/{leaf}": role for leaf, role in _PROJECTIONS.items()},
            "mlp/up_proj": "mlp_up",
            "mlp/down_proj": "mlp_down",
        },
        (),
    ),
    "bert": (_LAYERS, _keras_encoder("self_attention_layer"), ("token_embedding",)),
    "roberta": (_LAYERS, _keras_encoder("self_attention_layer"), ("embeddings/token_embedding",)),
    "distilbert": (
        _LAYERS,
        _keras_encoder("self_attention_layer"),
        ("token_and_position_embedding/token_embedding",),
    ),
    # The class of its blocks is called an attention, which they are not.
    "deberta_v3": (
        "backbone/disentangled_attention_encoder_layer_{}",
        _keras_encoder("self_attention_layer"),
        ("token_embedding",),
    ),
    "gpt2": (_LAYERS, _keras_encoder("self_attention"), ("token_embedding",)),
    "llama": _LLAMA,
    "llama3": _LLAMA,
    "mistral": _LLAMA,
    "qwen2": _LLAMA,
    "gemma": (
        "backbone/decoder_block_{}",
        {
            **{f"attention/{leaf}": role for leaf, role in _ENCODER.items()},
            # The activation is on the first.
            "ffw_gating": "mlp_gate",
            "ffw_gating_2": "mlp_up",
            "ffw_linear": "mlp_down",
        },
        ("token_embedding",),
    ),
    "smollm3": (
        _LAYERS,
        {
            **{f"self_attn/{leaf}": role for leaf, role in _PROJECTIONS.items()},
            "mlp/gate_proj": "mlp_gate",
            "mlp/up_proj": "mlp_up",
            "mlp/down_proj": "mlp_down",
        },
        ("token_embedding",),
    ),
}


@pytest.mark.parametrize("family", TRANSFORMERS)
def test_every_layer_of_a_transformer_block_has_its_role(family):
    prefix, layers, _ = TRANSFORMERS[family]
    roles = layer_roles(tagger(family).keras)
    first = 1 if "block_{}" in prefix and "decoder" not in prefix else 0
    for block in range(first, first + 3):
        inside = prefix.format(block) + "/"
        found = {name.removeprefix(inside): r for name, r in roles.items() if inside in name}
        assert found == layers


@pytest.mark.parametrize("family", TRANSFORMERS)
def test_the_embeddings_of_tokens_are_the_only_ones(family):
    roles = layer_roles(tagger(family).keras)
    found = {name for name, role in roles.items() if role == "embedding"}
    assert found == {f"backbone/{name}" for name in TRANSFORMERS[family][2]}


@pytest.mark.parametrize("family", TRANSFORMERS)
def test_auto_is_query_and_value_of_every_block(family):
    prefix, layers, _ = TRANSFORMERS[family]
    leaves = [leaf for leaf, role in layers.items() if role in ("query", "value")]
    first = 1 if "block_{}" in prefix and "decoder" not in prefix else 0
    blocks = range(first, first + 3)
    expected = [f"{prefix.format(block)}/{leaf}" for block in blocks for leaf in leaves]
    assert list(resolve_targets("auto", tagger(family))) == expected


def test_t5_has_two_attentions_in_a_decoder_block():
    roles = layer_roles(tagger("t5").keras)
    for part, kinds in (("encoder", ["self"]), ("decoder", ["self", "cross"])):
        inside = f"backbone/transformer_{part}_layer_1/"
        expected = {
            f"{kind}_attention/{leaf}": role
            for kind in kinds
            for leaf, role in _T5_ATTENTION.items()
        } | {"input_projector": "mlp_up", "gate_projector": "mlp_gate"}
        expected["output_projector"] = "mlp_down"
        found = {name.removeprefix(inside): r for name, r in roles.items() if inside in name}
        assert found == expected


def test_swin_has_one_layer_for_query_key_and_value():
    model = tagger("swin")
    inside = "backbone/stage_1/blocks_0/"
    found = {n.removeprefix(inside): r for n, r in layer_roles(model.keras).items() if inside in n}
    assert found == {
        "attn/attention_qkv": "qkv",
        "attn/attention_projection": "attention_output",
        "mlp/fc1": "mlp_up",
        "mlp/fc2": "mlp_down",
    }
    auto = resolve_targets("auto", model)
    assert len(auto) == 5 and all(name.endswith("attention_qkv") for name in auto)


def test_layers_with_automatic_names_go_by_their_attributes():
    roles = layer_roles(tagger("mit").keras)
    inside = "backbone/hierarchical_encoder_0_0/"
    found = {name.removeprefix(inside): role for name, role in roles.items() if inside in name}
    attention = "seg_former_multihead_attention"
    assert found == {
        f"{attention}/dense": "query",
        f"{attention}/dense_1": "key",
        f"{attention}/dense_2": "value",
        f"{attention}/dense_3": "attention_output",
        f"{attention}/conv2d": "convolution",
        "mix_ffn/dense": "mlp_up",
        "mix_ffn/dense_1": "mlp_down",
    }


# Family: how many convolutions there are that mix channels, and a pattern of some that do not.
CONVOLUTIONAL = {
    "resnet": (8, None),
    "resnet_v2": (12, None),
    "densenet": (12, None),
    "vgg": (5, None),
    "mobilenet": (14, "conv_dw"),
    "mobilenet_v2": (35, "depthwise"),
    "efficientnet_lite": (33, "dwconv"),
    "efficientnet_v2": (22, "dwconv"),
    "darknet": (11, None),
    "hgnet_v2": (17, "downsample"),
}


@pytest.mark.parametrize("family", CONVOLUTIONAL)
def test_auto_is_every_convolution_that_mixes_channels(family):
    count, depthwise = CONVOLUTIONAL[family]
    model = tagger(family)
    targets = resolve_targets("auto", model)
    assert len(targets) == count
    assert set(layer_roles(model.keras).values()) == {"convolution"}
    assert not depthwise or not any(re.search(depthwise, name) for name in targets)


def test_pointwise_layers_of_convnext_are_adapted_with_its_convolutions():
    model = tagger("convnext")
    roles = layer_roles(model.keras)
    block = "backbone/convnext_tiny_stage_1_block_2_"
    assert {name.removeprefix(block): r for name, r in roles.items() if block in name} == {
        "pointwise_conv_1": "mlp_up",
        "pointwise_conv_2": "mlp_down",
    }
    assert sorted(resolve_targets("auto", model)) == sorted(roles)


@pytest.mark.parametrize("family", FAMILIES)
def test_auto_is_never_empty_and_never_a_head(family):
    targets = resolve_targets("auto", tagger(family))
    assert targets and all(name.startswith("backbone/") for name in targets)


def _gpt_neo_x() -> keras.Model:
    return keras_hub().models.GPTNeoXBackbone(
        vocabulary_size=11,
        num_layers=3,
        num_heads=2,
        hidden_dim=8,
        intermediate_dim=16,
        max_sequence_length=8,
    )


def test_gpt_neo_x_has_one_layer_for_query_key_and_value():
    with without_values():
        model = Tagger(_gpt_neo_x())
    inside = _LAYERS.format(1) + "/"
    found = {n.removeprefix(inside): r for n, r in layer_roles(model.keras).items() if inside in n}
    assert found == {
        "self_attention/query_key_value": "qkv",
        "self_attention/attention_output": "attention_output",
        "feedforward_intermediate_dense": "mlp_up",
        "feedforward_output_dense": "mlp_down",
    }
    assert len(resolve_targets("auto", model)) == 3


@pytest.mark.parametrize(
    "build", [_gpt_neo_x, *(FAMILIES[name].build for name in ("smollm3", "t5", "resnet"))]
)
def test_backbones_in_which_the_hubs_own_lora_finds_nothing_have_targets(build):
    with without_values():
        body = build()
        wanted = set(body.default_lora_layer_names())
        model = Tagger(body)
    assert not {layer.name for layer in body._flatten_layers()} & wanted
    assert resolve_targets("auto", model)
