"""Features by depth against the network's own outputs, pooled by hand."""

from __future__ import annotations

import keras
import keras_hub
import numpy as np
import pytest

from tunekit.evaluation.depth_features import DepthFeatures
from tunekit.models.loading import load_model

SIDE_PX = 16


def pixels(count: int = 3) -> np.ndarray:
    shape = (count, SIDE_PX, SIDE_PX, 3)
    return np.random.default_rng(0).integers(0, 255, shape).astype(np.uint8)


def network(dtype: str = "float32") -> keras.Model:
    """A stem, two residual blocks with BatchNorm and dropout, an activation on top."""
    layers = keras.layers
    inputs = keras.Input((SIDE_PX, SIDE_PX, 3))
    x = layers.Conv2D(4, 3, strides=2, padding="same", name="conv", dtype=dtype)(inputs)
    for i in range(2):
        y = layers.Conv2D(4, 3, padding="same", name=f"block{i}_conv", dtype=dtype)(x)
        y = layers.BatchNormalization(name=f"block{i}_norm", dtype=dtype)(y)
        y = layers.Dropout(0.5, name=f"block{i}_drop", dtype=dtype)(y)
        x = layers.Add(name=f"block{i}_add", dtype=dtype)([x, y])
    return keras.Model(inputs, layers.BatchNormalization(name="norm", dtype=dtype)(x))


def read(model):
    features = DepthFeatures.of(model)
    return features(features.forward.values(), pixels())


def test_every_depth_gives_the_mean_of_what_it_hands_on():
    own = network()
    found = read(load_model(own))
    ends = {"stem": "conv", "blocks[0]": "block0_add", "blocks[1]": "block1_add", "top": "norm"}
    assert list(found) == list(ends)
    for depth, end in ends.items():
        until = keras.Model(own.input, own.get_layer(end).output)
        expected = np.asarray(until(pixels().astype("float32"), training=False)).mean(axis=(1, 2))
        np.testing.assert_allclose(found[depth], expected, rtol=1e-4, atol=1e-4)


def test_a_head_changes_no_depth_and_is_none():
    own = network()
    bare, headed = read(load_model(own)), read(load_model(own, labels=["a", "b"]))
    assert list(bare) == list(headed)
    assert all(np.array_equal(bare[depth], headed[depth]) for depth in bare)


def test_features_of_a_half_precision_network_are_pooled_in_single():
    found = read(load_model(network("bfloat16")))
    assert {str(features.dtype) for features in found.values()} == {"float32"}


@pytest.fixture(scope="module")
def vit():
    return load_model(
        keras_hub.models.ViTBackbone(
            image_shape=(SIDE_PX, SIDE_PX, 3),
            patch_size=4,
            num_layers=2,
            num_heads=2,
            hidden_dim=8,
            mlp_dim=16,
        )
    )


def test_tokens_give_the_class_token_and_the_mean_of_the_patches(vit):
    found = read(vit)
    assert list(found) == ["stem", "blocks[0]", "blocks[1]", "top"]
    assert {features.shape for features in found.values()} == {(3, 2 * 8)}
    body = vit.keras.get_layer("backbone")
    tokens = np.asarray(body(vit.keras.get_layer("preprocess")(pixels().astype("float32"))))
    expected = np.hstack([tokens[:, 0], tokens[:, 1:].mean(axis=1)])
    np.testing.assert_allclose(found["top"], expected, rtol=1e-4, atol=1e-5)


def test_a_pass_over_batches_drops_padding_and_keeps_the_order(vit):
    images = pixels()
    features = DepthFeatures.of(vit)
    batches = [
        {"image": images[:2], "label": np.array([0, 1]), "weight": np.ones(2)},
        {"image": images[[2, 0]], "label": np.array([2, 0]), "weight": np.array([1, 0])},
    ]
    found, labels = features.collect(features.forward.values(), batches)
    assert labels.tolist() == [0, 1, 2]
    whole = features(features.forward.values(), images)
    for depth, rows in found.items():
        np.testing.assert_allclose(rows, whole[depth], rtol=1e-4, atol=1e-5)
