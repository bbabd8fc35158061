"""The graph of a model of tokens: names, depth groups, heads, and ids that have no embedding."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import keras
import numpy as np
import pytest

from tests.reference import text_folders as text
from tunekit.errors import ModelError
from tunekit.methods.intercept import Call, intercept
from tunekit.models.backbone import Backbone
from tunekit.models.depth import Group, depth_groups
from tunekit.models.loading import load_backbone
from tunekit.models.masked_head import MaskedHead
from tunekit.models.spec import BackboneSpec
from tunekit.models.token_graph import (
    assemble_tokens,
    check_token_ids,
    language_head,
    token_inputs,
)
from tunekit.names import layer_names, structural_names

INPUTS = {"token_ids": text.TOKEN_IDS, "padding_mask": text.PADDING_MASK}


def load(name: str, folder: Path) -> Backbone:
    return load_backbone(text.write(name, folder), BackboneSpec())


def groups(model: keras.Model) -> tuple[Group, ...]:
    return depth_groups(cast(Any, SimpleNamespace(keras=model)))


def head(name: str) -> keras.Model:
    states = keras.Input((None, 32), name="features")
    inputs = {"features": states, "padding_mask": token_inputs()["padding_mask"]}
    return keras.Model(inputs, keras.layers.Dense(3, name="logits")(states[:, 0]), name=name)


@pytest.mark.parametrize("name", text.CONFIGS)
def test_every_variable_is_of_the_stem_a_block_the_top_or_a_head(name: str, tmp_path: Path) -> None:
    backbone = load(name, tmp_path)
    model = assemble_tokens(backbone.keras, {}, backbone.language_head)
    kinds = [group.kind for group in groups(model)]
    masked = isinstance(backbone.language_head, MaskedHead)
    top = ["top"] if backbone.language_head is not None and not masked else []
    own = ["head"] if masked or "lm_head.weight" in text.tensors(name) else []
    keys = ("num_hidden_layers", "n_layers", "n_layer")
    blocks = next(text.CONFIGS[name][key] for key in keys if key in text.CONFIGS[name])
    assert kinds == ["stem", *["block"] * blocks, *top, *own]
    assert any("token_embedding" in variable for variable in groups(model)[0].weights)
    assert sum(len(group.variables) for group in groups(model)) == len(structural_names(model))


def test_names_are_the_same_however_often_a_graph_is_put_together(tmp_path: Path) -> None:
    backbone = load("llama-untied", tmp_path)
    first = assemble_tokens(backbone.keras, {}, backbone.language_head)
    again = assemble_tokens(
        cast(keras.Model, first.get_layer("backbone")), {}, backbone.language_head
    )
    names = list(structural_names(first))
    assert names == list(structural_names(again))
    assert names[0] == "backbone/token_embedding/embeddings"
    assert names[-1] == "heads/lm_head/kernel"
    assert "backbone/transformer_layer_0/self_attention/query/kernel" in names


def test_a_tied_embedding_is_named_once_below_the_backbone(tmp_path: Path) -> None:
    backbone = load("qwen2", tmp_path)
    model = assemble_tokens(backbone.keras, {}, backbone.language_head)
    tables = [name for name in structural_names(model) if name.endswith("embeddings")]
    assert tables == ["backbone/token_embedding/embeddings"]
    assert "heads/lm_head" in layer_names(model)


def test_what_is_added_at_a_tied_head_leaves_the_embedding_alone(tmp_path: Path) -> None:
    backbone = load("llama", tmp_path)
    model = assemble_tokens(backbone.keras, {}, backbone.language_head)
    before, hidden = np.asarray(model(INPUTS)), np.asarray(backbone.keras(INPUTS))

    def plus_one(call: Call) -> Call:
        return lambda x: call(x) + 1

    with intercept({layer_names(model)["heads/lm_head"]: plus_one}):
        after, hidden_after = np.asarray(model(INPUTS)), np.asarray(backbone.keras(INPUTS))
    assert np.allclose(after, before + 1, atol=1e-6)
    assert np.array_equal(hidden_after, hidden)


def test_heads_stand_beside_the_language_head(tmp_path: Path) -> None:
    backbone = load("gpt2", tmp_path)
    one = assemble_tokens(backbone.keras, {"label": head("label")})
    assert np.asarray(one(INPUTS)).shape == (2, 3)
    both = assemble_tokens(backbone.keras, {"label": head("label")}, backbone.language_head)
    outputs = both(INPUTS)
    assert {name: tuple(x.shape) for name, x in outputs.items()} == {
        "label": (2, 3),
        "lm_head": (2, 7, 99),
    }
    assert [group.name for group in groups(both)][-1] == "heads/label"


def test_without_heads_the_model_gives_hidden_states(tmp_path: Path) -> None:
    body = load("bert", tmp_path).keras
    assert np.array_equal(np.asarray(assemble_tokens(body, {})(INPUTS)), np.asarray(body(INPUTS)))


def test_a_fresh_language_head_is_tied_or_has_its_own_kernel(tmp_path: Path) -> None:
    body = load("bert", tmp_path).keras
    assert language_head(body, tied=True).name == "lm_head"
    assert [tuple(v.shape) for v in language_head(body, tied=False).variables] == [(32, 99)]


def test_padding_changes_nothing_before_it(tmp_path: Path) -> None:
    for name in ("bert", "llama"):
        body = load(name, tmp_path / name).keras
        other = {**INPUTS, "token_ids": np.where(text.PADDING_MASK, text.TOKEN_IDS, 50)}
        kept = text.PADDING_MASK.astype(bool)
        assert np.array_equal(np.asarray(body(INPUTS))[kept], np.asarray(body(other))[kept])


def test_ids_outside_of_the_vocabulary_give_nan_and_are_refused_before(tmp_path: Path) -> None:
    body = load("gpt2", tmp_path).keras
    outside = {**INPUTS, "token_ids": np.where(text.TOKEN_IDS == 98, 99, text.TOKEN_IDS)}
    assert np.isnan(np.asarray(body(outside))).any()  # what the check is for
    with pytest.raises(ModelError, match=r"token id 99 at \[0, 2\] .* expected 0 to 98"):
        check_token_ids(outside["token_ids"], 99)
    with pytest.raises(ModelError, match=r"token id -1 at \[1\]"):
        check_token_ids(np.array([3, -1]), 99)
    check_token_ids(text.TOKEN_IDS, 99)
