"""Visual prompts: learned tokens stand among a transformer's own, and leave before its output."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import keras
import numpy as np
import pytest

from tests.unit.methods import small, texts
from tunekit.errors import ModelError
from tunekit.methods.part import Placed, Places
from tunekit.methods.spec import VisualPrompt
from tunekit.methods.visual_prompt import place
from tunekit.models.backbone import Backbone
from tunekit.models.hub import keras_hub
from tunekit.models.initialisation import without_values
from tunekit.models.model import Model
from tunekit.models.preprocessing import ImagePreprocessing
from tunekit.models.targets import places_of

P = 3
_PATCHES = {"image_shape": (32, 32, 3), "patch_size": 16, "num_layers": 2, "num_heads": 2}
_DINO = {"intermediate_dim": 12, "num_register_tokens": 2, "position_embedding_shape": (32, 32, 3)}

# Family: its options, the tokens before the patches, and where embedding, blocks and norm are.
FAMILIES: dict[str, tuple[dict[str, Any], int, Callable[[Any], Any]]] = {
    "ViT": (
        {"mlp_dim": 12},
        1,
        lambda m: (
            m.get_layer("vit_patching_and_embedding"),
            m.get_layer("vit_encoder").encoder_layers,
            m.get_layer("vit_encoder").layer_norm,
        ),
    ),
    "DeiT": (
        {"intermediate_dim": 12},
        2,
        lambda m: (
            m.get_layer("deit_patching_and_embedding"),
            m.get_layer("deit_encoder").encoder_layers,
            m.get_layer("deit_encoder").layer_norm,
        ),
    ),
    "DINOV2": (
        _DINO,
        3,
        lambda m: (m.get_layer("embeddings"), m.get_layer("encoder").layers, m.layers[-1]),
    ),
}


def model_of(body: keras.Model, prefix_tokens: int, features: Any = "tokens") -> Model:
    size = body.input_shape[1:3]
    preprocessing = ImagePreprocessing(size)
    return Model(Backbone(body, preprocessing, features, "any", "tiny", prefix_tokens))


def built(family: str) -> tuple[keras.Model, Model]:
    options, prefix_tokens, _ = FAMILIES[family]
    with without_values():
        body = getattr(keras_hub().models, f"{family}Backbone")(**_PATCHES, hidden_dim=8, **options)
    # As it is loaded: DINOv2 names its one input.
    body = keras.Model(small.filled(body).inputs[0], body.outputs[0])
    return body, model_of(body, prefix_tokens)


def placed_on(model: Model, *, deep: bool = True, length: int = P) -> list[Placed]:
    spec = VisualPrompt(length=length, deep=deep)
    return place(spec, places_of(model, ()), np.random.default_rng(0))


def by_hand(family: str, body: keras.Model, images: Any, prompts: list[np.ndarray]) -> Any:
    """Jia et al. 2022, eq. 4 and 5: block by block; `prompts` of one block are its successors'."""
    _, prefix, parts = FAMILIES[family]
    embedding, blocks, norm = parts(body)
    x = embedding(images)
    kept: Any = None
    for index, block in enumerate(blocks):
        if index < len(prompts):
            kept = jnp.broadcast_to(prompts[index], (len(x), P, 8))
        x = jnp.concatenate([x[:, :prefix], kept, x[:, prefix:]], axis=1)
        x = block(x)
        x = x[0] if isinstance(x, tuple) else x
        kept = x[:, prefix : prefix + P]
        x = jnp.concatenate([x[:, :prefix], x[:, prefix + P :]], axis=1)
    return norm(x)


@pytest.mark.parametrize("deep", [True, False])
@pytest.mark.parametrize("family", FAMILIES)
def test_prompted_blocks_equal_the_papers_equations(family, deep):
    body, model = built(family)
    placed = placed_on(model, deep=deep)
    values = small.drawn(placed)
    images = small.normal(2, 32, 32, 3)
    prompts = [leaf for leaves in values.values() for leaf in leaves.values()]
    assert len(prompts) == (2 if deep else 1)
    given = small.outputs(model.keras, images, small.parts_of(placed), values)
    scaled = model.keras.get_layer("preprocess")(images)
    np.testing.assert_allclose(given, by_hand(family, body, scaled, prompts), rtol=1e-5, atol=1e-5)
    plain = small.outputs(model.keras, images)
    assert given.shape == plain.shape
    assert np.abs(given - plain).max() > 1e-3


def test_each_image_can_have_a_prompt_of_its_own():
    _, model = built("ViT")
    placed = placed_on(model)
    images = small.normal(2, 32, 32, 3)
    both = [small.drawn(placed, seed) for seed in (1, 2)]
    parts = small.parts_of(placed)
    given = small.outputs(model.keras, images, parts, small.rows(both), per_example=True)
    for row, values in enumerate(both):
        alone = small.outputs(model.keras, images, parts, values)[row]
        np.testing.assert_allclose(given[row], alone, rtol=1e-5, atol=1e-6)


def test_rotary_positions_of_patches_are_not_turned_for_the_prompt():
    with without_values():
        body = keras_hub().models.DINOV3Backbone(**_PATCHES, hidden_dim=8, intermediate_dim=12)
    small.filled(body)
    model = model_of(keras.Model(body.inputs[0], body.outputs[0]), 5)
    images = small.normal(2, 32, 32, 3)
    placed = placed_on(model)
    values = small.drawn(placed)
    rotary, counts = body.get_layer("encoder").layers[0].attention._apply_rotary, []

    def noted(q: Any, k: Any, cos: Any, sin: Any, count: int) -> Any:
        counts.append((q.shape[1], count))
        return rotary(q, k, cos, sin, count)

    body.get_layer("encoder").layers[0].attention._apply_rotary = noted
    given = small.outputs(model.keras, images, small.parts_of(placed), values)
    assert counts == [(9 + P, 5 + P)]
    assert given.shape == small.outputs(model.keras, images).shape


def test_every_block_of_a_deep_prompt_gets_a_gradient():
    _, model = built("ViT")
    placed = placed_on(model)
    images = small.normal(2, 32, 32, 3)

    @jax.jit
    @jax.grad
    def gradient(values: Any) -> Any:
        outputs = small.outputs(model.keras, images, small.parts_of(placed), values)
        return (outputs[:, 0] * small.normal(2, 8)).sum()

    for leaves in gradient(small.drawn(placed)).values():
        assert np.abs(leaves["prompt"]).max() > 1e-5


def test_fresh_tokens_are_within_the_bound_of_the_paper():
    _, model = built("ViT")
    bound = np.sqrt(6 / (3 * 16 * 16 + 8))
    for placed in placed_on(model, length=500):
        assert np.abs(placed.values["prompt"]).max() == pytest.approx(bound, rel=0.02)


def test_a_network_of_one_block_opens_and_closes_in_it():
    with without_values():
        body = keras_hub().models.ViTBackbone(
            **{**_PATCHES, "num_layers": 1}, hidden_dim=8, mlp_dim=12
        )
    (placed,) = placed_on(model_of(small.filled(body), 1))
    assert placed.part.opens and placed.part.closes and placed.part.learned


def _swin() -> keras.Model:
    return keras_hub().models.SwinTransformerBackbone(
        image_shape=(32, 32, 3),
        patch_size=2,
        embed_dim=8,
        depths=(2, 2),
        num_heads=(1, 1),
        window_size=2,
    )


@pytest.mark.filterwarnings("ignore:.*Layer 'attn':UserWarning")
@pytest.mark.parametrize(
    ("build", "message"),
    [
        (small.resnet, "it has no attention, so more tokens would have nobody to see them"),
        (_swin, "its blocks are several layers each"),
    ],
)
def test_networks_without_one_row_of_tokens_say_why_not(build, message):
    with without_values():
        model = model_of(build(), 0, "map")
    with pytest.raises(ModelError, match=f"visual prompts are impossible .*{message}"):
        placed_on(model)


def test_text_is_pointed_to_prompt_tuning():
    places: Places = texts.places_in(texts.NETWORKS["llama"]())
    with pytest.raises(ModelError, match="it takes text, for which PromptTuning is"):
        place(VisualPrompt(), places, np.random.default_rng())


def test_a_visual_prompt_cannot_be_merged():
    _, model = built("ViT")
    placed = placed_on(model)
    with pytest.raises(ModelError, match="transformer_block_1' cannot be merged: it is 3 more"):
        small.merged(model.keras, placed, small.begun(placed))
