"""Prefix tuning: learned keys and values are attended to as those of words before the text."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import keras
import numpy as np
import pytest

from tests.unit.methods import small, texts
from tunekit.errors import ModelError
from tunekit.methods.intercept import Call, intercept
from tunekit.methods.part import Placed
from tunekit.methods.prefix import place
from tunekit.methods.spec import PrefixTuning
from tunekit.models.hub import keras_hub
from tunekit.models.initialisation import without_values

P = 3


def placed_on(model: keras.Model, *blocks: str, length: int = P) -> list[Placed]:
    places = texts.places_in(model, "key", "value", blocks=blocks)
    return place(PrefixTuning(length=length), places, np.random.default_rng(0))


def keys_and_values(model: keras.Model, placed: list[Placed], inputs: Any) -> dict[str, dict]:
    """What the network's own key and value layers make of the first P words of the first text."""
    layers = texts.places_in(model).layers
    seen: dict[str, dict] = {p.part.name: {} for p in placed}

    def noting(name: str) -> Callable[[Call], Call]:
        def wrap(call: Call) -> Call:
            def noted(x: Any, **kwargs: Any) -> Any:
                del kwargs  # a training flag that no dense layer takes
                seen[name]["prefix"] = call(x)[0, :P]
                return call(x)

            return noted

        return wrap

    with intercept({layers[p.part.name]: noting(p.part.name) for p in placed if p.part.leaves}):
        model(inputs)
    return seen


def shared_beginning(model: keras.Model, padding: int = 0) -> dict[str, Any]:
    whole = texts.texts(model, P + 5, padding=padding)
    whole["token_ids"][1, :P] = whole["token_ids"][0, :P]
    return whole


@pytest.mark.parametrize("family", texts.CAUSAL)
def test_keys_and_values_of_words_are_attended_to_as_these_words(family):
    model = texts.NETWORKS[family]()
    placed = placed_on(model)
    whole = shared_beginning(model, padding=2)
    values = keys_and_values(model, placed, whole)
    expected = small.outputs(model, whole, (), {})[:, P:]
    given = small.outputs(model, texts.after(whole, P), small.parts_of(placed), values)
    np.testing.assert_allclose(given, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", texts.ENCODERS)
def test_an_encoder_attends_to_the_prefix_but_not_through_padding(family):
    model = texts.NETWORKS[family]()
    placed = placed_on(model)
    parts, values = small.parts_of(placed), small.drawn(placed)
    inputs = texts.texts(model, 5, padding=2)
    given = small.outputs(model, inputs, parts, values)
    assert np.abs(given - small.outputs(model, inputs, (), {})).max() > 1e-3
    inputs["token_ids"][1, 3:] = 1
    moved = small.outputs(model, inputs, parts, values)
    np.testing.assert_allclose(moved[1, :3], given[1, :3], atol=1e-6)


def test_blocks_without_a_prefix_do_not_see_its_positions():
    # In the first block nothing may change but the positions, which rotary embeddings are blind to.
    model = texts.NETWORKS["llama"]()
    placed = placed_on(model, "transformer_layer_1")
    first = model.get_layer("transformer_layer_0")
    inputs = texts.texts(model, 5, padding=2)
    seen: list[Any] = []

    def wrap(call: Call) -> Call:
        def noted(*args: Any, **kwargs: Any) -> Any:
            seen.append(call(*args, **kwargs))
            return seen[-1]

        return noted

    with intercept({first: wrap}):
        plain = small.outputs(model, inputs, (), {})
        given = small.outputs(model, inputs, small.parts_of(placed), small.drawn(placed))
    np.testing.assert_allclose(seen[1][:, P:], seen[0], rtol=1e-5, atol=1e-6)
    assert np.abs(given - plain).max() > 1e-3


def test_each_example_can_have_a_prefix_of_its_own():
    model = texts.NETWORKS["llama"]()
    placed = placed_on(model)
    inputs = texts.texts(model, 5)
    both = [small.drawn(placed, seed) for seed in (1, 2)]
    parts = small.parts_of(placed)
    given = small.outputs(model, inputs, parts, small.rows(both), per_example=True)
    for row, values in enumerate(both):
        alone = small.outputs(model, inputs, parts, values)[row]
        np.testing.assert_allclose(given[row], alone, rtol=1e-5, atol=1e-6)


def test_a_prefix_on_images_is_more_keys_and_values_than_queries():
    model = small.vit()
    places = small.places_in(model, "key", "value")
    placed = place(PrefixTuning(length=P), places, np.random.default_rng(0))
    values = small.drawn(placed)
    images = small.inputs_of(model)
    given = small.outputs(model, images, small.parts_of(placed), values)

    def longer(name: str) -> Callable[[Call], Call]:
        learned = np.repeat(values[name]["prefix"][None], small.BATCH, 0)
        return lambda call: lambda x, **_: np.concatenate([learned, np.asarray(call(x))], 1)

    with intercept({places.layers[p.part.name]: longer(p.part.name) for p in placed}):
        expected = model(images)
    np.testing.assert_allclose(given, expected, rtol=1e-5, atol=1e-6)
    assert np.abs(given - small.outputs(model, images, (), {})).max() > 1e-3


def test_fresh_vectors_are_small_and_drawn_by_the_seed():
    model = texts.NETWORKS["llama"]()
    first, again = (small.begun(placed_on(model, length=200)) for _ in range(2))
    for part, leaves in first.items():
        for leaf, value in leaves.items():
            assert value.shape == (200, 1, 4)
            assert value.std() == pytest.approx(0.02, rel=0.15)
            np.testing.assert_array_equal(value, again[part][leaf])


def test_a_network_without_attention_has_no_keys_to_learn():
    with pytest.raises(ModelError, match="prefix tuning is impossible .* has no attention"):
        place(PrefixTuning(), small.places_in(small.resnet()), np.random.default_rng())


def test_keys_that_are_turned_by_the_place_of_a_patch_cannot_have_a_prefix():
    options = {"num_layers": 1, "num_heads": 2, "hidden_dim": 8, "intermediate_dim": 12}
    with without_values():
        model = keras_hub().models.DINOV3Backbone(image_shape=(32, 32, 3), patch_size=16, **options)
    places = replace(texts.places_in(model, "key", "value"), takes="images")
    with pytest.raises(ModelError, match="DINOV3Attention turns every key by the place of its"):
        place(PrefixTuning(), places, np.random.default_rng())


def test_a_prefix_cannot_be_merged():
    model = texts.NETWORKS["llama"]()
    placed = placed_on(model)
    with pytest.raises(ModelError, match="self_attention/key' cannot be merged: it is 3 more"):
        small.merged(model, placed, small.begun(placed))
