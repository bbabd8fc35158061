"""Any functional model as a backbone, and the caller's model left alone."""

import keras
import numpy as np
import pytest
from keras import layers

from tunekit.errors import ModelError
from tunekit.models import hub
from tunekit.models.functional import find_cut
from tunekit.models.loading import load_backbone
from tunekit.models.spec import BackboneSpec

IMAGES = np.random.default_rng(0).uniform(0, 255, (2, 16, 16, 3)).astype(np.float32)


def classifier(*, activation: str | None = "softmax", pool: bool = True) -> keras.Model:
    images = keras.Input((16, 16, 3))
    x = layers.Rescaling(1 / 255)(images)
    x = layers.Conv2D(4, 3, strides=2, activation="relu")(x)
    x = layers.BatchNormalization()(x)
    x = layers.GlobalAveragePooling2D()(x) if pool else layers.Flatten()(x)
    x = layers.Dropout(0.1)(x)
    return keras.Model(images, layers.Dense(3, activation=activation)(x), name="mine")


def values(model: keras.Model) -> list[np.ndarray]:
    return [np.asarray(variable).copy() for variable in model.variables]


def test_features_end_before_pooling_and_the_dense_layer_is_the_classifier() -> None:
    model = classifier()
    backbone = load_backbone(model, BackboneSpec())
    head = backbone.pretrained_head
    assert head is not None and head.pooling == "avg" and head.labels == ("0", "1", "2")
    assert backbone.features == "map" and backbone.keras.output_shape == (None, 7, 7, 4)
    logits = np.asarray(backbone.keras(IMAGES)).mean((1, 2)) @ head.kernel + head.bias
    expected = np.asarray(model(IMAGES))
    got = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    np.testing.assert_allclose(got, expected, atol=1e-6)


def test_the_callers_model_shares_no_variable_and_keeps_its_values() -> None:
    model = classifier()
    before, answers = values(model), np.asarray(model(IMAGES))
    backbone = load_backbone(model, BackboneSpec())
    assert not {id(v) for v in model.variables} & {id(v) for v in backbone.keras.variables}
    for variable in backbone.keras.variables:
        variable.assign(np.zeros(variable.shape))
    assert all(np.array_equal(a, b) for a, b in zip(values(model), before, strict=True))
    assert np.array_equal(np.asarray(model(IMAGES)), answers)


def test_a_flattened_model_gives_vectors() -> None:
    backbone = load_backbone(classifier(pool=False), BackboneSpec())
    assert backbone.features == "vector" and backbone.dim == 7 * 7 * 4
    assert backbone.pretrained_head is not None and backbone.pretrained_head.pooling == "none"


def test_a_dense_layer_with_relu_is_no_classifier() -> None:
    model = classifier(activation="relu")
    cut = find_cut(model)
    assert cut.classifier is None and cut.features is model.outputs[0]


def test_a_body_that_ends_in_global_pooling_gives_its_map() -> None:
    images = keras.Input((16, 16, 3))
    map_ = layers.Conv2D(4, 3)(images)
    model = keras.Model(images, layers.GlobalMaxPooling2D()(map_))
    backbone = load_backbone(model, BackboneSpec())
    assert backbone.features == "map" and backbone.pretrained_head is None


def test_a_sequential_model_and_a_softmax_layer_are_cut_alike() -> None:
    model = keras.Sequential(
        [
            keras.Input((16, 16, 3)),
            layers.Conv2D(4, 3),
            layers.GlobalAveragePooling2D(),
            layers.Dense(3),
            layers.Softmax(),
        ]
    )
    backbone = load_backbone(model, BackboneSpec())
    assert backbone.keras.output_shape == (None, 14, 14, 4)


def test_another_image_size_keeps_the_weights_of_a_convolutional_model() -> None:
    model = classifier()
    backbone = load_backbone(model, BackboneSpec(image_size=(24, 32)))
    assert backbone.keras.output_shape == (None, 11, 15, 4)
    assert backbone.preprocessing.image_size_px == (24, 32)
    assert np.array_equal(backbone.keras.layers[2].kernel, model.layers[2].kernel)


def test_another_image_size_is_refused_where_the_weights_depend_on_it() -> None:
    with pytest.raises(ModelError, match=r"'mine' cannot be copied for images of \(32, 32\)"):
        load_backbone(classifier(pool=False), BackboneSpec(image_size=32))


def test_precision_applies_to_every_layer_of_the_copy() -> None:
    backbone = load_backbone(classifier(), BackboneSpec(dtype="mixed_bfloat16"))
    assert {layer.compute_dtype for layer in backbone.keras.layers[1:]} == {"bfloat16"}
    assert {v.dtype for v in backbone.keras.variables} == {"float32"}


def test_fresh_weights_depend_on_the_seed_alone() -> None:
    spec = BackboneSpec(pretrained=False)
    first, second, other = (load_backbone(classifier(), spec, seed=s) for s in (0, 0, 1))
    kernels = [np.asarray(b.keras.layers[2].kernel) for b in (first, second, other)]
    assert np.array_equal(kernels[0], kernels[1]) and not np.array_equal(kernels[0], kernels[2])
    assert first.pretrained_head is None


# Keras' own saving converts variables in the way that NumPy 2 deprecates.
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_a_keras_file_is_loaded(tmp_path) -> None:
    model = classifier()
    model.save(tmp_path / "mine.keras")
    backbone = load_backbone(tmp_path / "mine.keras", BackboneSpec())
    assert np.array_equal(backbone.keras.layers[2].kernel, model.layers[2].kernel)


class Subclassed(keras.Model):
    def call(self, inputs):
        return inputs


def test_a_subclassed_model_is_refused() -> None:
    with pytest.raises(ModelError, match=r"\(Subclassed\) is no functional model"):
        load_backbone(Subclassed(), BackboneSpec())


def test_two_inputs_are_refused() -> None:
    a, b = keras.Input((4, 4, 3)), keras.Input((4, 4, 3))
    with pytest.raises(ModelError, match="has 2 inputs and 1 outputs"):
        load_backbone(keras.Model([a, b], layers.Add()([a, b])), BackboneSpec())


def test_inputs_that_are_no_images_are_refused() -> None:
    flat = keras.Input((4,))
    with pytest.raises(ModelError, match=r"expected images \(None, H, W, 3\)"):
        load_backbone(keras.Model(flat, layers.Dense(2)(flat)), BackboneSpec())


def vit() -> keras.Model:
    return hub.keras_hub().models.ViTBackbone(
        image_shape=(16, 16, 3),
        patch_size=8,
        num_layers=1,
        num_heads=2,
        hidden_dim=8,
        mlp_dim=8,
    )


def test_a_keras_hub_backbone_is_copied_with_its_class_token_known() -> None:
    model = vit()
    backbone = load_backbone(model, BackboneSpec())
    assert (backbone.family, backbone.features, backbone.prefix_tokens) == ("vit", "tokens", 1)
    np.testing.assert_array_equal(backbone.keras(IMAGES), model(IMAGES))
    assert not {id(v) for v in model.variables} & {id(v) for v in backbone.keras.variables}


def test_a_keras_hub_backbone_takes_another_image_size_and_precision() -> None:
    spec = BackboneSpec(image_size=32, dtype="mixed_bfloat16")
    backbone = load_backbone(vit(), spec)
    assert backbone.keras.output_shape == (None, 17, 8)
    assert backbone.keras(np.zeros((1, 32, 32, 3))).dtype == "bfloat16"


def test_a_keras_hub_classifier_brings_its_head() -> None:
    model = hub.keras_hub().models.ViTImageClassifier(vit(), num_classes=3)
    backbone = load_backbone(model, BackboneSpec())
    head = backbone.pretrained_head
    assert head is not None and head.pooling == "token" and head.labels == ("0", "1", "2")
    logits = np.asarray(backbone.keras(IMAGES))[:, 0] @ head.kernel + head.bias
    np.testing.assert_allclose(logits, model(IMAGES), atol=1e-5)
