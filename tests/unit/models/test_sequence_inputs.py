"""What a batch says of its tokens reaches the layers that know of it, and nothing else changes."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from tests.reference import text_folders
from tunekit.errors import ModelError
from tunekit.methods.spec import PromptTuning
from tunekit.models.loading import load_model
from tunekit.models.sequence_inputs import extra_wraps, split_extras
from tunekit.models.trainable import put

IDS = np.array([[5, 17, 98, 3, 61, 42, 7], [11, 4, 77, 29, 88, 1, 1]], np.int32)
MASK = np.array([[1] * 7, [1] * 5 + [0] * 2], np.int32)
GRAPH = {"token_ids": IDS, "padding_mask": MASK}
TYPES = np.array([[0, 0, 0, 1, 1, 1, 1], [0, 1, 1, 1, 1, 0, 0]], np.int32)
SEGMENTS = "backbone/segment_embedding/embeddings"


@pytest.fixture
def model_of(tmp_path):
    return lambda name: load_model(text_folders.write(name, tmp_path))


def outputs(model, values=None, **extras):
    forward = model.forward()
    inputs = {**GRAPH, **extras}
    return np.asarray(forward({**forward.values(), **(values or {})}, inputs, training=False)[0])


def test_inputs_without_extras_stay_as_they_are():
    image = np.zeros((1, 4, 4, 3))
    assert split_extras(image)[0] is image
    assert split_extras(GRAPH)[0] is GRAPH and split_extras(GRAPH)[1] == {}
    assert extra_wraps({}, {}) == {}


def test_extras_are_told_from_what_the_graph_takes():
    graph, extras = split_extras({**GRAPH, "token_types": TYPES, "documents": MASK})
    assert graph.keys() == GRAPH.keys() and extras.keys() == {"token_types", "documents"}


def test_segments_choose_the_row_of_each_token(model_of):
    model = model_of("bert")
    first, second = np.asarray(model.forward().values()[SEGMENTS])
    plain = outputs(model)
    np.testing.assert_array_equal(outputs(model, token_types=0 * TYPES), plain)
    # All of the second segment: as all of the first, were its row the other.
    swapped = outputs(model, {SEGMENTS: np.stack([second, first])})
    np.testing.assert_array_equal(outputs(model, token_types=0 * TYPES + 1), swapped)
    # Of both: the sum of embeddings is that of words which have the difference in them.
    difference = "backbone/token_embedding/embeddings"
    table = np.asarray(model.forward().values()[difference]).copy()
    table[[3, 61, 42, 7, 4, 77, 29, 88]] += second - first
    expected = outputs(model, {difference: table})
    np.testing.assert_allclose(outputs(model, token_types=TYPES), expected, atol=1e-5)


@pytest.mark.parametrize("name", ["distilbert", "roberta", "llama"])
def test_networks_without_segments_take_no_notice_of_them(name, model_of):
    model = model_of(name)
    np.testing.assert_array_equal(outputs(model, token_types=TYPES), outputs(model))


def test_learned_positions_before_a_text_are_of_the_first_segment(model_of):
    model = model_of("bert")
    put(PromptTuning(length=2), model)
    np.testing.assert_array_equal(outputs(model, token_types=0 * TYPES), outputs(model))
    assert (outputs(model, token_types=TYPES) != outputs(model)).any()


@pytest.mark.parametrize("name", ["llama", "mistral", "qwen2", "gemma", "gpt2", "bert"])
def test_one_document_from_position_0_is_the_plain_network(name, model_of):
    model = model_of(name)
    positions = np.broadcast_to(np.arange(7, dtype=np.int32), IDS.shape)
    told = outputs(model, positions=positions, documents=MASK)[MASK > 0]
    np.testing.assert_array_equal(told, outputs(model)[MASK > 0])


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_positions_are_those_that_are_given(name, model_of):
    """A text that begins in the middle of a row, with nothing before it."""
    model = model_of(name)
    shifted = {"token_ids": np.roll(IDS, 2, 1), "padding_mask": np.roll(MASK, 2, 1)}
    positions = np.array([[0, 0, 0, 1, 2, 3, 4]] * 2, np.int32)
    documents = shifted["padding_mask"] * np.array([0, 0, 1, 1, 1, 1, 1], np.int32)
    told = outputs(model, **shifted, positions=positions, documents=documents)
    np.testing.assert_allclose(told[1, 2:], outputs(model)[1, :5], atol=2e-5)


def test_mask_of_documents_is_computed_once_in_a_trace(model_of):
    forward = model_of("llama").forward()
    inputs = {**GRAPH, "documents": MASK, "positions": np.zeros_like(MASK)}
    program = jax.make_jaxpr(lambda x: forward(forward.values(), x, training=False)[0])(inputs)
    square = [e for e in program.eqns if e.primitive.name == "eq" and e.outvars[0].aval.ndim == 3]
    assert len(square) == 1


def test_targets_without_a_language_head_are_an_error(model_of):
    weights = MASK.astype(np.float32)
    with pytest.raises(ModelError, match=r"no language head .* language modelling"):
        outputs(model_of("bert"), targets=IDS, loss_weights=weights)


def test_targets_without_weights_are_an_error(model_of):
    with pytest.raises(ModelError, match=r"targets .* loss_weights"):
        outputs(model_of("llama"), targets=IDS)


def test_layers_are_as_before_when_a_pass_is_over(model_of):
    model = model_of("llama")
    before = outputs(model)
    outputs(model, documents=MASK, targets=IDS, loss_weights=MASK.astype(np.float32))
    np.testing.assert_array_equal(outputs(model), before)
    assert all("call" not in vars(layer) for layer in model.forward().layers.values())


def test_attention_stays_that_of_the_cpu(model_of):
    """Its scores are computed anew for the backward pass, not kept: a rule of its own."""
    forward = model_of("mistral").forward()
    told = {**GRAPH, "documents": MASK, "positions": np.zeros_like(MASK)}

    def rules(inputs):
        program = jax.make_jaxpr(lambda x: forward(forward.values(), x, training=False)[0])(inputs)
        return sum("custom_vjp" in equation.primitive.name for equation in program.eqns)

    assert rules(told) == rules(GRAPH) == 2
