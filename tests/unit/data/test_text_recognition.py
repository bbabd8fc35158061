"""Whether data are texts, and of which kind, by themselves."""

from __future__ import annotations

import json

import numpy as np
import pytest

from tunekit.data.spec import DataSpec
from tunekit.data.text_source import open_text, recognised
from tunekit.errors import DataError

MESSAGES = [{"role": "user", "content": "Hi?"}, {"role": "assistant", "content": "Ho."}]


@pytest.mark.parametrize(
    ("row", "kind"),
    [
        ({"text": "a", "label": "x"}, "labelled"),
        ({"review": "a", "stars": 3, "user_id": 7}, "labelled"),
        ({"premise": "a", "hypothesis": "b", "label": 0}, "labelled"),
        ({"question": "a", "sentence": "b", "label": 0}, "labelled"),
        ({"question1": "a", "question2": "b", "is_duplicate": 0}, "labelled"),
        ({"sentence1": "a", "sentence2": "b", "score": 0.5}, "pairs"),
        ({"anchor": "a", "positive": "b"}, "pairs"),
        ({"tokens": ["a"], "ner_tags": ["O"], "pos_tags": ["N"]}, "tagged"),
        ({"question": "Q", "context": "C", "answers": {}}, "answers"),
        ({"messages": MESSAGES}, "dialogue"),
        ({"conversations": MESSAGES, "label": 1}, "dialogue"),
        ({"prompt": "a", "response": "b", "topic": "c"}, "dialogue"),
        ({"question": "a", "answer": "b"}, "dialogue"),
        ({"instruction": "a", "input": "b", "output": "c", "category": "d"}, "dialogue"),
        ({"text": "a", "id": 3}, "plain"),
        ({"pixels": 3}, None),
    ],
)
def test_the_columns_tell_the_kind(row, kind):
    assert recognised([row], DataSpec()) == kind


def test_named_columns_tell_the_kind():
    row = {"said": "a", "as": "b"}
    assert recognised([row], DataSpec(text_column="said", label_column="as")) == "labelled"
    assert recognised([row], DataSpec(prompt_column="said")) == "dialogue"
    assert recognised([row], DataSpec(text_column="said")) == "plain"


@pytest.mark.parametrize(
    ("name", "content", "kind"),
    [
        ("a.jsonl", '{"text": "a", "label": 1}', "labelled"),
        ("a.json", '[{"prompt": "a", "response": "b"}]', "dialogue"),
        ("a.csv", "body,rating\na,1", "labelled"),
        ("a.txt", "some text", "plain"),
        ("a.conll", "EU B-ORG", "tagged"),
        ("a.csv", "image,label\na.png,1", None),
        ("a.csv", "image,text,label\na.png,a,1", None),
        ("a.csv", "imge,labels\na.png,1", None),
        ("a.zip", "PK", None),
    ],
)
def test_files_are_told_by_their_format_and_columns(tmp_path, name, content, kind):
    (tmp_path / name).write_text(content)
    assert recognised(tmp_path / name, DataSpec()) == kind
    assert recognised(None, DataSpec(path=str(tmp_path / name))) == kind


def test_folders_of_images_are_no_texts(tmp_path, folder):
    photos = folder(cat=1, dog=1)
    assert recognised(photos, DataSpec()) is None
    (photos / "README.txt").write_text("photos")
    assert recognised(photos, DataSpec()) is None
    assert recognised(folder("splits", train__cat=1), DataSpec()) is None
    assert recognised(folder("loose", **{".": 1}), DataSpec()) is None
    assert recognised(tmp_path / "gone", DataSpec()) is None
    assert recognised(photos, DataSpec(kind="folder")) is None


def test_folders_of_texts_are_told_by_their_train_split(tmp_path):
    (tmp_path / "train.jsonl").write_text(json.dumps({"messages": MESSAGES}))
    (tmp_path / "test.jsonl").write_text(json.dumps({"messages": MESSAGES}))
    assert recognised(tmp_path, DataSpec()) == "dialogue"
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.txt").write_text("one")
    assert recognised(str(tmp_path / "texts"), DataSpec()) == "plain"


def test_python_values_are_told_by_what_they_hold():
    images = np.zeros((2, 4, 4, 3), np.uint8)
    for data, kind in [
        (["one text", "another"], "plain"),
        (["a.png", "b.jpg"], None),
        ((["a", "b"], [0, 1]), "labelled"),
        (([("a", "b"), ("c", "d")], [0, 1]), "labelled"),
        ((["a.png", "b.png"], [0, 1]), None),
        ((images, np.array([0, 1])), None),
        ((list(images), [0, 1]), None),
        ({"train": [{"text": "a", "label": 1}]}, "labelled"),
        (images, None),
        (None, None),
    ]:
        assert recognised(data, DataSpec()) == kind
    splits = open_text(["a", "b", "c"], DataSpec(), "plain", seed=0)
    assert recognised(splits, DataSpec()) == recognised(splits.train, DataSpec()) == "plain"


def test_texts_whose_columns_tell_nothing_are_an_error_that_lists_them(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"foo": "a", "bar": 1}')
    with pytest.raises(
        DataError, match=r"cannot tell what to learn of .* are foo, bar; name a task"
    ):
        recognised(path, DataSpec())
