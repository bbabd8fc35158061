"""Prompt tuning: learned embeddings are read as the embeddings of words before the text."""

from __future__ import annotations

import jax
import keras
import numpy as np
import pytest

from tests.unit.methods import small, texts
from tunekit.errors import ModelError
from tunekit.methods.part import Placed
from tunekit.methods.prompt import place
from tunekit.methods.spec import PromptTuning
from tunekit.models.backbone import Backbone
from tunekit.models.model import Model
from tunekit.models.token_graph import language_head

P = 3


def placed_on(model: keras.Model, init: str = "random", length: int = P) -> list[Placed]:
    spec = PromptTuning(length=length, init=init)
    return place(spec, texts.places_in(model, "embedding"), np.random.default_rng(0))


def prompt_of(model: keras.Model, placed: list[Placed], ids: np.ndarray) -> dict:
    """Values with the network's own embeddings of these tokens as the prompt."""
    (part,) = small.parts_of(placed)
    table = np.asarray(small.weights_of(model)[f"{part.name}/embeddings"])
    return {part.name: {"prompt": table[ids]}}


@pytest.mark.parametrize("family", texts.NETWORKS)
def test_a_prompt_of_words_embeddings_is_read_as_these_words(family):
    model = texts.NETWORKS[family]()
    placed = placed_on(model)
    whole = texts.texts(model, P + 5, padding=2)
    whole["token_ids"][1] = [*whole["token_ids"][0, :P], *whole["token_ids"][1, P:]]
    expected = small.outputs(model, whole, (), {})[:, P:]
    values = prompt_of(model, placed, whole["token_ids"][0, :P])
    given = small.outputs(model, texts.after(whole, P), small.parts_of(placed), values)
    np.testing.assert_allclose(given, expected, rtol=1e-5, atol=1e-5)


def test_outputs_are_of_the_texts_own_positions_and_change():
    model = texts.NETWORKS["llama"]()
    placed = placed_on(model)
    inputs = texts.texts(model, 5)
    plain = small.outputs(model, inputs, (), {})
    given = small.outputs(model, inputs, small.parts_of(placed), small.begun(placed))
    assert given.shape == plain.shape
    assert np.abs(given - plain).max() > 1e-3


def test_a_vocabulary_prompt_begins_with_rows_of_the_table_none_twice():
    model = texts.NETWORKS["llama"]()
    (placed,) = placed_on(model, "vocabulary", length=10)
    table = np.asarray(small.weights_of(model)[f"{placed.part.name}/embeddings"])
    rows = [int(np.flatnonzero((table == row).all(1))[0]) for row in placed.values["prompt"]]
    assert len(set(rows)) == 10


def test_a_prompt_longer_than_the_vocabulary_repeats_words():
    model = texts.NETWORKS["llama"]()
    (placed,) = placed_on(model, "vocabulary", length=texts.VOCABULARY + 1)
    assert placed.values["prompt"].shape == (texts.VOCABULARY + 1, 8)


def test_a_random_prompt_is_as_spread_as_the_table():
    model = texts.NETWORKS["llama"]()
    (placed,) = placed_on(model, length=500)
    table = np.asarray(small.weights_of(model)[f"{placed.part.name}/embeddings"])
    assert placed.values["prompt"].std() == pytest.approx(table.std(), rel=0.1)


def test_each_example_can_have_a_prompt_of_its_own():
    model = texts.NETWORKS["llama"]()
    placed = placed_on(model)
    inputs = texts.texts(model, 5)
    both = [small.drawn(placed, seed) for seed in (1, 2)]
    parts = small.parts_of(placed)
    given = small.outputs(model, inputs, parts, small.rows(both), per_example=True)
    for row, values in enumerate(both):
        alone = small.outputs(model, inputs, parts, values)[row]
        np.testing.assert_allclose(given[row], alone, rtol=1e-5, atol=1e-6)


def test_two_prompts_both_stand_before_the_text():
    model = texts.NETWORKS["llama"]()
    first, second = placed_on(model, length=1), placed_on(model, length=2)
    whole = texts.texts(model, 6)
    whole["token_ids"][1, :3] = whole["token_ids"][0, :3]
    words = whole["token_ids"][0]
    name = first[0].part.name
    # The one put on last stands first.
    values = [prompt_of(model, first, words[2:3]), prompt_of(model, second, words[:2])]
    expected = small.outputs(model, whole, (), {})[:, 3:]
    given = texts.nested(model, texts.after(whole, 3), [first[0].part, second[0].part], values)
    assert name == second[0].part.name
    np.testing.assert_allclose(given, expected, rtol=1e-5, atol=1e-5)


def test_the_gradient_of_the_prompt_is_that_of_finite_differences():
    model = texts.NETWORKS["bert"]()
    placed = placed_on(model)
    (part,) = small.parts_of(placed)
    inputs = texts.texts(model, 4)
    start = small.drawn(placed)[part.name]["prompt"]

    @jax.jit
    def loss(prompt: jax.Array) -> jax.Array:
        outputs = small.outputs(model, inputs, [part], {part.name: {"prompt": prompt}})
        return (outputs * small.normal(*outputs.shape)).sum()

    direction = small.normal(*start.shape, seed=5)
    slope = float((jax.jit(jax.grad(loss))(start) * direction).sum())
    step = 1e-2
    ends = [float(loss(start + sign * step * direction)) for sign in (1, -1)]
    assert slope == pytest.approx((ends[0] - ends[1]) / (2 * step), rel=2e-2)
    assert abs(slope) > 1e-3


def test_a_prompt_beyond_the_positions_of_the_network_is_an_error():
    model = texts.NETWORKS["gpt2"]()
    placed = placed_on(model, length=9)
    parts, values = small.parts_of(placed), small.begun(placed)

    def shape(length: int) -> tuple[int, ...]:
        inputs = texts.texts(model, length)
        return jax.eval_shape(lambda: small.outputs(model, inputs, parts, values)).shape

    assert shape(3) == (2, 3, 8)
    message = "4 tokens and 9 learned positions are 13, and the network has positions for 12"
    with pytest.raises(ModelError, match=message):
        shape(4)


def test_a_network_of_images_has_no_embedding_to_put_a_prompt_before():
    with pytest.raises(ModelError, match="prompt tuning is impossible .* takes no tokens"):
        place(PromptTuning(), small.places_in(small.resnet()), np.random.default_rng())


def test_a_prompt_cannot_be_merged():
    model = texts.NETWORKS["llama"]()
    placed = placed_on(model)
    with pytest.raises(ModelError, match="'token_embedding' cannot be merged: it is 3 more pos"):
        small.merged(model, placed, small.begun(placed))


def test_heads_of_a_model_see_the_texts_own_positions_alone():
    body = texts.NETWORKS["llama"]()
    head = language_head(body, tied=True)
    backbone = Backbone(body, None, "tokens", "llama", "tiny", takes="tokens", language_head=head)
    model = Model(backbone).add_adapter("asked", PromptTuning(length=P))
    inputs = texts.texts(model.keras, 5)
    hidden = small.outputs(
        model.keras.get_layer("backbone"),
        inputs,
        small.parts_of(placed_on(body)),
        {"token_embedding": _prompt(model)},
    )
    expected = body.get_layer("token_embedding")(hidden, reverse=True)
    np.testing.assert_allclose(model.apply(inputs), expected, rtol=1e-5, atol=1e-5)


def _prompt(model: Model) -> dict[str, np.ndarray]:
    (variable,) = model.adapters["asked"].adapter.variables.values()
    return {"prompt": np.asarray(variable.value)}
