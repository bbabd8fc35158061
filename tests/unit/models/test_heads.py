"""Heads against closed forms: pooling, cosine logits, seeds, precision."""

import keras
import numpy as np
import pytest

from tunekit.errors import ModelError
from tunekit.models.heads import CosineLogits, Pooling, build_head
from tunekit.models.spec import HeadSpec
from tunekit.names import structural_names

_RNG = np.random.default_rng(0)
_MAP = _RNG.uniform(0.5, 2, (2, 3, 4, 5)).astype("float32")
_TOKENS = _RNG.normal(size=(2, 6, 5)).astype("float32")


def _head(spec: HeadSpec, **changes) -> keras.Model:
    shape = {"features": "map", "dim": 5, "labels": ("a", "b"), "name": "label", "seed": 0}
    return build_head(spec, **{**shape, **changes})


def _values(head: keras.Model) -> list[np.ndarray]:
    return [np.asarray(variable.value) for variable in head.weights]


def _pool(kind: str, x: np.ndarray, prefix_tokens: int = 0) -> np.ndarray:
    return np.asarray(Pooling(kind, prefix_tokens, dtype="float32")(x))


@pytest.mark.parametrize(("kind", "reduce"), [("avg", np.mean), ("max", np.max)])
def test_pooling_a_map_reduces_over_its_positions(kind, reduce):
    np.testing.assert_allclose(_pool(kind, _MAP), reduce(_MAP, axis=(1, 2)), rtol=1e-6)


@pytest.mark.parametrize(("kind", "reduce"), [("avg", np.mean), ("max", np.max)])
def test_pooling_tokens_leaves_the_prefix_tokens_out(kind, reduce):
    np.testing.assert_allclose(
        _pool(kind, _TOKENS, 2), reduce(_TOKENS[:, 2:], axis=1), rtol=1e-5, atol=1e-6
    )


def test_token_pooling_takes_the_class_token():
    np.testing.assert_array_equal(_pool("token", _TOKENS, 1), _TOKENS[:, 0])


def test_token_and_avg_pooling_puts_the_class_token_before_the_mean_of_the_patches():
    pooled = _pool("token+avg", _TOKENS, 2)
    expected = np.concatenate([_TOKENS[:, 0], _TOKENS[:, 2:].mean(1)], axis=-1)
    np.testing.assert_allclose(pooled, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("p", [1.0, 3.0, 4.5])
def test_gem_pooling_is_the_generalised_mean(p):
    layer = Pooling("gem", dtype="float32")
    layer.build(_MAP.shape)
    layer.p.assign(p)
    expected = np.mean(_MAP**p, axis=(1, 2)) ** (1 / p)
    np.testing.assert_allclose(np.asarray(layer(_MAP)), expected, rtol=1e-5)


def test_gem_pooling_of_negative_features_is_finite():
    assert np.isfinite(_pool("gem", -_MAP)).all()


def test_attention_pooling_starts_as_the_mean():
    np.testing.assert_allclose(
        _pool("attention", _TOKENS, 1), _TOKENS[:, 1:].mean(1), rtol=1e-5, atol=1e-6
    )


def test_attention_pooling_weighs_positions_by_the_query():
    layer = Pooling("attention", dtype="float32")
    layer.build(_TOKENS.shape)
    query = np.arange(5, dtype="float32")
    layer.query.assign(query)
    scores = np.exp(_TOKENS @ query / np.sqrt(5))
    weights = scores / scores.sum(1, keepdims=True)
    expected = (_TOKENS * weights[..., None]).sum(1)
    np.testing.assert_allclose(np.asarray(layer(_TOKENS)), expected, rtol=1e-4, atol=1e-5)


def test_cosine_logits_depend_on_directions_alone():
    layer = CosineLogits(3, dtype="float32")
    layer.build((None, 5))
    x, kernel = _TOKENS[:, 0], np.asarray(layer.kernel.value)
    cosine = (x / np.linalg.norm(x, axis=-1, keepdims=True)) @ (
        kernel / np.linalg.norm(kernel, axis=0)
    )
    np.testing.assert_allclose(np.asarray(layer(x)), 10 * cosine, rtol=1e-4, atol=1e-5)
    # Logits of up to 10 in float32; near zero a relative bound alone would be of rounding.
    same = np.asarray(layer(x))
    np.testing.assert_allclose(np.asarray(layer(7 * x)), same, rtol=1e-5, atol=1e-5)


def test_a_linear_head_is_pooling_and_one_dense_layer():
    head = _head(HeadSpec())
    kernel, bias = (np.asarray(v.value) for v in head.get_layer("logits").variables)
    expected = _MAP.mean((1, 2)) @ kernel + bias
    np.testing.assert_allclose(np.asarray(head(_MAP)), expected, rtol=1e-5, atol=1e-6)


def test_an_mlp_head_of_no_widths_has_one_layer_of_256():
    assert _head(HeadSpec(kind="mlp")).get_layer("hidden_0").units == 256


def test_the_names_of_a_head_are_its_roles():
    head = _head(HeadSpec(kind="mlp", hidden=(4,), pooling="gem", dropout=0.5))
    assert list(structural_names(head)) == [
        "pooling/p",
        "hidden_0/kernel",
        "hidden_0/bias",
        "dropout/seed_generator_state",
        "logits/kernel",
        "logits/bias",
    ]


@pytest.mark.parametrize(
    ("features", "prefix_tokens", "pooling"),
    [("map", 0, "avg"), ("tokens", 1, "token"), ("tokens", 5, "token"), ("tokens", 0, "avg")],
)
def test_auto_pooling_takes_the_class_token_where_there_is_one(features, prefix_tokens, pooling):
    head = _head(HeadSpec(), features=features, prefix_tokens=prefix_tokens)
    assert head.get_layer("pooling").kind == pooling


def test_vector_features_are_not_pooled():
    head = _head(HeadSpec(pooling="gem"), features="vector")
    assert [layer.name for layer in head.layers] == ["features", "logits"]


@pytest.mark.parametrize("kind", ["linear", "mlp", "cosine"])
def test_a_seed_and_a_name_fix_the_values_whatever_the_global_seed(kind):
    spec = HeadSpec(kind=kind, hidden=(4,) if kind == "mlp" else ())
    keras.utils.set_random_seed(1)
    first = _values(_head(spec))
    keras.utils.set_random_seed(2)
    again, other_seed = _values(_head(spec)), _values(_head(spec, seed=1))
    other_name = _values(_head(spec, name="other"))
    for a, b in zip(first, again, strict=True):
        np.testing.assert_array_equal(a, b)
    assert not np.array_equal(first[0], other_seed[0])
    assert not np.array_equal(first[0], other_name[0])


@pytest.mark.parametrize("kind", ["linear", "cosine"])
def test_a_head_on_half_precision_features_computes_in_float32(kind):
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy("bfloat16")
    try:
        head = _head(HeadSpec(kind=kind, pooling="attention", dropout=0.1))
    finally:
        keras.config.set_dtype_policy(before)
    logits = head(keras.ops.cast(_MAP, "bfloat16"))
    assert keras.backend.standardize_dtype(logits.dtype) == "float32"
    assert {v.dtype for v in head.trainable_variables} == {"float32"}


@pytest.mark.parametrize("kind", ["linear", "cosine"])
def test_a_head_comes_back_from_its_configuration(kind):
    head = _head(HeadSpec(kind=kind, pooling="gem"))
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(head))
    again.set_weights(_values(head))
    np.testing.assert_array_equal(np.asarray(again(_MAP)), np.asarray(head(_MAP)))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"features": "map"}, "pooling='token' needs a class token, .* a map of positions"),
        ({"features": "tokens"}, "patch tokens only; use pooling='avg'"),
    ],
)
def test_token_pooling_without_a_class_token_is_refused(changes, message):
    with pytest.raises(ModelError, match=message):
        _head(HeadSpec(pooling="token"), **changes)


def test_a_head_needs_a_label():
    with pytest.raises(ModelError, match="needs at least one label, got none"):
        _head(HeadSpec(), labels=())


def test_a_heads_name_is_a_word():
    with pytest.raises(ModelError, match="a word such as 'label', got 'a/b'"):
        _head(HeadSpec(), name="a/b")
