from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SESSION = Path(__file__).with_name("tfds_session.py")


@pytest.fixture(scope="module")
def opened(tmp_path_factory):
    """Returns what a process with TensorFlow in it opened, by case."""
    folder = tmp_path_factory.mktemp("tfds")
    environment = {
        **os.environ,
        "PYTHONPATH": str(SESSION.parents[3]),
        "TFDS_DATA_DIR": str(folder / "array_record"),
        "TF_CPP_MIN_LOG_LEVEL": "3",
    }
    ran = subprocess.run(
        [sys.executable, str(SESSION), str(folder)], env=environment, capture_output=True, text=True
    )
    assert ran.returncode == 0, ran.stderr
    return json.loads(ran.stdout.splitlines()[-1])


@pytest.mark.parametrize("case", ["array_record", "tfrecord", "dataset's folder"])
def test_prepared_folder_is_opened_whatever_its_file_format(opened, case):
    found = opened[case]
    assert found["names"] == ["dog", "cat"] and found["shape"] == [4, 5, 3]
    assert sorted(found["pixels"]) == [6, 36, 66, 96, 126, 156]
    assert [(pixel // 30) % 2 for pixel in found["pixels"]] == found["labels"]
    assert found["id"] == "pets/1.0.0 train, row 0"


def test_name_and_version_open_a_dataset_and_a_split_may_be_sliced(opened):
    assert opened["name"]["names"] == ["dog", "cat"] and len(opened["name"]["labels"]) == 4


def test_sequence_of_classes_is_multi_label(opened):
    found = opened["tags"]
    assert found["names"] == ["red", "big"] and found["test"] == 2
    by_pixel = dict(zip(found["pixels"], found["labels"], strict=True))
    assert [by_pixel[pixel] for pixel in (6, 36, 66)] == [[0, 0], [1, 0], [1, 1]]


def test_split_without_labels_is_left_out_with_a_warning(opened):
    (message,) = opened["array_record"]["warnings"]
    assert opened["array_record"]["test"] is None
    assert message == "data.test: no example of 'test' has a label, so it is not used"


def test_texts_are_read_with_the_names_of_their_classes(opened):
    found = opened["texts"]
    assert found["names"] == ["dog", "cat"] and found["kind"] == "labelled"
    assert found["examples"] == [[f"café {i} of 6", i % 2] for i in range(6)]
    assert found["words"] == ["é", "b"] and found["id"].startswith("reviews/1.0.0 train[")
    (message,) = found["warnings"]
    assert message == "data.test: none of its 2 rows has a label, so it is not used"


def test_a_dataset_of_images_is_no_texts(opened):
    assert opened["no texts"]["kind"] is None


@pytest.mark.parametrize(
    ("case", "expected"),
    [
        ("two datasets", "holds 2 prepared datasets; name one of"),
        (
            "wrong column",
            "has no feature 'labels'. Did you mean 'label'? Its features: image, label",
        ),
        ("wrong split", "data.validation: no split 'tets'. Did you mean 'test'? It has"),
        ("texts of a wrong split", "data.train: no split 'tran'. Did you mean 'train'? It has"),
        ("wrong name", "tfds has no dataset 'mnits'. Did you mean 'mnist'"),
    ],
)
def test_what_does_not_exist_is_an_error_with_near_matches(opened, case, expected):
    assert expected in opened[case]["error"]
