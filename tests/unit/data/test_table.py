from __future__ import annotations

import json
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tunekit.data.source import open_data, open_examples
from tunekit.data.spec import DataSpec
from tunekit.errors import DataError


def opened(path, **fields):
    return open_data(path, DataSpec(**{"validation_fraction": 0.0, **fields}), seed=0)


@pytest.fixture
def images(tmp_path, picture):
    """Four files in a folder "pictures" beside the table."""
    (tmp_path / "pictures").mkdir()
    for i in range(4):
        picture(i).save(tmp_path / "pictures" / f"{i}.png")
    return [f"pictures/{i}.png" for i in range(4)]


def write(path, *rows):
    path.write_text("\n".join(rows), encoding="utf-8")
    return path


def test_csv_reads_paths_relative_to_itself(tmp_path, images, picture):
    absolute = tmp_path / images[3]
    table = write(
        tmp_path / "a.csv",
        "image,label,note",
        *[f"{images[i]},{'ab'[i % 2]},x" for i in range(3)],
        f"{absolute},b,x",
    )
    source = opened(table).train
    assert source.label_names == ("a", "b") and source.label_array.tolist() == [0, 1, 0, 1]
    assert np.array_equal(np.asarray(source[2]["image"]), np.asarray(picture(2)))
    assert source[3]["id"] == str(absolute)


def test_csv_written_by_a_spreadsheet_is_read(tmp_path, images):
    path = tmp_path / "a.csv"
    path.write_text(f'image,label\r\n"{images[0]}","a, b"\r\n{images[1]},c\r\n', "utf-8-sig")
    assert opened(path).train.label_names == ("a, b", "c")


def test_tsv_is_split_at_tabs(tmp_path, images):
    table = write(tmp_path / "a.tsv", "image\tlabel", f"{images[0]}\ta", f"{images[1]}\tb")
    assert opened(table).train.label_names == ("a", "b")


def test_columns_may_have_other_names(tmp_path, images):
    table = write(tmp_path / "a.csv", "file,kind", f"{images[0]},a", f"{images[1]},b")
    assert len(opened(table, image_column="file", label_column="kind").train) == 2


def test_cell_of_several_labels_makes_the_table_multi_label(tmp_path, images):
    rows = [f"{images[0]},red|big", f"{images[1]}, big ", f"{images[2]},"]
    source = opened(write(tmp_path / "a.csv", "image,label", *rows)).train
    assert source.multi_label and source.label_names == ("big", "red")
    assert source.label_array.tolist() == [[1, 1], [1, 0], [0, 0]]


def test_separator_may_be_another(tmp_path, images):
    rows = [f"{images[0]},a|b", f"{images[1]},c"]
    table = write(tmp_path / "a.csv", "image,label", *rows)
    assert opened(table, label_separator=";").train.label_names == ("a|b", "c")


def test_folder_of_tables_is_opened_by_their_names(tmp_path, images):
    for i, name in enumerate(["train", "val", "test"]):
        rows = [f"{images[i]},a", f"{images[3]},b"] if i == 0 else [f"{images[i]},a"]
        write(tmp_path / f"{name}.csv", "image,label", *rows)
    splits = opened(tmp_path)
    assert [len(source) for _, source in splits.items()] == [2, 1, 1]


def test_files_of_splits_may_be_named(tmp_path, images):
    one = write(tmp_path / "one.csv", "image,label", f"{images[0]},a", f"{images[1]},b")
    write(tmp_path / "two.csv", "image,label", f"{images[2]},b")
    splits = opened(one, validation="two.csv")
    assert [len(source) for _, source in splits.items()] == [2, 1]
    with pytest.raises(DataError, match=r"data\.test: .* no file 'too\.csv'\. Did you mean 'two"):
        opened(one, test="too.csv")


def test_missing_columns_are_reported_together_with_near_matches(tmp_path, images):
    table = write(tmp_path / "a.csv", "imge,labels", f"{images[0]},a")
    message = (
        r"2 problems:\n.*data\.image_column: .* no column 'image'\. Did you mean 'imge'\?"
        r".*\n.*data\.label_column: .*'labels'\? Its columns: imge, labels"
    )
    with pytest.raises(DataError, match=message):
        opened(table)


def test_missing_files_and_empty_labels_come_in_one_capped_report(tmp_path, images):
    rows = [f"gone{i}.png,a" for i in range(8)] + [f"{images[0]},", f"{images[1]},b"]
    message = r"no label in 1 rows: 10\n.*8 image files do not exist: .*gone0\.png.* and 3 more"
    with pytest.raises(DataError, match=message):
        opened(write(tmp_path / "a.csv", "image,label", *rows))


def test_where_every_file_is_missing_the_folder_is_told(tmp_path):
    table = write(tmp_path / "a.csv", "image,label", "x/1.png,a", "x/2.png,b")
    with pytest.raises(DataError, match="Paths are relative to "):
        opened(table)


def test_empty_cell_in_place_of_a_path_is_an_error(tmp_path, images):
    table = write(tmp_path / "a.csv", "image,label", f"{images[0]},a", ",b")
    with pytest.raises(DataError, match="1 rows have no image path"):
        opened(table)


def test_table_without_rows_is_an_error(tmp_path):
    with pytest.raises(DataError, match=r"data\.train: .*a\.csv has no rows"):
        opened(write(tmp_path / "a.csv", "image,label"))


def test_file_of_another_kind_is_an_error(tmp_path):
    (tmp_path / "a.zip").write_bytes(b"PK\x03\x04\xff")
    with pytest.raises(DataError, match=r"expected a folder or a file of \.csv, \.parquet"):
        opened(tmp_path / "a.zip")
    with pytest.raises(DataError, match=r"a\.zip is not a UTF-8 CSV file"):
        opened(tmp_path / "a.zip", kind="csv")
    with pytest.raises(DataError, match=r"a\.zip is not a Parquet file"):
        opened(tmp_path / "a.zip", kind="parquet")


def test_parquet_reads_encoded_images(tmp_path, images, picture):
    content = [(tmp_path / path).read_bytes() for path in images]
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"image": content, "label": [0, 1, 1, 0]}), path)
    source = opened(path).train
    assert source.label_names == ("0", "1") and source.label_array.tolist() == [0, 1, 1, 0]
    assert np.array_equal(np.asarray(source[2]["image"]), np.asarray(picture(2)))
    assert source[2]["id"] == "a.parquet, row 2"


def test_parquet_reads_paths_and_lists_of_labels(tmp_path, images):
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"image": images, "label": [["a"], ["a", "b"], [], ["b"]]}), path)
    source = opened(path).train
    assert source.multi_label
    assert source.label_array.tolist() == [[1, 0], [1, 1], [0, 0], [0, 1]]


def test_parquet_of_hugging_face_datasets_keeps_its_label_names(tmp_path, images):
    structs = [{"bytes": (tmp_path / path).read_bytes(), "path": None} for path in images]
    features = {"label": {"names": ["dog", "cat"], "_type": "ClassLabel"}}
    table = pa.table({"image": structs, "label": [0, 1, 1, 0]})
    table = table.replace_schema_metadata(
        {"huggingface": json.dumps({"info": {"features": features}})}
    )
    (tmp_path / "data").mkdir()
    for part in range(2):
        half = table.slice(2 * part, 2)
        pq.write_table(half, tmp_path / "data" / f"train-0000{part}-of-00002.parquet")
    source = opened(tmp_path / "data").train
    assert source.label_names == ("dog", "cat") and source.label_array.tolist() == [0, 1, 1, 0]


def test_parquet_without_the_column_is_an_error(tmp_path):
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"img": ["x"], "label": ["a"]}), path)
    with pytest.raises(DataError, match=r"data\.image_column: .* Its columns: img, label"):
        opened(path)


def test_damaged_bytes_in_parquet_are_named_by_row(tmp_path, images):
    content = [(tmp_path / path).read_bytes() for path in images]
    content[2] = content[2][:60]
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"image": content, "label": ["a", "b", "a", "b"]}), path)
    with pytest.raises(DataError, match=r"1 of 4 images cannot be read: a\.parquet, row 2 \("):
        opened(path)


def test_table_can_be_evaluated_on(tmp_path, images):
    table = write(tmp_path / "a.csv", "image,label", f"{images[0]},1", f"{images[1]},0")
    assert open_examples(table, ("cat", "dog"), DataSpec()).label_array.tolist() == [1, 0]


def test_parquet_without_pyarrow_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    with pytest.raises(DataError, match=r"needs pyarrow\. pip install 'tunekit\[parquet\]'"):
        opened(tmp_path / "a.parquet")
