from __future__ import annotations

import shutil
import sys

import numpy as np
import pytest
from PIL import Image

from tunekit.data.source import open_data, open_examples
from tunekit.data.spec import DataSpec
from tunekit.errors import DataError


def opened(path, seed=0, **fields):
    return open_data(path, DataSpec(**fields), seed=seed)


def ids(source):
    return [source[i]["id"] for i in range(len(source))]


def test_class_folders_are_split_by_seed_with_each_class_in_both_parts(folder):
    root = folder(cat=10, dog=5)
    splits = opened(root)
    assert splits.train.label_names == ("cat", "dog") and splits.test is None
    assert np.bincount(splits.train.label_array).tolist() == [8, 4]
    assert np.bincount(splits.validation.label_array).tolist() == [2, 1]
    assert len({*ids(splits.train), *ids(splits.validation)}) == 15
    assert ids(opened(root).validation) == ids(splits.validation)
    assert ids(opened(root, seed=1).validation) != ids(splits.validation)


def test_examples_are_the_files_and_their_folders(folder, picture):
    source = opened(folder(cat=2, dog=2), validation_fraction=0).train
    example = source[2]
    assert example["id"].endswith("photos/dog/0.png") and example["label"] == 1
    assert np.array_equal(np.asarray(example["image"]), np.asarray(picture(2)))


@pytest.mark.parametrize("name", ["validation", "val", "valid", "Val"])
def test_split_folders_are_recognised(folder, name):
    root = folder(
        train__a=3, train__b=3, test__a=1, test__b=1, **{f"{name}__a": 1, f"{name}__b": 2}
    )
    splits = opened(root)
    assert [len(source) for _, source in splits.items()] == [6, 3, 2]


def test_validation_is_split_off_where_only_test_is_given(folder):
    splits = opened(folder(train__a=5, train__b=5, test__a=1))
    assert [len(source) for _, source in splits.items()] == [8, 2, 1]


def test_split_folders_may_be_named(folder):
    root = folder(big__a=3, big__b=3, small__a=1, small__b=1, extra__a=1)
    splits = opened(root, train="big", validation="small")
    assert [len(source) for _, source in splits.items()] == [6, 2]


def test_named_split_that_is_missing_is_an_error_with_near_matches(folder):
    root = folder(training_set__a=2, training_set__b=2)
    with pytest.raises(DataError, match=r"data\.train: .* 'trainin_set'\. Did you mean 'training_"):
        opened(root, train="trainin_set")


def test_naming_another_split_alone_asks_for_train(folder):
    with pytest.raises(DataError, match=r"data\.train: name the folder .* to train on: one, two"):
        opened(folder(one__a=1, two__a=1), validation="two")


def test_class_called_train_is_a_class(folder):
    splits = opened(folder(train=3, bus=3, car=3), validation_fraction=0)
    assert splits.train.label_names == ("bus", "car", "train")


def test_classes_called_valid_and_invalid_are_classes(folder):
    assert opened(folder(valid=3, invalid=3)).train.label_names == ("invalid", "valid")


def test_splits_beside_class_folders_are_ambiguous(folder):
    root = folder(train__a=2, train__b=2, bus=2)
    with pytest.raises(DataError, match=r"holds splits \(train\) beside folders of images \(bus\)"):
        opened(root)
    assert len(opened(root, train="train", validation_fraction=0).train) == 4


def test_unlabelled_test_folder_is_left_out_with_a_warning(folder):
    root = folder(train__a=4, train__b=4, test=2)
    with pytest.warns(UserWarning, match=r"data\.test: .* has no class folders, so it is not used"):
        assert opened(root).test is None


def test_images_may_lie_deeper_and_other_files_are_passed_over(folder):
    root = folder(cat=2, cat__old=1, dog=2)
    (root / "cat" / "notes.txt").write_text("x")
    (root / "dog" / ".hidden.jpg").write_text("x")
    (root / "dog" / "._0.png").write_text("x")
    (root / ".git").mkdir()
    (root / "__MACOSX").mkdir()
    (root / "README.md").write_text("x")
    source = opened(root, validation_fraction=0).train
    assert source.label_names == ("cat", "dog") and len(source) == 5


def test_suffix_in_capitals_is_an_image(folder):
    root = folder(cat=2, dog=1)
    (root / "dog" / "0.png").rename(root / "dog" / "0.PNG")
    assert len(opened(root, validation_fraction=0).train) == 3


def test_numbered_classes_are_sorted_by_value(folder):
    source = opened(folder(**{"10": 2, "9": 2}), validation_fraction=0).train
    assert source.label_names == ("9", "10")


def test_empty_class_folder_is_an_error_that_says_what_it_holds(folder):
    root = folder(cat=3, dog=3, fox=0)
    (root / "fox" / "a.heic").write_text("x")
    message = r"fox holds no image; it holds 1 other files \(\.heic\)"
    with pytest.raises(DataError, match=message):
        opened(root)


def test_folder_without_class_folders_is_an_error(tmp_path, picture):
    picture().save(tmp_path / "a.png")
    with pytest.raises(DataError, match="expected one folder per class .* its 1 images have no"):
        opened(tmp_path)


def test_path_that_does_not_exist_is_an_error_with_near_matches(folder):
    root = folder(cat=1)
    with pytest.raises(
        DataError, match=r"no such file or folder: .*photo\. Did you mean .*photos'"
    ):
        opened(root.parent / "photo")


def test_path_comes_from_the_spec_where_no_data_is_given(folder):
    root = folder(cat=2, dog=2)
    assert len(open_data(None, DataSpec(path=str(root), validation_fraction=0), seed=0).train) == 4


def test_no_path_at_all_is_an_error():
    with pytest.raises(DataError, match=r"expected a path.*NoneType"):
        open_data(None, DataSpec(), seed=0)


def test_fingerprint_is_the_same_wherever_the_folder_lies(folder, tmp_path):
    root = folder(cat=2, dog=2)
    shutil.copytree(root, tmp_path / "elsewhere" / "renamed")
    first = opened(root, validation_fraction=0).train.fingerprint
    moved = opened(tmp_path / "elsewhere" / "renamed", validation_fraction=0).train.fingerprint
    assert first == moved
    (root / "cat" / "0.png").rename(root / "cat" / "7.png")
    assert opened(root, validation_fraction=0).train.fingerprint != first


def test_files_are_scanned_once_in_a_sources_life(folder):
    root = folder(cat=2, dog=2)
    source = opened(root, validation_fraction=0).train
    before = source.fingerprint
    shutil.rmtree(root)
    assert source.fingerprint == before


def test_evaluation_uses_every_example(folder):
    spec = DataSpec(max_examples=2, validation_fraction=0.5)
    assert len(open_examples(folder(dog=3, cat=3), ("dog", "cat"), spec)) == 6


def test_evaluation_folder_maps_its_classes_to_the_models(folder):
    source = open_examples(folder(dog=2, cat=1), ("dog", "emu", "cat"), DataSpec())
    assert source.label_array.tolist() == [2, 0, 0]


def test_evaluation_folder_of_splits_asks_for_one(folder):
    root = folder(train__a=1, test__a=1)
    with pytest.raises(DataError, match=r"holds splits \(train, test\); name one of them"):
        open_examples(root, ("a",), DataSpec())


def test_evaluation_folder_with_a_damaged_image_names_it(folder):
    root = folder(a=2)
    (root / "a" / "bad.jpg").write_text("x")
    with pytest.raises(DataError, match=r"1 images cannot be read: .*bad\.jpg \(not an image"):
        open_examples(root, ("a", "b"), DataSpec())


def test_few_examples_keep_the_share_of_each_class(folder):
    splits = opened(folder(cat=12, dog=6), max_examples=6, validation_fraction=0)
    assert np.bincount(splits.train.label_array).tolist() == [4, 2]


def test_orientation_is_applied_on_the_way(folder, picture):
    root = folder(cat=2, dog=2)
    exif = Image.Exif()
    exif[0x0112] = 8
    picture(width=10, height=4).save(root / "cat" / "0.png", exif=exif)
    assert opened(root, validation_fraction=0).train[0]["image"].size == (4, 10)


def test_dataset_name_without_tfds_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    with pytest.raises(DataError, match=r"not installed\. pip install 'tunekit\[tfds\]'"):
        opened("tfds:mnist")
