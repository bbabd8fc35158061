"""Texts in Parquet files and in folders that Hugging Face datasets saved."""

from __future__ import annotations

import json
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tunekit.data.spec import DataSpec
from tunekit.data.text_source import open_text, recognised
from tunekit.errors import DataError

CLASS = {"names": ["neg", "pos"], "_type": "ClassLabel"}


def opened(data, kind="labelled", **fields):
    spec = DataSpec(**{"validation_fraction": 0.0, **fields})
    return open_text(data, spec, kind, seed=0)


def saved(folder, tables, features=None, state=None):
    """Writes a split as `Dataset.save_to_disk` does."""
    folder.mkdir(parents=True)
    names = [f"data-{i:05}-of-{len(tables):05}.arrow" for i in range(len(tables))]
    for name, columns in zip(names, tables, strict=True):
        table = pa.table(columns)
        with (
            pa.OSFile(str(folder / name), "wb") as file,
            pa.ipc.new_stream(file, table.schema) as out,
        ):
            out.write_table(table)
    files = {"_data_files": [{"filename": name} for name in names], **(state or {})}
    (folder / "state.json").write_text(json.dumps(files))
    (folder / "dataset_info.json").write_text(json.dumps({"features": features or {}}))
    return folder


@pytest.fixture
def dataset(tmp_path):
    """Returns a folder as `DatasetDict.save_to_disk` writes it."""
    root = tmp_path / "imdb"
    features = {"text": {"dtype": "string", "_type": "Value"}, "label": CLASS}
    halves = [{"text": ["a", "b"], "label": [1, 0]}, {"text": ["c"], "label": [1]}]
    saved(root / "train", halves, features)
    saved(root / "test", [{"text": ["d"], "label": [0]}], features)
    saved(root / "unsupervised", [{"text": ["e", "f"], "label": [-1, -1]}], features)
    (root / "dataset_dict.json").write_text(
        json.dumps({"splits": ["train", "test", "unsupervised"]})
    )
    return root


def test_parquet_is_read_with_the_names_of_its_classes(tmp_path):
    table = pa.table({"text": ["a", "b"], "label": [1, 0]})
    metadata = {"huggingface": json.dumps({"info": {"features": {"label": CLASS}}})}
    pq.write_table(table.replace_schema_metadata(metadata), tmp_path / "a.parquet")
    source = opened(tmp_path / "a.parquet").train
    assert source.label_names == ("neg", "pos") and source.label_array.tolist() == [1, 0]
    assert source[1] == {"text": "b", "label": 0, "id": "a.parquet, row 1"}


def test_parquet_without_class_names_has_numbers(tmp_path):
    (tmp_path / "data").mkdir()
    columns = {"text": ["a", "b"], "stars": [5, 1]}
    pq.write_table(pa.table(columns), tmp_path / "data" / "train-00000-of-00001.parquet")
    assert opened(tmp_path).train.label_names == ("1", "5")
    assert recognised(tmp_path, DataSpec()) == "labelled"


def test_parquet_and_datasets_of_images_are_no_texts(tmp_path):
    columns = {"image": [b"png"], "label": [0], "text": ["a caption"]}
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    assert recognised(tmp_path / "a.parquet", DataSpec()) is None
    assert recognised(saved(tmp_path / "saved", [columns]), DataSpec()) is None


def test_nested_columns_of_parquet_become_plain_values(tmp_path):
    answers = [{"text": ["Ada"], "answer_start": [3]}]
    columns = {"question": ["Who?"], "context": ["It Ada."], "answers": answers}
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    assert opened(tmp_path / "a.parquet", "answers").train[0]["answers"] == [("Ada", 3)]


def test_a_saved_dataset_has_its_splits_and_class_names(dataset):
    splits = opened(dataset)
    assert splits.train.label_names == ("neg", "pos")
    assert [splits.train[i]["text"] for i in range(3)] == ["a", "b", "c"]
    assert splits.train.label_array.tolist() == [1, 0, 1] and len(splits.test) == 1
    assert splits.train.name(2) == "train/data-00001-of-00002.arrow, row 0"
    assert len(opened(dataset, "plain", train="unsupervised").train) == 2


def test_a_saved_split_alone_is_to_train_on(dataset):
    assert len(opened(dataset / "train").train) == 3


def test_lists_of_class_numbers_are_named(tmp_path):
    for i, feature in enumerate(({"feature": CLASS, "_type": "Sequence"}, [CLASS])):
        columns = {"tokens": [["x", "y"]], "ner_tags": [[1, 0]]}
        folder = saved(tmp_path / str(i), [columns], {"ner_tags": feature})
        source = opened(folder, "tagged").train
        assert source.label_names == ("neg", "pos") and source[0]["tags"] == [1, 0]


def test_a_class_number_beyond_the_names_is_a_bad_row(tmp_path):
    folder = saved(tmp_path / "a", [{"text": ["a", "b"], "label": [1, 2]}], {"label": CLASS})
    with pytest.raises(DataError, match=r"row 1: class number 2, where there are 2 classes"):
        opened(folder)


def test_a_split_that_a_saved_dataset_lacks_is_an_error(dataset):
    with pytest.raises(
        DataError, match=r"data\.test: no split 'tset'\. Did you mean 'test'\? It h"
    ):
        opened(dataset, test="tset")
    (dataset / "dataset_dict.json").write_text(json.dumps({"splits": ["test", "unsupervised"]}))
    with pytest.raises(DataError, match="name the split to train on: test, unsupervised"):
        opened(dataset)


def test_what_is_no_saved_dataset_is_an_error(dataset, tmp_path):
    with pytest.raises(DataError, match="expected dataset_dict.json or state.json in"):
        open_text(tmp_path, DataSpec(kind="datasets"), "labelled", seed=0)
    (dataset / "train" / "data-00000-of-00002.arrow").write_bytes(b"no")
    with pytest.raises(DataError, match="train cannot be read as a dataset"):
        opened(dataset)
    old = saved(
        tmp_path / "old", [{"text": ["a"]}], state={"_indices_data_files": [{"filename": "i"}]}
    )
    with pytest.raises(DataError, match="saved with an index of rows by an old version"):
        opened(old, "plain")


def test_a_file_that_is_no_parquet_is_an_error(tmp_path):
    (tmp_path / "a.parquet").write_bytes(b"no")
    for read in (opened, lambda path: recognised(path, DataSpec())):
        with pytest.raises(DataError, match=r"a\.parquet is not a Parquet file"):
            read(tmp_path / "a.parquet")


def test_without_pyarrow_the_message_says_what_to_install(tmp_path, monkeypatch):
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    for name in ("pyarrow", "pyarrow.ipc"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(DataError, match=r"needs pyarrow\. pip install 'tunekit\[parquet\]'"):
        opened(tmp_path / "a.parquet")
