"""keras.applications: names, preprocessing modes, and the flip to RGB inside the weights."""

import keras
import numpy as np
import pytest
from keras import layers

from tunekit.errors import ModelError
from tunekit.models.applications import preprocessing, take_rgb
from tunekit.models.loading import load_backbone
from tunekit.models.spec import BackboneSpec

PIXELS = np.random.default_rng(0).integers(0, 256, (1, 8, 8, 3)).astype(np.float32)


@pytest.mark.parametrize("mode", ["torch", "tf"])
def test_normalisation_equals_keras_own(mode: str) -> None:
    expected = keras.applications.imagenet_utils.preprocess_input(PIXELS.copy(), mode=mode)
    got = preprocessing(mode, (8, 8)).normalise(PIXELS)
    np.testing.assert_allclose(got, expected, atol=1e-5)


def test_rgb_through_the_reordered_convolution_equals_bgr_through_the_original() -> None:
    images = keras.Input((8, 8, 3))
    model = keras.Model(images, layers.Conv2D(2, 3)(layers.ZeroPadding2D(1)(images)))
    bgr = keras.applications.imagenet_utils.preprocess_input(PIXELS.copy(), mode="caffe")
    expected = np.asarray(model(bgr))
    take_rgb(model)
    got = np.asarray(model(preprocessing("caffe", (8, 8)).normalise(PIXELS)))
    np.testing.assert_allclose(got, expected, atol=1e-4)


def test_an_architecture_loads_without_weights_at_another_size() -> None:
    spec = BackboneSpec(image_size=64, pretrained=False)
    backbone = load_backbone("keras.applications:MobileNetV2", spec)
    assert backbone.keras.output_shape == (None, 2, 2, 1280)
    assert backbone.preprocessing.offset == (-1.0, -1.0, -1.0)
    assert backbone.family == "mobilenetv2" and backbone.pretrained_head is None


def test_a_wrong_name_gives_the_near_ones() -> None:
    with pytest.raises(ModelError, match="no 'Resnet50'. Did you mean 'ResNet50'"):
        load_backbone("keras.applications:Resnet50", BackboneSpec())


def test_weights_that_cannot_be_fetched_say_where_they_come_from(monkeypatch, tmp_path) -> None:
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    # A proxy that refuses: the test needs no network and never reaches one.
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    monkeypatch.delenv("no_proxy", raising=False)
    with pytest.raises(ModelError, match="keras.applications:MobileNetV2 cannot be fetched"):
        load_backbone("keras.applications:MobileNetV2", BackboneSpec())
