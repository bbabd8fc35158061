"""Texts opened from files: splits, bad rows, copies, what is drawn and what is held out."""

from __future__ import annotations

import json
import warnings

import numpy as np
import pytest

from tunekit.data.examples import Source, Splits
from tunekit.data.spec import DataSpec
from tunekit.data.text_source import TextSource, open_text, open_text_examples
from tunekit.errors import DataError


def opened(data, kind="labelled", seed=0, **fields) -> Splits:
    return open_text(data, DataSpec(**{"validation_fraction": 0.0, **fields}), kind, seed=seed)


def write(path, *rows):
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def reviews(count, first=0):
    return [{"text": f"review {i}", "label": "ab"[i % 2]} for i in range(first, first + count)]


def texts(source):
    return [source[i]["text"] for i in range(len(source))]


def test_a_file_of_reviews_becomes_a_source_of_labelled_texts(tmp_path):
    source = opened(write(tmp_path / "reviews.jsonl", *reviews(4))).train
    assert isinstance(source, TextSource) and isinstance(source, Source)
    assert source[2] == {"text": "review 2", "label": 0, "id": "reviews.jsonl:3"}
    assert source.name(3) == "reviews.jsonl:4" and source.kind == "labelled"
    assert source.label_array.tolist() == [0, 1, 0, 1]
    assert (
        opened(None, path=str(tmp_path / "reviews.jsonl")).train.fingerprint == source.fingerprint
    )


def test_sizes_tell_long_texts_from_short_ones(tmp_path):
    rows = [{"text": "x" * size, "label": "a", "note": "y" * 999} for size in (5, 500, 50)]
    rows[1]["label"] = "b"
    source = opened(write(tmp_path / "a.jsonl", *rows)).train
    assert np.diff(source.sizes[[0, 2, 1]]).tolist() == [45, 450]
    assert source.sizes.dtype == np.int64 and source.select([1, 0]).sizes[0] == source.sizes[1]


def test_bad_rows_are_listed_with_file_line_and_remedy(tmp_path):
    rows = [*reviews(2), '{"text": "x" "y"}', {"text": "c"}, {"text": "d", "label": None}]
    path = write(tmp_path / "reviews.jsonl", *rows)
    message = (
        r"data\.train: 3 of 5 rows cannot be read:\n"
        r"    reviews\.jsonl:3: invalid JSON \(Expecting ',' delimiter at character 14\)\n"
        r"    reviews\.jsonl:4: no column 'label'\n"
        r"    reviews\.jsonl:5: no label\n"
        r"    mend the lines, or set data\.on_unreadable: skip"
    )
    with pytest.raises(DataError, match=message):
        opened(path)


def test_one_bad_row_takes_one_line_and_many_are_counted(tmp_path):
    path = write(tmp_path / "a.jsonl", *reviews(2), "{")
    with pytest.raises(DataError, match=r"a\.jsonl:3: invalid JSON .*; mend the line, or set data"):
        opened(path)
    with pytest.raises(DataError, match=r"30 of 32 rows (?s:.*)jsonl:7: inv.*\n    and 25 more\n"):
        opened(write(tmp_path / "a.jsonl", *reviews(2), *["{"] * 30))


def test_bad_rows_may_be_skipped_and_are_counted(tmp_path):
    rows = [*reviews(3), *["{"] * 30, *reviews(3, first=3)]
    path = write(tmp_path / "a.jsonl", *rows)
    with pytest.warns(UserWarning, match=r"data\.train: skipped 30 of 36 rows .* a\.jsonl:4 \(inv"):
        source = opened(path, on_unreadable="skip").train
    assert len(source) == 6 and source[3]["id"] == "a.jsonl:34"
    assert source.skipped_count == 30 and len(source.skipped) == 20
    assert source.skipped[0][0] == "a.jsonl:4" and "invalid JSON" in source.skipped[0][1]


def test_a_file_that_changed_since_it_was_opened_is_an_error_when_it_is_read(tmp_path):
    path = write(tmp_path / "a.jsonl", *reviews(2))
    source = opened(path).train
    path.write_text("{}")
    with pytest.raises(DataError, match=r"a\.jsonl:1: .*; it was changed since it was opened"):
        source[0]


def test_files_named_after_splits_are_those(tmp_path):
    write(tmp_path / "train-00000-of-00002.jsonl", *reviews(2))
    write(tmp_path / "train-00001-of-00002.jsonl", *reviews(2, first=2))
    write(tmp_path / "dev.jsonl", *reviews(1, first=4))
    write(tmp_path / "test.csv", "text,label", "other,a")
    splits = opened(tmp_path)
    assert [len(source) for _, source in splits.items()] == [4, 1, 1]
    assert splits.train.name(2) == "train-00001-of-00002.jsonl:1"


def test_folders_named_after_splits_are_those(tmp_path):
    write(tmp_path / "train" / "a.txt", "one", "two")
    write(tmp_path / "train" / "b.txt", "three")
    write(tmp_path / "test" / "a.txt", "four")
    splits = opened(tmp_path, "plain")
    assert texts(splits.train) == ["one", "two", "three"] and texts(splits.test) == ["four"]


def test_a_folder_without_splits_is_to_train_on(tmp_path):
    write(tmp_path / "a.txt", "one")
    write(tmp_path / "b.txt", "two")
    write(tmp_path / "README.rst", "no")
    assert texts(opened(tmp_path, "plain").train) == ["one", "two"]
    splits = opened(tmp_path, "plain", validation="b")
    assert texts(splits.train) == ["one"] and texts(splits.validation) == ["two"]


def test_files_of_splits_may_be_named(tmp_path):
    one = write(tmp_path / "one.jsonl", *reviews(2))
    write(tmp_path / "two.jsonl", *reviews(2, first=2))
    splits = opened(one, validation="two.jsonl", test=None)
    assert texts(splits.validation) == ["review 2", "review 3"]
    with pytest.raises(DataError, match=r"data\.test: .* no file or folder 'tow\.jsonl'\. Did you"):
        opened(one, test="tow.jsonl")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("gone.jsonl", r"no such file or folder: .*gone\.jsonl\. Did you mean '.*gome\.jsonl'"),
        ("a.zip", r"expected a file of \.bio, .*got .*a\.zip; set data\.kind"),
        ("empty.jsonl", r"empty\.jsonl has no rows"),
        ("header.csv", r"header\.csv has no rows"),
        ("folder", r"folder holds no file of \.bio, .*\.tsv, \.txt"),
    ],
)
def test_a_path_without_texts_is_an_error(tmp_path, name, message):
    for other in ("gome.jsonl", "a.zip", "empty.jsonl"):
        (tmp_path / other).write_text("\n\n")
    (tmp_path / "header.csv").write_text("text,label\n")
    (tmp_path / "folder").mkdir()
    with pytest.raises(DataError, match=message):
        opened(tmp_path / name)


def test_the_format_may_be_named_where_the_suffix_does_not_tell(tmp_path):
    path = write(tmp_path / "reviews.data", *reviews(2))
    source = open_text(path, DataSpec(kind="jsonl", validation_fraction=0), "labelled", seed=0)
    assert len(source.train) == 2


def test_plain_text_holds_words_and_tags_where_those_are_asked_for(tmp_path):
    source = opened(write(tmp_path / "a.txt", "EU B-ORG", "says O", "", "So O"), "tagged").train
    assert source.label_names == ("O", "B-ORG") and source[1]["words"] == ["So"]


def test_the_held_out_part_keeps_each_labels_share_and_copies_together():
    rows = [{"text": f"t{i % 40}", "label": "abbb"[i % 4]} for i in range(80)]
    splits = opened(rows, validation_fraction=0.2)
    assert np.bincount(splits.train.label_array).tolist() == [16, 48]
    assert np.bincount(splits.validation.label_array).tolist() == [4, 12]
    assert not set(texts(splits.train)) & set(texts(splits.validation))
    again = opened(rows, validation_fraction=0.2)
    assert texts(again.validation) == texts(splits.validation)
    other = opened(rows, validation_fraction=0.2, split_seed=7)
    assert texts(other.validation) != texts(splits.validation)


def test_kinds_without_labels_are_held_out_by_chance():
    splits = opened([f"text {i}" for i in range(50)], "plain", validation_fraction=0.2)
    assert len(splits.train) == 40 and len(splits.validation) == 10
    tags = [{"tokens": [f"w{i}"], "tags": ["X"]} for i in range(10)]
    assert len(opened(tags, "tagged", validation_fraction=0.2).validation) == 2


def test_a_label_with_one_example_cannot_be_held_out():
    with pytest.raises(DataError, match=r"cannot split off a validation part: c have a single"):
        opened([*reviews(6), {"text": "x", "label": "c"}], validation_fraction=0.2)


def test_copies_in_two_splits_are_an_error_a_warning_or_ignored(tmp_path):
    train = write(tmp_path / "a.jsonl", *reviews(4))
    write(tmp_path / "b.jsonl", *reviews(3, first=2))
    message = r"data: 2 texts are in both train and test: a\.jsonl:3 = b\.jsonl:1, a\.jsonl:4 = b\."
    with pytest.raises(DataError, match=message + r".*Remove the copies, or set data\.on_dupl"):
        opened(train, test="b.jsonl")
    with pytest.warns(UserWarning, match=message):
        opened(train, test="b.jsonl", on_duplicate="warn")
    assert len(opened(train, test="b.jsonl", on_duplicate="ignore").test) == 3


def test_one_text_under_two_labels_is_an_error():
    rows = [*reviews(4), {"text": "review 1", "label": "a"}, {"text": "review 0", "label": "a"}]
    with pytest.raises(DataError, match=r"1 texts have two labels: data\[1\] = data\[4\]\. Remove"):
        opened(rows)
    with pytest.warns(UserWarning, match="1 texts have two labels"):
        opened(rows, on_duplicate="warn")
    both = [{"text": "t", "label": ["a", "b"]}, {"text": "t", "label": ["b", "a"]}]
    assert len(opened(both).train) == 2


def test_numbers_may_differ_between_equal_texts():
    rows = [{"text": "t", "label": 1.0}, {"text": "t", "label": 2.0}]
    assert len(opened(rows, "number").train) == 2


def test_every_problem_comes_in_one_report(tmp_path):
    write(tmp_path / "train.jsonl", *reviews(4), "{")
    write(tmp_path / "test.jsonl", {"text": "review 1", "label": "b"}, {"text": "c", "label": "B"})
    with pytest.raises(DataError) as caught:
        opened(tmp_path)
    for expected in (
        "the data has 3 problems",
        "data.train: train.jsonl:5: invalid JSON",
        "data.test: labels not among the labels of train (a, b): 'B'. Did you mean 'b'?",
        "data: 1 texts are in both train and test",
    ):
        assert expected in str(caught.value)


def test_splits_are_counted_and_strange_tags_found():
    with pytest.raises(DataError, match="expected at least 2 classes, found one: a"):
        opened([{"text": "t", "label": "a"}])
    tagged = {
        "train": [{"tokens": ["a"], "tags": ["O"]}],
        "dev": [{"tokens": ["b"], "tags": ["B"]}],
    }
    with pytest.raises(DataError, match=r"data\.validation: labels not among .*\(O\): 'B'"):
        opened(tagged, "tagged")


def test_a_test_split_without_labels_is_left_out_with_a_warning():
    hidden = [{"text": "x", "label": None}, {"text": "y", "label": ""}]
    with pytest.warns(UserWarning, match=r"data\.test: none of its 2 rows has a label, so it is n"):
        assert opened({"train": reviews(4), "test": hidden}).test is None
    with pytest.raises(DataError, match=r"^data\.train: 2 of 2 rows cannot be read"):
        opened({"train": hidden})
    with pytest.warns(UserWarning, match="skipped 2 of 2 rows"):
        with pytest.raises(DataError, match=r"^data\.train: has no examples"):
            opened({"train": hidden}, kind="plain", text_column="label", on_unreadable="skip")


def test_max_examples_keeps_each_labels_share():
    rows = [{"text": f"t{i}", "label": "abbb"[i % 4]} for i in range(80)]
    train = opened(rows, max_examples=20).train
    assert np.bincount(train.label_array).tolist() == [5, 15]
    assert len(opened(["a", "b", "c"], "plain", max_examples=2).train) == 2


def test_the_fingerprint_is_of_the_content_whatever_its_order_or_format(tmp_path):
    rows = reviews(4)
    first = opened(rows).train.fingerprint
    assert opened(rows[::-1]).train.fingerprint == first
    table = write(tmp_path / "a.csv", "label,text", *[f"{r['label']},{r['text']}" for r in rows])
    assert opened(table).train.fingerprint == first
    for changed in (rows[:3], [*rows[:3], {"text": "review 3", "label": "a"}], [*rows, rows[0]]):
        assert opened(changed).train.fingerprint != first


def test_sources_that_were_opened_before_are_taken_as_they_are():
    splits = opened(reviews(8), validation_fraction=0.25)
    again = opened(splits, validation_fraction=0.25)
    assert texts(again.train) == texts(splits.train)
    assert texts(again.validation) == texts(splits.validation)
    assert opened({"train": splits.train, "val": splits.validation}).validation is not None
    assert opened(splits.train).train is splits.train
    plain = opened(["a", "b"], "plain").train
    assert opened(plain, "dialogue").train is plain
    with pytest.raises(DataError, match=r"data\.train: expected examples that are labelled, got a"):
        opened(plain)
    with pytest.raises(DataError, match=r"expected examples that are pairs, got a source of plain"):
        open_text_examples(plain, (), DataSpec(), "pairs")


def test_one_split_is_opened_to_evaluate_on(tmp_path):
    path = write(tmp_path / "a.jsonl", *reviews(3))
    source = open_text_examples(path, ("b", "a"), DataSpec(), "labelled")
    assert source.label_names == ("b", "a") and source.label_array.tolist() == [1, 0, 1]
    numbers = open_text_examples((["x", "y"], [0, 1]), ("b", "a"), DataSpec(), "labelled")
    assert numbers.label_array.tolist() == [0, 1]
    assert open_text_examples(source, ("b", "a"), DataSpec(), "labelled") is source
    assert len(open_text_examples(["x", "x"], (), DataSpec(), "plain")) == 2


def test_what_cannot_be_evaluated_on_is_an_error(tmp_path):
    def evaluated(data, labels=("a", "b"), **fields):
        return open_text_examples(data, labels, DataSpec(**fields), "labelled")

    with pytest.raises(DataError, match=r"labels not among the model's \(a, c\): 'b'"):
        evaluated(reviews(2), ("a", "c"))
    with pytest.raises(DataError, match=r"data: data\[2\]: empty text in 'text'"):
        evaluated([*reviews(2), {"text": "", "label": "a"}])
    with pytest.raises(DataError, match="expected the model's label names b, a in this order"):
        evaluated(opened(reviews(2)).train, ("b", "a"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(DataError, match="data: has no examples"):
            evaluated([{"text": "", "label": "a"}], on_unreadable="skip")
    write(tmp_path / "train.jsonl", *reviews(2))
    write(tmp_path / "test.jsonl", *reviews(2, first=2))
    with pytest.raises(DataError, match=r"holds splits \(train, test\); name one of them"):
        evaluated(tmp_path)
