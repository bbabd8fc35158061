"""Features in place of images: every key its own, every batch what the images' would be."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest

from tunekit.data.arrays import find_arrays
from tunekit.data.examples import LabelledImages
from tunekit.data.features import (
    FeatureBatches,
    cache_key,
    fill_features,
    ordered_fingerprint,
)
from tunekit.data.pipeline import Batches
from tunekit.data.spec import AugmentSpec, CacheSpec
from tunekit.errors import DataError

SIDE_PX = 4


def source(count: int = 11, seed: int = 0) -> LabelledImages:
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (count, SIDE_PX, SIDE_PX, 3)).astype(np.uint8)
    found = find_arrays(images, ["abc"[i % 3] for i in range(count)], "data")
    return found.bind(found.names(), multi_label=False)


def encode(example: dict[str, Any], rng: np.random.Generator | None) -> dict[str, np.ndarray]:
    """Pixels, brighter by chance where there is a generator."""
    pixels = np.asarray(example["image"], np.float32)
    if rng is not None:
        pixels = pixels + np.float32(rng.integers(0, 100))
    return {"image": pixels, "label": np.asarray(example["label"], np.int32)}


def plain(example: dict[str, Any], rng: np.random.Generator | None) -> dict[str, np.ndarray]:
    return encode(example, None)


def program(pixels: np.ndarray) -> np.ndarray:
    """Two features [B, 2] of the pixels."""
    return np.stack([pixels.mean((1, 2, 3)), pixels[:, 0, 0, 0]], axis=1)


def batches(**fields: Any) -> Batches:
    given: dict[str, Any] = {"encode": plain, "batch_size": 4, "seed": 3, "shuffle": True}
    return Batches(source(), **{**given, **fields}, workers=0)


def kept(of: Batches, views: int = 1) -> FeatureBatches:
    features = np.zeros((views, len(of.source), 2), np.float32)
    fill_features(of, program, features)
    return FeatureBatches(of, features, of.source.label_array)


@pytest.mark.parametrize("balanced", [False, True])
@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("batch_size", [4, 11, 16, 64])
def test_batches_of_features_are_those_of_the_images(batch_size, shuffle, balanced):
    images = batches(batch_size=batch_size, shuffle=shuffle, balanced=balanced)
    features = kept(images)
    assert features.steps_per_epoch == images.steps_per_epoch
    for epoch in range(3):
        pairs = zip(images.epoch(epoch), features.epoch(epoch), strict=True)
        for with_images, with_features in pairs:
            expected = {**with_images, "features": program(with_images["image"])}
            del expected["image"]
            assert with_features.keys() == expected.keys()
            for name, column in expected.items():
                assert with_features[name].dtype == column.dtype
                np.testing.assert_array_equal(with_features[name], column, err_msg=name)


def test_an_epoch_may_be_entered_at_any_step():
    features = kept(batches())
    rows = [batch["index"].tolist() for batch in features.epoch(1)]
    for start in range(5):
        assert [batch["index"].tolist() for batch in features.epoch(1, start)] == rows[start:]


def test_the_first_views_are_what_training_without_a_cache_would_see_and_then_come_again():
    images = batches(encode=encode)
    features = kept(images, views=2)
    for epoch in range(2):
        pairs = zip(images.epoch(epoch), features.epoch(epoch), strict=True)
        for with_images, with_features in pairs:
            real = with_images["weight"] > 0  # A padded row is augmented anew.
            np.testing.assert_array_equal(
                with_features["features"][real], program(with_images["image"])[real]
            )
    assert not np.array_equal(*features.features)
    by_index = {}
    for epoch in (1, 3):
        batch = next(iter(features.epoch(epoch)))
        by_index[epoch] = dict(zip(batch["index"], batch["features"].tolist(), strict=True))
    shared = by_index[1].keys() & by_index[3].keys()
    assert shared and all(by_index[1][i] == by_index[3][i] for i in shared)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_features_of_a_lower_precision_are_given_in_float32(dtype):
    import ml_dtypes

    images = batches()
    stored = np.zeros((1, 11, 2), ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)
    fill_features(images, program, stored)
    batch = next(FeatureBatches(images, stored, images.source.label_array).epoch(0))
    exact = next(kept(images).epoch(0))
    assert batch["features"].dtype == np.float32
    # bfloat16 has 8 significant bits, float16 11.
    np.testing.assert_allclose(batch["features"], exact["features"], rtol=2**-8)
    assert not np.array_equal(batch["features"], exact["features"])


def test_a_feature_beyond_the_precision_is_an_error_and_no_infinity():
    out = np.zeros((1, 11, 2), np.float16)
    with pytest.raises(DataError, match=r"cache.dtype: .* float16 can hold, got one of .*e\+0"):
        fill_features(batches(), lambda pixels: 1e3 * program(pixels), out)


def test_labels_of_several_columns_are_taken_by_row():
    images = batches()
    labels = np.eye(11, dtype=np.float32)
    features = FeatureBatches(images, np.zeros((1, 11, 2), np.float32), labels)
    for batch in features.epoch(0):
        np.testing.assert_array_equal(batch["label"].argmax(1), batch["index"])


def test_an_ordered_fingerprint_says_content_and_order_and_not_labels():
    whole = source()
    mark = ordered_fingerprint(whole)
    turned = whole.select(np.arange(11)[::-1])
    assert turned.fingerprint == whole.fingerprint, "which is why features have another one"
    assert ordered_fingerprint(turned) != mark
    assert ordered_fingerprint(whole.select(np.arange(10))) != mark
    assert ordered_fingerprint(source(seed=1)) != mark
    assert ordered_fingerprint(source()) == mark
    assert ordered_fingerprint(replace(whole, label_array=1 - whole.label_array)) == mark


@dataclass(frozen=True)
class Preprocessing:
    size: tuple[int, int] = (4, 4)
    filter: str = "bicubic"


@dataclass(frozen=True)
class OtherPreprocessing:
    size: tuple[int, int] = (4, 4)
    filter: str = "bicubic"


def test_a_key_differs_where_any_part_does_and_is_the_same_otherwise():
    parts: dict[str, Any] = {
        "prefix": "weights-and-cut",
        "data": "content",
        "preprocessing": Preprocessing(),
        "augment": AugmentSpec(),
        "cache": CacheSpec(),
        "seed": None,
    }
    changes: list[dict[str, Any]] = [
        {},
        {"prefix": "other-weights-or-cut"},
        {"data": "other-content"},
        {"preprocessing": Preprocessing(filter="bilinear")},
        {"preprocessing": OtherPreprocessing()},
        {"augment": AugmentSpec(horizontal_flip=True)},
        {"cache": CacheSpec(dtype="float16")},
        {"cache": CacheSpec(views=2)},
        {"seed": 0},
        {"more": 1},
    ]
    keys = [cache_key(**{**parts, **change}) for change in changes]
    assert len(set(keys)) == len(changes)
    assert cache_key(**dict(reversed(parts.items()))) == keys[0]
    assert all(len(key) == 64 for key in keys)


def test_a_key_changes_with_what_decodes_images(monkeypatch):
    import PIL

    before = cache_key(data="content")
    monkeypatch.setattr(PIL, "__version__", "0.0.1")
    assert cache_key(data="content") != before


def test_a_part_that_has_no_fixed_text_is_no_part_of_a_key():
    with pytest.raises(TypeError, match="a cache key is made of plain values and dataclasses"):
        cache_key(model=object())
