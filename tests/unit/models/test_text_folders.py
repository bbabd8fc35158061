"""Folders of token models compute what transformers computes, and those that cannot say why.

The expected numbers are of tests/reference/make_text_references.py. Relative errors of float32
sums in another order are about 1e-6; GELU by the wrong formula, a default epsilon, an ignored
rope scaling or window shows from 1e-4 up.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import keras
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tests.reference import text_folders as text
from tunekit.errors import ModelError
from tunekit.models.backbone import Backbone
from tunekit.models.hub import tensorflow_hidden
from tunekit.models.loading import load_backbone
from tunekit.models.spec import BackboneSpec
from tunekit.models.token_graph import TiedHead, assemble_tokens
from tunekit.names import structural_names

SPEC = BackboneSpec()
INPUTS = {"token_ids": text.TOKEN_IDS, "padding_mask": text.PADDING_MASK}
REAL = text.PADDING_MASK.astype(bool)
LANGUAGE_MODELS = [
    name for name, config in text.CONFIGS.items() if "eos_token_id" in config or "masked" in name
]


def load(name: str, folder: Path, spec: BackboneSpec = SPEC, **change: Any) -> Backbone:
    """The folder `name` with some settings of its config changed; `None` takes one out."""
    text.write(name, folder)
    config = {**text.CONFIGS[name], **change}
    config = {key: value for key, value in config.items() if value is not None}
    (folder / "config.json").write_text(json.dumps(config))
    return load_backbone(folder, spec)


def change_tensors(folder: Path, change: dict[str, np.ndarray | None]) -> None:
    tensors: dict[str, Any] = {**load_file(folder / "model.safetensors"), **change}
    kept = {name: value for name, value in tensors.items() if value is not None}
    save_file(kept, folder / "model.safetensors")


def answer(model: keras.Model) -> np.ndarray:
    return np.asarray(keras.ops.convert_to_numpy(model(INPUTS)))


def relative_error(got: np.ndarray, wanted: np.ndarray) -> float:
    """Where there is no padding, of the largest value."""
    return float(np.abs(got - wanted)[REAL].max() / np.abs(wanted[REAL]).max())


@pytest.mark.parametrize("name", text.CONFIGS)
def test_hidden_states_and_logits_equal_those_of_transformers(name: str, tmp_path: Path) -> None:
    backbone = load(name, tmp_path)
    expected = np.load(text.EXPECTED)
    assert relative_error(answer(backbone.keras), expected[f"{name}/hidden"]) < 1e-5
    assert (backbone.language_head is not None) == (name in LANGUAGE_MODELS)
    if backbone.language_head is not None:
        model = assemble_tokens(backbone.keras, {}, backbone.language_head)
        logits = answer(model)
        assert logits.dtype == np.float32
        assert relative_error(logits, expected[f"{name}/logits"]) < 1e-5


@pytest.mark.parametrize("name", text.CONFIGS)
def test_a_network_built_from_its_own_configuration_computes_the_same(
    name: str, tmp_path: Path
) -> None:
    body = load(name, tmp_path).keras
    with tensorflow_hidden():
        config = json.loads(json.dumps(keras.saving.serialize_keras_object(body)))
        copy: Any = keras.saving.deserialize_keras_object(config, safe_mode=True)
    ours, theirs = structural_names(body), structural_names(copy)
    assert list(ours) == list(theirs)
    for variable, value in zip(theirs.values(), ours.values(), strict=True):
        variable.assign(value)
    assert np.array_equal(answer(copy), answer(body))


def test_the_backbone_says_what_it_takes(tmp_path: Path) -> None:
    roberta = load("roberta", tmp_path)
    assert (roberta.takes, roberta.preprocessing) == ("tokens", None)
    assert roberta.features == "encoder_states"
    assert load("gpt2", tmp_path).features == "decoder_states"
    assert (roberta.vocabulary, roberta.dim, roberta.family) == (99, 32, "roberta")
    assert roberta.max_length_tokens == 22  # of 24 rows, two are the padding's


def test_files_in_bfloat16_become_float32_without_loss(tmp_path: Path) -> None:
    text.write("llama", tmp_path)
    stored = {n: v.astype(ml_dtypes.bfloat16) for n, v in text.tensors("llama").items()}
    save_file(stored, tmp_path / "model.safetensors")
    embedding: Any = load_backbone(tmp_path, SPEC).keras.get_layer("token_embedding")
    table = np.asarray(embedding.embeddings)
    assert table.dtype == np.float32
    assert np.array_equal(table, stored["model.embed_tokens.weight"].astype(np.float32))


def test_a_tied_head_has_no_weights_of_its_own_and_an_untied_one_has(tmp_path: Path) -> None:
    assert isinstance(load("llama", tmp_path / "tied").language_head, TiedHead)
    untied = load("llama-untied", tmp_path / "untied").language_head
    assert isinstance(untied, keras.layers.Dense)
    kernel = text.tensors("llama-untied")["lm_head.weight"].T
    assert np.array_equal(np.asarray(untied.kernel), kernel)


def test_a_body_saved_without_its_head_has_the_same_hidden_states(tmp_path: Path) -> None:
    whole = load("llama-untied", tmp_path)
    tensors = text.tensors("llama-untied")
    body = {name.removeprefix("model."): value for name, value in tensors.items()}
    del body["lm_head.weight"]
    save_file(body, tmp_path / "model.safetensors")
    config = {**text.CONFIGS["llama-untied"], "architectures": ["LlamaModel"]}
    (tmp_path / "config.json").write_text(json.dumps(config))
    alone = load_backbone(tmp_path, SPEC)
    assert alone.language_head is None
    assert np.array_equal(answer(alone.keras), answer(whole.keras))


def test_rope_is_read_from_the_keys_of_transformers_5_as_well(tmp_path: Path) -> None:
    old = load("llama-untied", tmp_path / "old")
    rope = {**text.CONFIGS["llama-untied"]["rope_scaling"], "rope_theta": 50.0}
    new = load(
        "llama-untied", tmp_path / "new", rope_theta=None, rope_scaling=None, rope_parameters=rope
    )
    assert np.array_equal(answer(old.keras), answer(new.keras))


def test_fewer_blocks_are_the_first_ones_and_have_no_language_head(tmp_path: Path) -> None:
    short = load("gpt2", tmp_path, BackboneSpec(blocks=1))
    names = {layer.name for layer in short.keras.layers}
    assert "transformer_layer_0" in names and "transformer_layer_1" not in names
    assert short.language_head is None
    with pytest.raises(ModelError, match="has 2 blocks, so its first 3 cannot be kept"):
        load("gpt2", tmp_path, BackboneSpec(blocks=3))


def test_fresh_weights_follow_the_seed(tmp_path: Path) -> None:
    text.write("llama-untied", tmp_path)
    (tmp_path / "model.safetensors").unlink()
    spec = BackboneSpec(pretrained=False)
    first, same, other = (load_backbone(tmp_path, spec, seed=seed) for seed in (0, 0, 1))
    assert np.array_equal(answer(first.keras), answer(same.keras))
    assert not np.array_equal(answer(first.keras), answer(other.keras))
    assert first.language_head is not None


@pytest.mark.parametrize("name", ["bert", "gemma", "llama-untied"])
def test_bfloat16_is_close_to_float32_and_logits_stay_float32(name: str, tmp_path: Path) -> None:
    backbone = load(name, tmp_path, BackboneSpec(dtype="bfloat16"))
    variables = {v.dtype for v in backbone.keras.variables if "seed" not in v.name}
    assert variables == {"bfloat16"}
    hidden = np.asarray(backbone.keras(INPUTS), np.float32)
    assert 1e-4 < relative_error(hidden, np.load(text.EXPECTED)[f"{name}/hidden"]) < 0.1
    if backbone.language_head is not None:
        assert answer(assemble_tokens(backbone.keras, {}, backbone.language_head)).dtype == "f4"


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("bert", {"model_type": "berd"}, "holds a 'berd'; .*Did you mean 'bert'"),
        ("bert", {"hidden_act": "gelu_now"}, "'gelu_now' is not supported.*Did you mean 'gelu_new"),
        ("bert", {"position_embedding_type": "relative_key"}, "position_embedding_type='relative"),
        ("bert", {"hidden_size": None}, "config.json has no 'hidden_size', which a 'bert'"),
        ("gpt2", {"scale_attn_weights": False}, "scale_attn_weights=False is not supported"),
        ("llama", {"attention_bias": True}, "attention_bias=True is not supported"),
        ("llama", {"hidden_act": "gelu"}, "hidden_act='gelu' is not supported"),
        ("llama", {"rope_scaling": {"type": "yarn"}}, "rope of type 'yarn' with theta 50.0"),
        ("gemma", {"rope_theta": 50.0}, "theta 50.0 is not supported for a 'gemma'"),
        ("qwen2", {"use_sliding_window": True}, "use_sliding_window=True is not supported"),
        ("qwen2", {"head_dim": 12}, "head_dim 12 of 4 heads is not hidden_size 32"),
        ("llama", {"tie_word_embeddings": False}, "no 'lm_head.weight', and its config"),
        ("llama", {"num_hidden_layers": 1}, "9 tensors have no place .model.layers.1"),
        ("llama", {"intermediate_size": 40}, r"mlp.gate_proj.* wants \(32, 40\)"),
    ],
)
def test_what_a_config_asks_for_and_cannot_have_is_said(
    name: str, change: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ModelError, match=message):
        load(name, tmp_path, **change)


def test_a_window_past_the_last_layer_that_slides_is_no_matter(tmp_path: Path) -> None:
    change = {"use_sliding_window": True, "max_window_layers": 2}
    assert load("qwen2", tmp_path, **change).language_head is not None


def test_tokens_have_no_image_size(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"takes tokens: leave image_size \(32\) out"):
        load("bert", tmp_path, BackboneSpec(image_size=32))


def test_a_lacking_and_an_extra_tensor_are_named(tmp_path: Path) -> None:
    text.write("llama", tmp_path)
    change_tensors(tmp_path, {"model.layers.0.self_attn.q_proj.bias": np.zeros(32, np.float32)})
    with pytest.raises(ModelError, match=r"no place \(model.layers.0.self_attn.q_proj.bias\)"):
        load_backbone(tmp_path, SPEC)
    change_tensors(
        tmp_path,
        {"model.layers.0.self_attn.q_proj.bias": None, "model.layers.1.mlp.up_proj.weight": None},
    )
    with pytest.raises(ModelError, match="no tensor 'model.layers.1.mlp.up_proj.weight'.*Did you"):
        load_backbone(tmp_path, SPEC)
