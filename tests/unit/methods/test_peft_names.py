import pytest
from safetensors.numpy import load_file

from tests.unit.methods import peft_networks as nets
from tests.unit.models.backbone_families import FAMILIES as KERAS_HUB
from tunekit.errors import ModelError
from tunekit.methods.peft_names import FAMILIES, family_of, is_known, modules_of
from tunekit.models.initialisation import without_values
from tunekit.names import layer_names

# What transformers 5 calls the modules in memory; its files keep the names of transformers 4.
BASES = [name for name in FAMILIES if (nets.FOLDER / name).is_dir()]


@pytest.mark.parametrize("kind", BASES)
def test_every_dense_layer_and_convolution_has_a_module_of_the_bases_own_file(kind: str) -> None:
    layers = nets.places(kind).roles
    modules = modules_of(family_of(kind), layers)
    named = {layer for module in modules for layer in module.layers}
    assert set(layers) - named == set()
    tensors = load_file(nets.FOLDER / kind / "model.safetensors")
    stored = {name.removesuffix(".weight") for name in tensors}
    tied = {"lm_head"} - stored
    for module in modules:
        assert module.spellings & stored or module.path in tied, module


@pytest.mark.parametrize("kind", ["llama", "llama3", "mistral", "qwen2", "gemma", "gpt2", "bert"])
def test_layers_of_kerashubs_own_classes_have_names(kind: str) -> None:
    with without_values():
        body = KERAS_HUB[kind].build()
    found = {
        f"backbone/{name}"
        for name, layer in layer_names(body).items()
        if type(layer).__name__ in ("Dense", "EinsumDense", "ReversibleEmbedding")
    }
    modules = modules_of(family_of(kind), found)
    assert {layer for module in modules for layer in module.layers} == found


def test_numbers_are_those_of_hugging_face() -> None:
    layers = [
        "backbone/vit_encoder/transformer_block_1/mlp/dense_1",
        "backbone/stack2_block3_0_conv",
    ]
    (vit,) = modules_of(family_of("vit"), layers)
    assert vit.path == "vit.layers.0.mlp.fc2"
    assert "vit.encoder.layer.0.output.dense" in vit.spellings
    (resnet,) = modules_of(family_of("resnet"), layers)
    assert resnet.path == "resnet.encoder.stages.2.layers.3.shortcut.convolution"


def test_gpt2s_query_key_and_value_are_one_module_in_that_order() -> None:
    block = "backbone/transformer_layer_0/self_attention"
    names = [f"{block}/{x}" for x in ("value", "query")]
    (module,) = modules_of(family_of("gpt2"), names)
    assert module.path == "transformer.h.0.attn.c_attn"
    assert module.layers == (f"{block}/query", None, f"{block}/value")


def test_no_two_modules_share_a_spelling() -> None:
    for kind in BASES:
        modules = modules_of(family_of(kind), nets.places(kind).layers)
        spellings = [path for module in modules for path in module.spellings]
        assert len(spellings) == len(set(spellings)), kind


def test_a_family_without_names_is_an_error_with_near_matches() -> None:
    assert is_known("llama3") and not is_known("mistrall")
    with pytest.raises(ModelError, match=r"for the family 'mistrall'.*Did you mean 'mistral'"):
        family_of("mistrall")
