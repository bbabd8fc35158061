"""What the selectors select in backbones of many families, against lists written by hand."""

from collections.abc import Iterable

import pytest

from tests.unit.models.backbone_families import FAMILIES, Tagger, tagger
from tunekit.errors import SelectionError
from tunekit.models.selection import resolve_selection

# KerasHub's own, of masks that its attention drops.
pytestmark = pytest.mark.filterwarnings(
    "ignore:Layer .* was passed an input with a mask:UserWarning",
    "ignore:.*Layer 'attn':UserWarning",
)


def _all(places: Iterable[str], *leaves: str) -> set[str]:
    """Every leaf in every place."""
    return {f"{place}{leaf}" for place in places for leaf in leaves}


def _dense(*names: str) -> set[str]:
    return _all(names, "/kernel", "/bias")


def _norms(*names: str) -> set[str]:
    return _all(names, "/gamma", "/beta")


HEAD = {"heads/label/logits/kernel", "heads/label/logits/bias"}

# ResNet: three basic blocks; the last, of stage 2, has a projection.
_RESNET_BLOCKS = [
    _all([f"{name}_1_conv", f"{name}_2_conv"], "/kernel") | _norms(f"{name}_1_bn", f"{name}_2_bn")
    for name in ("stack0_block0", "stack0_block1", "stack1_block0")
]
_RESNET_BLOCKS[2] |= {"stack1_block0_0_conv/kernel"} | _norms("stack1_block0_0_bn")
_RESNET_STEM = {"conv1_conv/kernel"} | _norms("conv1_bn")
_RESNET_NORM = {n for n in set().union(_RESNET_STEM, *_RESNET_BLOCKS) if "_bn/" in n}

# DenseNet: five dense blocks; the transition to stage 2 is the third's.
_DENSE_BLOCKS = [
    _all([f"{name}_1_conv", f"{name}_2_conv"], "/kernel") | _norms(f"{name}_1_bn", f"{name}_2_bn")
    for name in (f"stack{s}_block{b}" for s, b in ((1, 1), (1, 2), (2, 1), (2, 2), (2, 3)))
]
_DENSE_BLOCKS[2] |= {"transition1_conv/kernel"} | _norms("transition1_bn")

# ViT: three layers inside an encoder.
_ATTENTION = ("mha/query", "mha/key", "mha/value", "mha/attention_output")
_VIT_BLOCKS = [
    _dense(*(f"{name}/{layer}" for layer in (*_ATTENTION, "mlp/dense", "mlp/dense_1")))
    | _norms(f"{name}/ln_1", f"{name}/ln_2")
    for name in (f"vit_encoder/transformer_block_{i}" for i in (1, 2, 3))
]
_VIT_TOP = _norms("vit_encoder/ln")
_VIT_TABLES = {
    "vit_patching_and_embedding/class_token",
    "vit_patching_and_embedding/position_embedding/embeddings",
}
_VIT_STEM = _VIT_TABLES | _dense("vit_patching_and_embedding/patch_embedding")
_VIT_NORM = _VIT_TOP | {n for block in _VIT_BLOCKS for n in block if "/ln_" in n}

# Swin: stages of two, two and one blocks; what merges patches opens the next stage.
_SWIN_BLOCKS = [
    _dense(f"{n}/attn/attention_qkv", f"{n}/attn/attention_projection", f"{n}/mlp/fc1")
    | _dense(f"{n}/mlp/fc2")
    | _norms(f"{n}/norm1", f"{n}/norm2")
    | {f"{n}/attn/relative_position_bias_table"}
    for n in (f"stage_{s}/blocks_{b}" for s, b in ((0, 0), (0, 1), (1, 0), (1, 1), (2, 0)))
]
_SWIN_BLOCKS[2] |= {"stage_0/downsample/reduction/kernel"} | _norms("stage_0/downsample/norm")
_SWIN_BLOCKS[4] |= {"stage_1/downsample/reduction/kernel"} | _norms("stage_1/downsample/norm")

# BERT and GPT2: three layers in the graph.
_LAYER_DENSE = ("feedforward_intermediate_dense", "feedforward_output_dense")
_LAYER_NORMS = ("self_attention_layer_norm", "feedforward_layer_norm")


def _layers(attention: str) -> list[set[str]]:
    parts = [f"{attention}/{part}" for part in ("query", "key", "value", "attention_output")]
    return [
        _dense(*(f"transformer_layer_{i}/{layer}" for layer in (*parts, *_LAYER_DENSE)))
        | _norms(*(f"transformer_layer_{i}/{layer}" for layer in _LAYER_NORMS))
        for i in range(3)
    ]


_BERT_BLOCKS = _layers("self_attention_layer")
_BERT_TABLES = _all(["token_embedding", "position_embedding", "segment_embedding"], "/embeddings")
_BERT_NORM = _norms("embeddings_layer_norm") | _norms(
    *(f"transformer_layer_{i}/{norm}" for i in range(3) for norm in _LAYER_NORMS)
)
_GPT2_BLOCKS = _layers("self_attention")
_GPT2_TABLES = _all(["token_embedding", "position_embedding"], "/embeddings")

# Llama: no bias anywhere in the body; a table for reading and one for writing.
_LLAMA_BLOCKS = [
    _all(
        [f"transformer_layer_{i}/self_attention/{p}" for p in ("query", "key", "value")],
        "/kernel",
    )
    | {f"transformer_layer_{i}/self_attention/attention_output/kernel"}
    | _all(
        [
            f"transformer_layer_{i}/feedforward_{p}_dense"
            for p in ("gate", "intermediate", "output")
        ],
        "/kernel",
    )
    | _all(
        [f"transformer_layer_{i}/self_attention_layernorm"]
        + [f"transformer_layer_{i}/feedforward_layernorm"],
        "/scale",
    )
    for i in range(3)
]
_LLAMA_TOP = {"sequence_output_layernorm/scale"}
_LLAMA_NORM = _LLAMA_TOP | {n for b in _LLAMA_BLOCKS for n in b if n.endswith("/scale")}
_LLAMA_TABLES = {"token_embedding/embeddings", "token_embedding/reverse_embeddings"}

# T5: encoder layers before decoder layers; the first of each has the relative positions.
_T5_FEEDFORWARD = ("input_projector", "gate_projector", "output_projector")


def _t5_layer(name: str, attentions: tuple[str, ...]) -> set[str]:
    projectors = ("query_projector", "key_projector", "value_projector", "output_projector")
    norms = ["t5_layer_norm", "t5_layer_norm_1", "t5_layer_norm_2"][: len(attentions) + 1]
    return (
        _all([f"{name}/{a}/{p}" for a in attentions for p in projectors], "/kernel")
        | _all([f"{name}/{p}" for p in _T5_FEEDFORWARD], "/kernel")
        | _all([f"{name}/{norm}" for norm in norms], "/weight")
    )


_T5_BLOCKS = [
    *(_t5_layer(f"transformer_encoder_layer_{i}", ("self_attention",)) for i in range(3)),
    *(
        _t5_layer(f"transformer_decoder_layer_{i}", ("self_attention", "cross_attention"))
        for i in range(3)
    ),
]
_T5_TABLES = {
    "transformer_encoder_layer_0/self_attention/embeddings",
    "transformer_decoder_layer_0/self_attention/embeddings",
}
_T5_BLOCKS[0] |= {"transformer_encoder_layer_0/self_attention/embeddings"}
_T5_BLOCKS[3] |= {
    "transformer_decoder_layer_0/self_attention/embeddings",
    "encoder_output_layer_norm/weight",
}
_T5_TOP = {"decoder_output_layer_norm/weight"}
_T5_NORM = _T5_TOP | {n for block in _T5_BLOCKS for n in block if n.endswith("/weight")}


def _biases(*parts: Iterable[str]) -> set[str]:
    """What is added: what a norm adds is called beta."""
    return {name for part in parts for name in part if name.endswith(("/bias", "/beta"))}


CASES: list[tuple[str, str, set[str]]] = [
    ("resnet", "head", HEAD),
    ("resnet", "stem", _RESNET_STEM),
    ("resnet", "last 2", _RESNET_BLOCKS[1] | _RESNET_BLOCKS[2]),
    ("resnet", "blocks[0]", _RESNET_BLOCKS[0]),
    ("resnet", "stage>=2", _RESNET_BLOCKS[2]),
    ("resnet", "stage<2", _RESNET_BLOCKS[0] | _RESNET_BLOCKS[1]),
    ("resnet", "norm", _RESNET_NORM),
    ("resnet", "bias", _biases(HEAD, _RESNET_NORM)),
    ("resnet", "head, last 1, !norm", HEAD | (_RESNET_BLOCKS[2] - _RESNET_NORM)),
    ("resnet", ".*_0_conv/kernel", {"stack1_block0_0_conv/kernel"}),
    ("densenet", "blocks[-4:]", set().union(*_DENSE_BLOCKS[1:])),
    ("densenet", "last 3", set().union(*_DENSE_BLOCKS[2:]) | _norms("bn")),
    ("densenet", "stage==2, !blocks[-1]", _DENSE_BLOCKS[2] | _DENSE_BLOCKS[3]),
    ("densenet", "top", _norms("bn")),
    ("vit", "head, last 2", HEAD | _VIT_BLOCKS[1] | _VIT_BLOCKS[2] | _VIT_TOP),
    ("vit", "first 1", _VIT_STEM | _VIT_BLOCKS[0]),
    ("vit", "blocks[1:]", _VIT_BLOCKS[1] | _VIT_BLOCKS[2]),
    ("vit", "norm", _VIT_NORM),
    ("vit", "embeddings", _VIT_TABLES),
    ("vit", "bias", _biases(HEAD, _VIT_STEM, _VIT_TOP, *_VIT_BLOCKS)),
    ("vit", "blocks, !norm, !bias", set().union(*_VIT_BLOCKS) - _VIT_NORM - _biases(*_VIT_BLOCKS)),
    (
        "vit",
        r"backbone/.*/mha/(query|value)/kernel",
        _all(
            [f"vit_encoder/transformer_block_{i}/mha/" for i in (1, 2, 3)],
            "query/kernel",
            "value/kernel",
        ),
    ),
    ("swin", "stage>=3", _SWIN_BLOCKS[4]),
    ("swin", "stage!=1", _SWIN_BLOCKS[2] | _SWIN_BLOCKS[3] | _SWIN_BLOCKS[4]),
    ("swin", "blocks[-4:]", set().union(*_SWIN_BLOCKS[1:])),
    ("swin", "last 1", _SWIN_BLOCKS[4] | _norms("norm")),
    ("bert", "head", HEAD),
    ("bert", "embeddings", _BERT_TABLES),
    ("bert", "stem", _BERT_TABLES | _norms("embeddings_layer_norm")),
    ("bert", "last 2", _BERT_BLOCKS[1] | _BERT_BLOCKS[2] | _dense("pooled_dense")),
    ("bert", "norm", _BERT_NORM),
    ("bert", "last 1, !norm", (_BERT_BLOCKS[2] | _dense("pooled_dense")) - _BERT_NORM),
    ("bert", "bias", _biases(HEAD, _BERT_NORM, _dense("pooled_dense"), *_BERT_BLOCKS)),
    ("gpt2", "embeddings", _GPT2_TABLES),
    ("gpt2", "last 1", _GPT2_BLOCKS[2] | _norms("layer_norm")),
    ("gpt2", "blocks[:-1]", _GPT2_BLOCKS[0] | _GPT2_BLOCKS[1]),
    ("llama", "embeddings", _LLAMA_TABLES),
    ("llama", "norm", _LLAMA_NORM),
    ("llama", "bias", _biases(HEAD)),
    ("llama", "last 2, !norm", (_LLAMA_BLOCKS[1] | _LLAMA_BLOCKS[2]) - _LLAMA_NORM),
    ("t5", "blocks[-4:]", set().union(*_T5_BLOCKS[2:])),
    ("t5", "last 3", set().union(*_T5_BLOCKS[3:]) | _T5_TOP),
    ("t5", "embeddings", {"token_embedding/embeddings"} | _T5_TABLES),
    ("t5", "norm", _T5_NORM),
    ("t5", "first 1", {"token_embedding/embeddings"} | _T5_BLOCKS[0]),
]


@pytest.fixture(scope="module")
def models() -> dict[str, Tagger]:
    return {name: tagger(name) for name in dict.fromkeys(name for name, _, _ in CASES)}


@pytest.mark.parametrize(("name", "selectors", "expected"), CASES)
def test_selectors_select_what_the_list_says(models, name, selectors, expected):
    whole = {n if n.startswith("heads/") else f"backbone/{n}" for n in expected}
    assert resolve_selection(selectors, models[name]) == whole


@pytest.mark.parametrize("name", FAMILIES)
def test_the_parts_of_every_family_together_are_all_that_can_train(name):
    model = tagger(name)
    parts = {group.kind: group for group in model.groups()}
    words = {"stem": "stem", "block": "blocks", "top": "top", "head": "head"}
    selected = [resolve_selection(words[kind], model) for kind in parts]
    assert sum(map(len, selected)) == len(model.weight_names())
    assert frozenset().union(*selected) == resolve_selection("all", model)


def test_what_a_family_does_not_have_is_an_error_that_says_what_it_has(models):
    with pytest.raises(SelectionError, match="'stage>=3' matches no variable. .* 1, 2"):
        resolve_selection("stage>=3", models["resnet"])
    with pytest.raises(SelectionError, match="no stages; select blocks, such as 'last 2'"):
        resolve_selection("stage>=3", models["llama"])
    with pytest.raises(SelectionError, match="'embeddings' matches no variable"):
        resolve_selection("embeddings", models["densenet"])
    with pytest.raises(SelectionError, match="more blocks than the 3 of this backbone"):
        resolve_selection("last 4", models["gpt2"])
