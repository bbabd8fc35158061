"""The model on a tiny backbone: names, logits, and heads that are replaced whole or not at all."""

import jax
import keras
import numpy as np
import pytest
from PIL import Image

from tunekit.errors import DataError, ModelError
from tunekit.models.backbone import Backbone, PretrainedHead
from tunekit.models.loading import load_model, with_own_head
from tunekit.models.model import Model
from tunekit.models.preprocessing import ImagePreprocessing
from tunekit.models.spec import HeadSpec

_SIZE = 8
_RNG = np.random.default_rng(0)
_IMAGES = [_RNG.integers(0, 256, size, "uint8") for size in [(9, 12, 3), (8, 8, 3), (20, 8, 3)]]


def _backbone(own: PretrainedHead | None = None, dtype: str = "float32") -> Backbone:
    keras.utils.set_random_seed(0)
    inputs = keras.Input((_SIZE, _SIZE, 3))
    x = keras.layers.Conv2D(4, 3, strides=2, name="stem_conv", dtype=dtype)(inputs)
    y = keras.layers.Conv2D(4, 1, name="branch", dtype=dtype)(x)
    y = keras.layers.BatchNormalization(name="bn", dtype=dtype)(y)
    body = keras.Model(inputs, keras.layers.Add(name="add", dtype=dtype)([x, y]), name="body")
    preprocessing = ImagePreprocessing(
        (_SIZE, _SIZE), scale=(0.01, 0.02, 0.03), offset=(-1.0, 0.0, 1.0)
    )
    return Backbone(body, preprocessing, "map", "plain", "tiny", pretrained_head=own)


def _value(model: Model, name: str) -> np.ndarray:
    return np.asarray(model.variables()[name].value)


def test_variables_are_named_by_their_place():
    model = Model(_backbone(), ["cat", "dog"])
    assert list(model.variables()) == [
        "backbone/stem_conv/kernel",
        "backbone/stem_conv/bias",
        "backbone/branch/kernel",
        "backbone/branch/bias",
        "backbone/bn/gamma",
        "backbone/bn/beta",
        "backbone/bn/moving_mean",
        "backbone/bn/moving_variance",
        "heads/label/logits/kernel",
        "heads/label/logits/bias",
    ]
    statistics = {"backbone/bn/moving_mean", "backbone/bn/moving_variance"}
    assert set(model.weight_names()) == model.variables().keys() - statistics


def test_the_groups_end_with_the_head():
    groups = Model(_backbone(), ["cat", "dog"]).groups()
    assert [(group.name, group.kind) for group in groups] == [
        ("stem", "stem"),
        ("blocks[0]", "block"),
        ("heads/label", "head"),
    ]


def test_logits_are_head_of_backbone_of_normalised_pixels():
    model = Model(_backbone(), ["cat", "dog"])
    pixels = np.stack([model.preprocessing.to_pixels(image) for image in _IMAGES])
    features = np.asarray(model.backbone.keras(model.preprocessing.normalise(pixels)))
    kernel = _value(model, "heads/label/logits/kernel")
    expected = features.mean((1, 2)) @ kernel + _value(model, "heads/label/logits/bias")
    np.testing.assert_allclose(model.logits(_IMAGES), expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(
        np.asarray(model.keras(pixels.astype("float32"))), expected, rtol=1e-4, atol=1e-5
    )


def test_logits_do_not_depend_on_how_images_come(tmp_path):
    model = Model(_backbone(), ["cat", "dog"])
    paths = [tmp_path / f"{i}.png" for i in range(3)]
    for path, image in zip(paths, _IMAGES, strict=True):
        Image.fromarray(image).save(path)
    from_arrays = model.logits(_IMAGES)
    assert from_arrays.dtype == np.float32
    np.testing.assert_array_equal(model.logits([str(path) for path in paths]), from_arrays)
    np.testing.assert_array_equal(
        model.logits([Image.fromarray(image) for image in _IMAGES]), from_arrays
    )
    np.testing.assert_allclose(model.logits(paths[0]), from_arrays[:1], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(model.logits(_IMAGES[0]), from_arrays[:1], rtol=1e-5, atol=1e-6)
    same_size = np.stack([_IMAGES[1]] * 2)
    assert model.logits(same_size).shape == (2, 2)


def test_the_last_batch_is_padded_and_its_padding_is_not_returned():
    model = Model(_backbone(), ["cat", "dog"])
    whole = model.logits(_IMAGES * 2, batch_size=8)
    parts = model.logits(_IMAGES * 2, batch_size=4)
    assert whole.shape == (6, 2)
    np.testing.assert_allclose(parts, whole, rtol=1e-5, atol=1e-6)
    assert model._inference.compiled() == 2
    model.logits(_IMAGES, batch_size=4)
    assert model._inference.compiled() == 2


def test_no_images_give_no_logits():
    assert Model(_backbone(), ["cat", "dog"]).logits([]).shape == (0, 2)


def test_logits_follow_the_variables():
    model = Model(_backbone(), ["cat", "dog"])
    before = model.logits(_IMAGES)
    model.variables()["heads/label/logits/bias"].assign([1.0, -1.0])
    np.testing.assert_allclose(model.logits(_IMAGES), before + [1, -1], rtol=1e-5, atol=1e-5)


def test_an_unreadable_image_is_named(tmp_path):
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"nothing")
    with pytest.raises(DataError, match="broken.png"):
        Model(_backbone(), ["cat"]).logits([broken])


def test_a_model_without_labels_gives_features_and_no_logits():
    model = Model(_backbone())
    assert (model.labels, model.keras.output_shape) == ((), (None, 3, 3, 4))
    with pytest.raises(ModelError, match="'tiny' has no head yet.*replace_head"):
        model.logits(_IMAGES)
    assert model.replace_head(["cat", "dog"]).logits(_IMAGES).shape == (3, 2)


def test_the_backbone_given_keeps_its_name_and_its_variables():
    backbone = _backbone()
    model = Model(backbone, ["cat"])
    assert backbone.keras.name == "body"
    assert model.variables()["backbone/bn/gamma"] is backbone.keras.get_layer("bn").gamma


@pytest.mark.parametrize("dtype", ["bfloat16", "mixed_bfloat16"])
def test_logits_of_a_half_precision_backbone_are_float32(dtype):
    model = Model(_backbone(dtype=dtype), ["cat", "dog"])
    assert keras.backend.standardize_dtype(model.keras.outputs[0].dtype) == "float32"
    assert model.variables()["heads/label/logits/kernel"].dtype == "float32"
    exact = Model(_backbone(), ["cat", "dog"])
    for name, variable in exact.variables().items():
        variable.assign(model.variables()[name].value.astype("float32"))
    full = exact.logits(_IMAGES)
    np.testing.assert_allclose(model.logits(_IMAGES), full, atol=0.05)


@pytest.mark.parametrize("kind", ["linear", "cosine", "mlp"])
def test_labels_known_to_both_heads_keep_their_logits(kind):
    head = HeadSpec(kind="mlp", hidden=(6,)) if kind == "mlp" else kind
    model = Model(_backbone(), ["cat", "dog", "cow"], head)
    model.variables()["heads/label/logits/kernel"].assign(_RNG.normal(size=_shape(model)))
    if kind != "cosine":
        model.variables()["heads/label/logits/bias"].assign([1.0, 2.0, 3.0])
    before = model.logits(_IMAGES)
    fresh = Model(_backbone(), ["cow", "hen", "cat"], head, seed=5).logits(_IMAGES)
    after = model.replace_head(["cow", "hen", "cat"], seed=5).logits(_IMAGES)
    np.testing.assert_allclose(after[:, [0, 2]], before[:, [2, 0]], rtol=1e-5, atol=1e-5)
    if kind == "linear":
        np.testing.assert_allclose(after[:, 1], fresh[:, 1], rtol=1e-5, atol=1e-5)


def _shape(model: Model) -> tuple[int, ...]:
    return model.variables()["heads/label/logits/kernel"].shape


def test_keep_false_starts_every_label_afresh():
    model = Model(_backbone(), ["cat", "dog"], seed=1)
    model.replace_head(["cat", "dog"], keep=False, seed=2)
    expected = _value(Model(_backbone(), ["cat", "dog"], seed=2), "heads/label/logits/kernel")
    np.testing.assert_array_equal(_value(model, "heads/label/logits/kernel"), expected)


@pytest.mark.parametrize(
    "head", ["cosine", HeadSpec(pooling="gem"), HeadSpec(kind="mlp", hidden=(3,))]
)
def test_nothing_is_kept_between_heads_that_differ_below_the_logits(head):
    model = Model(_backbone(), ["cat", "dog"]).replace_head(["cat", "dog"], head, seed=3)
    expected = _value(Model(_backbone(), ["cat", "dog"], head, seed=3), "heads/label/logits/kernel")
    np.testing.assert_array_equal(_value(model, "heads/label/logits/kernel"), expected)


@pytest.mark.parametrize("head", [HeadSpec(bias=False), HeadSpec(dropout=0.5)])
def test_another_bias_or_dropout_does_not_hinder_keeping_the_kernel(head):
    model = Model(_backbone(), ["cat", "dog"])
    before = _value(model, "heads/label/logits/kernel")
    model.replace_head(["dog"], head, seed=4)
    np.testing.assert_array_equal(_value(model, "heads/label/logits/kernel"), before[:, 1:])


@pytest.mark.parametrize(
    ("labels", "head", "message"),
    [
        (["cat", "cat"], None, "the label 'cat' is given twice"),
        ([], None, "at least one label, got none"),
        ("cat", None, r"got the string 'cat'; use \['cat'\]"),
        ([1, 2], None, "labels are strings, got 1"),
        (["cat"], "liner", "'liner' is no kind of head .* Did you mean 'linear'"),
        (["cat"], HeadSpec(pooling="token"), "needs a class token"),
        (["cat"], HeadSpec(hidden=(8,)), "only an 'mlp' head has hidden layers"),
    ],
)
def test_after_an_error_the_old_head_stays(labels, head, message):
    model = Model(_backbone(), ["cat", "dog"])
    graph, before = model.keras, model.logits(_IMAGES)
    with pytest.raises(ModelError, match=message):
        model.replace_head(labels, head, multi_label=True)
    assert model.keras is graph
    assert (model.labels, model.head_spec, model.multi_label) == (
        ("cat", "dog"),
        HeadSpec(),
        False,
    )
    np.testing.assert_array_equal(model.logits(_IMAGES), before)


def test_replacing_a_head_leaves_the_backbone_alone():
    model = Model(_backbone(), ["cat", "dog"])
    before = {name: value for name, value in model.variables().items() if "backbone" in name}
    model.replace_head(["hen"])
    assert all(model.variables()[name] is variable for name, variable in before.items())


def test_the_classifier_that_came_with_the_weights_is_attached():
    kernel, bias = _RNG.normal(size=(4, 3)).astype("float32"), np.arange(3, dtype="float32")
    backbone = _backbone()
    model = with_own_head(backbone, PretrainedHead(("crane", "dog", "crane"), "max", kernel, bias))
    assert model.labels == ("crane (0)", "dog", "crane (2)")
    pixels = np.stack([model.preprocessing.to_pixels(image) for image in _IMAGES])
    features = np.asarray(backbone.keras(model.preprocessing.normalise(pixels)))
    expected = features.max((1, 2)) @ kernel + bias
    np.testing.assert_allclose(model.logits(_IMAGES), expected, rtol=1e-4, atol=1e-4)


def _classifier() -> keras.Model:
    body = _backbone().keras
    x = keras.layers.GlobalAveragePooling2D()(body.output)
    return keras.Model(body.inputs[0], keras.layers.Dense(3, activation="softmax")(x))


def test_a_keras_classifier_gives_the_logits_it_had():
    classifier = _classifier()
    model = load_model(classifier)
    pixels = np.stack([model.preprocessing.to_pixels(image) for image in _IMAGES])
    probabilities = np.asarray(classifier(pixels.astype("float32")))
    logits = model.logits(_IMAGES)
    assert logits.shape == (3, len(model.labels))
    np.testing.assert_allclose(jax.nn.softmax(logits), probabilities, rtol=1e-4, atol=1e-6)


def test_labels_or_a_head_ask_for_another_classifier():
    classifier = _classifier()
    assert load_model(classifier, labels=["hen", "dog"]).labels == ("hen", "dog")
    headless = load_model(classifier, head="cosine")
    assert (headless.labels, headless.head_spec.kind) == ((), "cosine")


def test_without_a_classifier_and_without_labels_there_is_no_head():
    assert load_model(_backbone().keras).labels == ()


def test_the_bundled_model_loads_with_its_labels_and_tells_its_depth():
    model = load_model("efficientnet_lite0", image_size=32)
    assert len(set(model.labels)) == 1000
    lines = str(model.layers(trains=set(model.groups()[-1].weights))).splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[2].startswith("├─ stem")
    assert lines[3].startswith("├─ blocks[0]  block1a  stage 1")
    assert lines[-1].startswith("└─ heads/label") and lines[-1].endswith("yes")
    rows = model.layers().rows
    assert sum(row.share for row in rows) == pytest.approx(1)
    weights = model.keras.trainable_variables
    assert sum(row.parameters for row in rows) == sum(np.prod(v.shape) for v in weights)
