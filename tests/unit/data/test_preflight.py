from __future__ import annotations

import shutil

import numpy as np
import pytest

from tunekit.data.examples import LabelledImages, Splits
from tunekit.data.images import MemoryImages, Scanner
from tunekit.data.preflight import check
from tunekit.data.source import Source, open_data
from tunekit.data.spec import DataSpec
from tunekit.errors import DataError


def opened(path, seed=0, **fields):
    return open_data(path, DataSpec(**fields), seed=seed)


def test_sound_data_has_no_issues(folder):
    splits = opened(folder(a=4, b=4))
    assert check(splits, DataSpec()) == []


def test_every_problem_comes_in_one_report(folder):
    root = folder(train__cat=3, train__dog=3, train__fox=0, val__cat=1, val__dgo=1)
    (root / "train" / "cat" / "bad.jpg").write_bytes(b"\xff\xd8\xff nothing")
    shutil.copy(root / "train" / "dog" / "0.png", root / "val" / "cat" / "copy.png")
    with pytest.raises(DataError) as caught:
        opened(root)
    report = str(caught.value)
    for expected in (
        "the data has 6 problems",
        "fox holds no image",
        "data.train: no example has the label 'fox'",
        "data.validation: labels not among the labels of train (cat, dog, fox): 'dgo'. "
        "Did you mean 'dog'?",
        "data.train: 1 of 7 images cannot be read",
        "data: 1 images are in both train and validation",
        "data: 1 images have two labels",
    ):
        assert expected in report


def test_copies_within_one_class_stay_on_one_side_of_the_split(folder):
    root = folder(a=6, b=6)
    for i in range(4):
        shutil.copy(root / "a" / "0.png", root / "a" / f"copy{i}.png")
    for seed in range(5):
        splits = opened(root, seed=seed)
        digests = [{scan.digest for scan in source.scan()} for _, source in splits.items()]
        assert not digests[0] & digests[1]


def test_copies_in_two_splits_may_be_warned_of_or_ignored(folder):
    root = folder(train__a=3, train__b=3, test__a=1)
    shutil.copy(root / "train" / "a" / "0.png", root / "test" / "a" / "copy.png")
    with pytest.raises(DataError, match=r"in both train and test: .*0\.png = .*copy\.png\. Remove"):
        opened(root)
    with pytest.warns(UserWarning, match="data: 1 images are in both train and test"):
        opened(root, on_duplicate="warn")
    assert len(opened(root, on_duplicate="ignore").test) == 2


def test_one_image_under_two_labels_is_an_error(folder):
    root = folder(a=3, b=3)
    shutil.copy(root / "a" / "0.png", root / "b" / "copy.png")
    with pytest.raises(DataError, match="1 images have two labels: .*a/0.png = .*b/copy.png"):
        opened(root)


def test_damaged_images_may_be_skipped_with_a_warning(folder):
    root = folder(a=5, b=5)
    (root / "a" / "0.png").write_bytes((root / "a" / "1.png").read_bytes()[:50])
    with pytest.warns(UserWarning, match=r"skipped 1 of 10 images .*a/0\.png"):
        splits = opened(root, on_unreadable="skip")
    assert len(splits.train) + len(splits.validation) == 9


def test_long_lists_are_capped(folder):
    root = folder(a=2, b=2)
    for i in range(22):
        (root / "a" / f"bad{i:02}.jpg").write_text("x")
    with pytest.raises(DataError, match=r"22 of 26 images.*bad04\.jpg [^,]* and 17 more"):
        opened(root, validation_fraction=0)


def test_class_with_a_single_example_cannot_be_split(folder):
    root = folder(a=4, b=1)
    with pytest.raises(DataError, match=r"cannot split off a validation part: b have a single"):
        opened(root)
    assert len(opened(root, validation_fraction=0).train) == 5


def test_one_class_alone_is_an_error(folder):
    with pytest.raises(DataError, match="expected at least 2 classes, found one: a"):
        opened(folder(a=4))


def test_label_order_of_the_users_own_sources_must_agree():
    def source(names):
        images = MemoryImages(np.random.default_rng(len(names)).integers(0, 255, (4, 2, 2, 3)))
        labels = np.arange(4, dtype=np.int32) % len(names)
        return LabelledImages(Scanner(images), np.arange(4), labels, names, False)

    splits = Splits(source(("a", "b")), source(("b", "a")))
    messages = [str(issue) for issue in check(splits, DataSpec(on_duplicate="ignore"))]
    assert messages == ["data.validation: expected label names a, b in this order, got b, a"]


class OwnSource:
    """A source that a user might write."""

    label_names = ("even", "odd")
    multi_label = False
    fingerprint = "own"

    def __init__(self, numbers):
        self.numbers = np.asarray(numbers)

    def __len__(self):
        return len(self.numbers)

    def __getitem__(self, index):
        if self.numbers[index] == 13:
            raise DataError("13 has no image")
        image = np.full((2, 2, 3), self.numbers[index], np.uint8)
        return {"image": image, "label": int(self.label_array[index]), "id": str(index)}

    @property
    def label_array(self):
        return (self.numbers % 2).astype(np.int32)

    def select(self, indices):
        return OwnSource(self.numbers[indices])


def test_a_source_of_the_users_own_is_split_and_checked():
    own = OwnSource(range(10))
    assert isinstance(own, Source)
    splits = opened(own)
    assert sorted([*splits.train.numbers, *splits.validation.numbers]) == list(range(10))
    with pytest.raises(DataError, match="1 of 3 images cannot be read: example 2 .13 has no image"):
        open_data({"train": OwnSource([0, 1, 13]), "val": OwnSource([2, 3])}, DataSpec(), seed=0)


def test_splits_pass_through_as_they_are():
    splits = Splits(OwnSource(range(4)), OwnSource(range(4, 8)))
    assert opened(splits).validation is splits.validation
