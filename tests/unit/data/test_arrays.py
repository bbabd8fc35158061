from __future__ import annotations

import numpy as np
import pytest

from tunekit.data.source import open_data, open_examples, open_images
from tunekit.data.spec import DataSpec
from tunekit.errors import DataError

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (12, 6, 5, 3), np.uint8)
LABELS = np.arange(12) % 3
WHOLE = DataSpec(validation_fraction=0)


def opened(images, labels, spec=WHOLE):
    return open_data((images, labels), spec, seed=0).train


def test_numbers_become_names_in_order_of_value():
    source = opened(IMAGES, np.where(LABELS == 2, 10, LABELS))
    assert source.label_names == ("0", "1", "10")
    assert source.label_array.tolist() == LABELS.tolist()
    assert source[4]["label"] == 1 and np.array_equal(source[4]["image"], IMAGES[4])


def test_strings_become_names_in_alphabetical_order():
    source = opened(IMAGES, np.array(["dog", "cat", "emu"])[LABELS])
    assert source.label_names == ("cat", "dog", "emu")
    assert source.label_array[:3].tolist() == [1, 0, 2]


def test_given_names_are_indexed_by_numbers():
    source = opened(IMAGES, LABELS, DataSpec(validation_fraction=0, labels=("z", "y", "x")))
    assert source.label_names == ("z", "y", "x")
    assert source.label_array.tolist() == LABELS.tolist()


def test_given_order_of_names_is_kept():
    names = np.array(["dog", "cat", "emu"])[LABELS].tolist()
    source = opened(IMAGES, names, DataSpec(validation_fraction=0, labels=("emu", "dog", "cat")))
    assert source.label_array[:3].tolist() == [1, 2, 0]


def test_dark_image_among_floats_is_not_taken_for_a_normalised_one():
    images = IMAGES.astype(np.float32)
    images[3] = 1
    source = opened(images, LABELS)
    assert source[3]["image"].dtype == np.uint8 and source[3]["image"].max() == 1
    assert np.array_equal(source[4]["image"], IMAGES[4])


def test_column_of_labels_is_flattened():
    assert opened(IMAGES, LABELS[:, None]).label_array.tolist() == LABELS.tolist()


def test_one_hot_rows_are_single_labels():
    source = opened(IMAGES, np.eye(3, dtype=np.float32)[LABELS])
    assert not source.multi_label and source.label_array.tolist() == LABELS.tolist()


def test_other_zeros_and_ones_are_multi_label():
    hot = np.eye(3)[LABELS]
    hot[0] = 1
    hot[1] = 0
    source = opened(IMAGES, hot)
    assert source.multi_label and source.label_array.dtype == np.float32
    assert np.array_equal(source.label_array, hot)
    assert source[0]["label"].tolist() == [1, 1, 1]


def test_lists_of_names_are_multi_label():
    labels = [["b"], ["a", "b"], []] * 4
    source = opened(IMAGES, labels)
    assert source.multi_label and source.label_array[:3].tolist() == [[0, 1], [1, 1], [0, 0]]


def test_one_multi_label_split_makes_all_splits_so():
    hot = np.eye(3)[LABELS]
    other = 255 - IMAGES
    data = {"train": (IMAGES, hot), "val": (other, np.maximum(hot, hot[:, ::-1]))}
    splits = open_data(data, DataSpec(), seed=0)
    assert splits.train.multi_label and np.array_equal(splits.train.label_array, hot)


def test_pil_images_paths_and_arrays_may_be_mixed(tmp_path, picture):
    picture(1).save(tmp_path / "a.png")
    items = [picture(0), tmp_path / "a.png", str(tmp_path / "a.png"), IMAGES[0]]
    source = open_images(items)
    assert [np.shape(source[i]["image"]) for i in range(4)] == [(8, 10, 3)] * 3 + [(6, 5, 3)]
    assert source[1]["id"] == str(tmp_path / "a.png") and source[3]["id"] == "images[3]"


@pytest.mark.parametrize("one", [IMAGES[0], IMAGES[0, ..., 0], IMAGES[:1]])
def test_one_image_is_as_good_as_a_list_of_one(one):
    assert len(open_images(one)) == 1


def test_fingerprint_ignores_order_and_sees_pixels_and_labels():
    source = opened(IMAGES, LABELS)
    reverse = opened(IMAGES[::-1], LABELS[::-1])
    assert source.fingerprint == reverse.fingerprint == opened(IMAGES.copy(), LABELS).fingerprint
    changed = IMAGES.copy()
    changed[0, 0, 0, 0] ^= 1
    assert opened(changed, LABELS).fingerprint != source.fingerprint
    assert opened(IMAGES, LABELS[::-1]).fingerprint != source.fingerprint


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (IMAGES[:5], LABELS, "expected one label per image, got 5 images and 12 labels"),
        (IMAGES / 255, LABELS, r"data\.train\.images: .*0\.\.1; multiply by 255"),
        (IMAGES // 255, LABELS, "every pixel is 0 or 1.*multiply by 255"),
        (IMAGES / 127.5 - 1, LABELS, "undo the normalisation"),
        (IMAGES * np.nan, LABELS, "1080 pixels are NaN"),
        (IMAGES.transpose(0, 3, 1, 2), LABELS, r"use images\.transpose\(0, 2, 3, 1\)"),
        (IMAGES.reshape(12, -1), LABELS, r"expected \[N, height, width, 3\].*images\[None\]"),
        (IMAGES[:0], LABELS[:0], "expected at least one image"),
        ([], [], "expected at least one image, got an empty list"),
        ([object()] * 12, LABELS, r"expected paths, PIL images or arrays; \[0\] is object"),
        (["no.jpg"] * 7, LABELS[:7], r"7 files do not exist: no\.jpg.* and 2 more"),
        (IMAGES, LABELS - 1, "4 labels are negative"),
        (IMAGES, LABELS / 1.0, r"expected \[N\] whole numbers.*labels\.astype\(int\)"),
        (IMAGES, np.eye(3)[LABELS] * 0.9, r"zeros and ones, got float64 \[12, 3\] in 0\.\.0\.9"),
        (IMAGES, [["a"], "b"] * 6, "some labels are lists of names and some are not"),
        (IMAGES, [[1], [1, 2]] * 6, "labels are of different lengths"),
        (IMAGES, np.array(["a", None] * 6, object), r"expected strings only, but \[1\] is None"),
        (IMAGES, LABELS * 0, "expected at least 2 classes, found one: 0"),
    ],
)
def test_arrays_that_cannot_be_trained_on_say_why(images, labels, message):
    with pytest.raises(DataError, match=message):
        opened(images, labels)


def test_problems_of_images_and_labels_come_in_one_report():
    with pytest.raises(DataError, match=r"2 problems:\n  .*multiply by 255\n  .*are negative"):
        opened(IMAGES / 255, LABELS - 1)


def test_split_name_with_a_slip_is_pointed_out():
    with pytest.raises(DataError, match="got 'vaildation'. Did you mean 'validation'"):
        open_data({"train": (IMAGES, LABELS), "vaildation": (IMAGES, LABELS)}, WHOLE, seed=0)


def test_dict_without_train_is_refused():
    with pytest.raises(DataError, match="expected a split named train, got test"):
        open_data({"test": (IMAGES, LABELS)}, WHOLE, seed=0)


def test_anything_else_is_refused_by_type():
    with pytest.raises(DataError, match=r"expected a path, \(images, labels\).*got int"):
        open_data(3, WHOLE, seed=0)


def test_label_outside_the_given_names_is_an_error():
    spec = DataSpec(validation_fraction=0, labels=("a", "b"))
    with pytest.raises(DataError, match=r"labels not among data\.labels \(a, b\): '0', '1', '2'"):
        opened(IMAGES, LABELS, spec)


def test_given_name_without_examples_is_an_error():
    spec = DataSpec(validation_fraction=0, labels=("0", "1", "2", "3"))
    with pytest.raises(DataError, match="no example has the label '3'"):
        opened(IMAGES, LABELS, spec)


def test_examples_for_a_model_take_its_label_order_and_may_lack_some():
    source = open_examples((IMAGES[:4], ["b", "b", "c", "b"]), ("c", "b", "a"), DataSpec())
    assert source.label_names == ("c", "b", "a") and source.label_array.tolist() == [1, 1, 0, 1]


def test_examples_with_a_label_the_model_lacks_are_refused():
    message = r"labels not among the model's \(cat, dog\): 'catt'. Did you mean 'cat'\?"
    with pytest.raises(DataError, match=message):
        open_examples((IMAGES[:2], ["catt", "dog"]), ("cat", "dog"), DataSpec())
