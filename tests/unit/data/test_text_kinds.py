"""What rows become: the columns found by their names, the cells checked."""

from __future__ import annotations

from collections import namedtuple

import numpy as np
import pytest

from tunekit.data.spec import DataSpec
from tunekit.data.text_source import open_text
from tunekit.errors import DataError


def opened(kind, rows, **fields):
    spec = DataSpec(**{"validation_fraction": 0.0, "on_duplicate": "ignore", **fields})
    return open_text(rows, spec, kind, seed=0).train


def labelled(*labels, **fields):
    rows = [{"text": f"text {i}", "label": label} for i, label in enumerate(labels)]
    return opened("labelled", rows, **fields)


@pytest.mark.parametrize(
    ("row", "text", "named"),
    [
        ({"text": "a", "label": "x"}, "a", {}),
        ({"Review": "a", "stars": "x"}, "a", {}),
        ({"title": "t", "body": "a", "Sentiment": "x"}, "a", {}),
        ({"title": "a", "label": "x", "score": 1}, "a", {}),
        ({"sentence1": "a", "sentence2": "b", "label": "x"}, ("a", "b"), {}),
        ({"premise": "a", "hypothesis": "b", "label": "x"}, ("a", "b"), {}),
        ({"question1": "a", "question2": "b", "is_duplicate": "x"}, ("a", "b"), {}),
        ({"text": "t", "said": "a", "as": "x"}, "a", {"text_column": "said", "label_column": "as"}),
        ({"text": "a", "more": "b", "label": "x"}, ("a", "b"), {"pair_column": "more"}),
    ],
)
def test_columns_of_texts_and_labels_are_found_by_name_or_named(row, text, named):
    source = opened("labelled", [row, {**row, **dict.fromkeys(row, "y")}], **named)
    assert source[0]["text"] == text
    assert source.label_names == ("x", "y") and source[0]["label"] == 0


def test_ambiguous_columns_are_listed():
    row = {"sentence": "a", "review": "b", "class": 0, "stars": 1}
    message = (
        r"data\.text_column: the columns sentence, review of data could each be the text; name"
        r".*\n.*data\.label_column: the columns class, stars of data could each be the label"
    )
    with pytest.raises(DataError, match=message):
        opened("labelled", [row])


def test_columns_that_are_not_there_are_told_with_near_matches():
    rows = [{"Texte": "a", "lable": 0}]
    message = (
        r"data\.text_column: data has no column for the text, such as text, .* mean 'Texte'\?.*\n"
        r".*data\.label_column: .* such as label, .* Did you mean 'lable'\? Name one of its colu"
    )
    with pytest.raises(DataError, match=message):
        opened("labelled", rows)
    with pytest.raises(DataError, match=r"no column 'texte'\. Did you mean 'Texte'\? Its columns:"):
        opened("plain", rows, text_column="texte")


@pytest.mark.parametrize(
    ("labels", "names", "numbers"),
    [
        (["b", "a", "b"], ("a", "b"), [1, 0, 1]),
        ([10, 9, 10], ("9", "10"), [1, 0, 1]),
        ([2.0, 1.0, 1], ("1", "2"), [1, 0, 0]),
        ([True, False, True], ("false", "true"), [1, 0, 1]),
        ([" b", "a ", "b"], ("a", "b"), [1, 0, 1]),
    ],
)
def test_labels_may_be_names_numbers_or_truth_values(labels, names, numbers):
    source = labelled(*labels)
    assert source.label_names == names and source.label_array.tolist() == numbers
    assert source.label_array.dtype == np.int32 and type(source[0]["label"]) is int


@pytest.mark.parametrize(
    "labels", [["a|b", "b", ""], [["b", "a"], ["b"], []], [["a", "b"], "b", None]]
)
def test_several_labels_in_one_row_make_all_of_them_multi_label(labels):
    source = labelled(*labels)
    assert source.multi_label and source.label_names == ("a", "b")
    assert source.label_array.tolist() == [[1, 1], [0, 1], [0, 0]]
    assert source[0]["label"].dtype == np.float32


def test_the_separator_of_labels_may_be_another():
    assert labelled("a|b", "c", label_separator=";").label_names == ("a|b", "c")


def test_class_numbers_take_the_names_that_the_user_gives():
    for numbers in ([1, 0, 1], ["1", "0", "1"]):
        source = labelled(*numbers, labels=("no", "yes"))
        assert source.label_names == ("no", "yes") and source.label_array.tolist() == [1, 0, 1]
    assert labelled(2, 1, labels=("2", "1")).label_array.tolist() == [0, 1]


@pytest.mark.parametrize(
    ("label", "reason"),
    [
        (None, "no label"),
        ("", "no label"),
        (float("nan"), "no label"),
        (3.7, "expected a label's name or whole number, got the number 3.7"),
        ({"a": 1}, "expected a label's name or whole number, got an object"),
    ],
)
def test_a_row_without_a_sound_label_is_a_bad_row(label, reason):
    with pytest.raises(DataError, match=rf"data\.train: data\[1\]: {reason}; mend the line"):
        labelled("a", label, "b")


def test_zeros_and_ones_in_place_of_names_are_a_bad_row():
    with pytest.raises(DataError, match=r"data\[0\]: the label '0' twice; expected the names"):
        labelled([0, 1, 0], ["a"])


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (None, "'text' is null"),
        (" \n", "empty text in 'text'"),
        (7, "expected text in 'text', got the number 7"),
        ("half \ud83d", r"half a surrogate pair \(\\ud83d\), which is no character"),
    ],
)
def test_a_row_without_a_sound_text_is_a_bad_row(text, reason):
    with pytest.raises(DataError, match=rf"data\.train: data\[1\]: {reason}"):
        opened("plain", [{"text": "a"}, {"text": text}])
    with pytest.raises(DataError, match=r"data\[1\]: no column 'text'"):
        opened("plain", [{"text": "a"}, {"txt": "b"}])


def test_numbers_are_labels_of_regression():
    rows = [{"sentence1": "a", "sentence2": "b", "score": s} for s in (1, "2.5", -3.0)]
    source = opened("number", rows)
    assert source.label_array.tolist() == [1, 2.5, -3] and source.label_array.dtype == np.float32
    assert source[1] == {"text": ("a", "b"), "label": 2.5, "id": "data[1]"}
    assert source.select([2]).label_array.tolist() == [-3]


@pytest.mark.parametrize(
    ("number", "reason"),
    [
        (None, "no label"),
        ("", "no label"),
        ("high", "expected a number in 'label', got 'high'"),
        (True, "expected a number in 'label', got true"),
        (float("inf"), "expected a number in 'label', got the number inf"),
    ],
)
def test_what_is_no_number_is_a_bad_row(number, reason):
    with pytest.raises(DataError, match=rf"data\[0\]: {reason}"):
        opened("number", [{"text": "a", "label": number}])


def test_words_have_tags_the_tag_of_others_first():
    rows = [
        {"tokens": ["EU", "rejects"], "ner_tags": ["B-ORG", "O"]},
        {"tokens": ["Al", "of", "Ur"], "ner_tags": ["B-PER", "O", "B-LOC"]},
    ]
    source = opened("tagged", rows)
    assert source.label_names == ("O", "B-LOC", "B-ORG", "B-PER")
    assert source[1] == {"words": ["Al", "of", "Ur"], "tags": [3, 0, 1], "id": "data[1]"}
    assert not source.label_array.size and len(source.select([1])) == 1


def test_words_and_tags_may_be_divided_by_spaces_and_tags_be_numbers():
    source = opened("tagged", [{"words": "a b", "tags": "1 0"}], labels=("X", "Y"))
    assert source.label_names == ("X", "Y") and source[0]["tags"] == [1, 0]
    two_lists = opened("tagged", ([["a", "b"]], [["X", "Y"]]))
    assert two_lists[0]["words"] == ["a", "b"] and two_lists[0]["tags"] == [0, 1]


@pytest.mark.parametrize(
    ("words", "tags", "reason"),
    [
        (["a", "b"], ["X"], "2 words, but 1 tags"),
        (["a", ""], ["X", "X"], r"expected a word in tokens\[1\], got ''"),
        ([], [], "no words in 'tokens'"),
        (["a"], [None], "no tag for the word 'a'"),
        (["a"], 3, "expected a list in 'tags', got the number 3"),
    ],
)
def test_words_and_tags_that_do_not_match_are_a_bad_row(words, tags, reason):
    with pytest.raises(DataError, match=rf"data\[0\]: {reason}"):
        opened("tagged", [{"tokens": words, "tags": tags}])


def test_which_of_several_columns_of_tags_is_meant_must_be_said():
    row = {"tokens": ["a"], "pos_tags": ["N"], "ner_tags": ["O"]}
    with pytest.raises(DataError, match=r"columns pos_tags, ner_tags of data could each be the ta"):
        opened("tagged", [row])
    assert opened("tagged", [row], label_column="ner_tags").label_names == ("O",)


CONTEXT = "It was Ada, not Bo."


@pytest.mark.parametrize(
    ("answers", "expected"),
    [
        ({"text": ["Ada", "Bo"], "answer_start": [7, 16]}, [("Ada", 7), ("Bo", 16)]),
        ([{"text": "Ada", "answer_start": 7}], [("Ada", 7)]),
        ([("Ada", 7)], [("Ada", 7)]),
        (["Ada"], [("Ada", 7)]),
        ("Bo", [("Bo", 16)]),
        ({"text": [], "answer_start": []}, []),
        ([], []),
        (None, []),
        ("", []),
    ],
)
def test_answers_are_texts_and_where_they_start(answers, expected):
    row = {"question": "Who?", "context": CONTEXT, "answers": answers}
    example = opened("answers", [row])[0]
    assert example["answers"] == expected
    assert (example["question"], example["context"]) == ("Who?", CONTEXT)


@pytest.mark.parametrize(
    ("answers", "reason"),
    [
        ([("Ada", 6)], r"the answer 'Ada' is not at character 6 of the context, where ' Ad' stan"),
        ("Eve", "the answer 'Eve' does not occur in the context"),
        ([("Ada", "7")], "expected the character where an answer starts, got '7'"),
        ({"text": ["Ada", "Bo"], "answer_start": [7]}, "2 answers, but 1 starts"),
        ([{"text": None}], "expected an answer's text, got null"),
        (3, "expected answers with text and answer_start, got the number 3"),
    ],
)
def test_answers_that_do_not_stand_in_the_context_are_a_bad_row(answers, reason):
    with pytest.raises(DataError, match=rf"data\[0\]: {reason}"):
        opened("answers", [{"question": "Who?", "context": CONTEXT, "answers": answers}])


@pytest.mark.parametrize(
    ("row", "texts", "score"),
    [
        ({"anchor": "a", "positive": "b"}, ("a", "b"), None),
        ({"anchor": "a", "positive": "b", "negative": "c"}, ("a", "b", "c"), None),
        ({"sentence1": "a", "sentence2": "b", "score": 4}, ("a", "b"), 4.0),
    ],
)
def test_pairs_are_found_by_name_with_what_is_none_and_the_score(row, texts, score):
    example = opened("pairs", [row])[0]
    assert example["texts"] == texts and example["score"] == score


def test_columns_of_pairs_may_be_named():
    row = {"left": "a", "right": "b", "near": 0.5}
    named = {"text_column": "left", "pair_column": "right", "label_column": "near"}
    example = opened("pairs", [row], **named)[0]
    assert example["texts"] == ("a", "b") and example["score"] == 0.5
    with pytest.raises(
        DataError, match=r"data has no two columns of texts .* Its columns: left, r"
    ):
        opened("pairs", [row])


def test_two_lists_are_texts_and_labels_by_kind():
    texts = ["a", "b", "c"]
    assert opened("labelled", (texts, ["x", "y", "x"])).label_array.tolist() == [0, 1, 0]
    assert opened("labelled", (texts, np.array([3, 4, 3]))).label_names == ("3", "4")
    hot = opened("labelled", (texts, np.array([[1, 0], [1, 1], [0, 0]])))
    assert hot.multi_label and hot.label_array.tolist() == [[1, 0], [1, 1], [0, 0]]
    assert opened("number", (texts, np.array([0.5, 1, 2]))).label_array.tolist() == [0.5, 1, 2]
    pairs = opened("labelled", ([("a", "b"), ("c", "d")], [0, 1]))
    assert pairs[1]["text"] == ("c", "d")
    assert opened("pairs", (["a"], ["b"]))[0]["texts"] == ("a", "b")
    assert opened("dialogue", (["Hi?"], ["Ho."]))[0]["messages"][1]["content"] == "Ho."


@pytest.mark.parametrize(
    ("kind", "data", "message"),
    [
        ("labelled", (["a", "b"], [0]), "expected one label for each text, got 2 and 1"),
        ("labelled", (["a"], [0.5]), "data.labels: expected .N. whole numbers or strings"),
        ("labelled", ([], []), "data: has no rows"),
        ("plain", (["a"], ["b"]), "expected a path or a list of dicts or strings, got two lists"),
        ("plain", [], "data: has no rows"),
        ("plain", 7, "expected a path, a list of dicts or strings, .* got int. See DataSpec.path"),
        ("plain", namedtuple("DataFrame", "columns")([]), "got DataFrame. See DataSpec.path"),
        ("plain", {"trian": ["a"]}, "got 'trian'. Did you mean 'train'"),
        ("plain", {"test": ["a"]}, "expected a split named train, got test"),
    ],
)
def test_python_values_that_are_no_rows_are_an_error(kind, data, message):
    with pytest.raises(DataError, match=message):
        opened(kind, data)
