"""The 2,000 textile inspection images of conformal-clip-data 0.1.4, through the whole data room."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest

from tunekit.data.augment import augment
from tunekit.data.pipeline import Batches
from tunekit.data.source import open_data
from tunekit.data.spec import AugmentSpec, DataSpec, RandAugmentSpec

FINGERPRINT = "81f29c2be479f812d9b34b7db9828cf20b0f61a4d7e9085d9b9376798429daf7"


@pytest.fixture(scope="module")
def folder() -> Path:
    found = importlib.util.find_spec("conformal_clip_data")
    if found is None or found.origin is None:
        pytest.fail("the textile images are missing: pip install 'tunekit[demo]'")
    return Path(found.origin).parent / "data" / "textile_images" / "simulated"


def test_package_is_a_folder_per_class_without_copies(folder):
    source = open_data(folder, DataSpec(validation_fraction=0), seed=0).train
    assert source.label_names == ("global", "local", "nominal")
    assert np.bincount(source.label_array).tolist() == [500, 500, 1000]
    assert len({scan.digest for scan in source.scan()}) == 2000
    assert source.fingerprint == FINGERPRINT


def test_split_is_stratified_and_fixed_by_the_seed(folder):
    splits, again = (open_data(folder, DataSpec(), seed=0) for _ in range(2))
    assert splits.validation is not None and again.validation is not None
    assert np.bincount(splits.train.label_array).tolist() == [400, 400, 800]
    assert np.bincount(splits.validation.label_array).tolist() == [100, 100, 200]
    assert splits.validation.fingerprint == again.validation.fingerprint


def test_augmented_epoch_reads_every_image_once_and_repeats_to_the_bit(folder):
    source = open_data(folder, DataSpec(), seed=0).validation
    assert source is not None
    spec = AugmentSpec(
        horizontal_flip=True, random_resized_crop=(0.35, 1.0), randaugment=RandAugmentSpec()
    )

    def encode(example, rng):
        image = augment(example["image"], spec, (64, 64), "bicubic", rng)
        return {"image": image, "label": np.int32(example["label"])}

    def epoch(workers):
        batches = Batches(source, encode, batch_size=48, seed=0, shuffle=True, workers=workers)
        return list(batches.epoch(0))

    first, second = epoch(2), epoch(0)
    seen = np.concatenate([batch["index"][batch["weight"] > 0] for batch in first])
    assert sorted(seen) == list(range(400))
    assert all(batch["image"].shape == (48, 64, 64, 3) for batch in first)
    for one, other in zip(first, second, strict=True):
        assert all(np.array_equal(one[name], other[name]) for name in one)
