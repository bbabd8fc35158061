"""Rows of files: each format, and what each finds wrong with a line."""

from __future__ import annotations

import json
import threading

import pytest

from tunekit.data import file_rows
from tunekit.data.csv_rows import csv_rows
from tunekit.data.file_rows import conll_rows, jsonl_rows, text_rows
from tunekit.data.json_rows import json_rows
from tunekit.data.rows import BadRow, JoinedRows
from tunekit.errors import DataError


@pytest.fixture
def written(tmp_path):
    """Returns a writer of files from bytes or text."""

    def write(name, content):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write


def everything(rows):
    """Returns (name, row or what is wrong with it) of all rows."""
    found = []
    for i in range(len(rows)):
        try:
            found.append((rows.name(i), rows.read(i)))
        except BadRow as error:
            found.append((rows.name(i), str(error)))
    return found


def test_jsonl_is_read_by_line_whatever_ends_the_lines(written):
    content = b'\xef\xbb\xbf{"a": 1}\r\n\n  \n{"a": "\xc3\xa9\\n"}\n{"a": 3}'
    assert everything(jsonl_rows(written("a.jsonl", content))) == [
        ("a.jsonl:1", {"a": 1}),
        ("a.jsonl:4", {"a": "é\n"}),
        ("a.jsonl:5", {"a": 3}),
    ]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"text": "a" "b"}', "invalid JSON (Expecting ',' delimiter at character 14)"),
        (b'{"text": "a"', "invalid JSON (Expecting ',' delimiter at character 13)"),
        (b"[" * 200_000, "invalid JSON (nested too deeply)"),
        (b"9" * 5000, "invalid JSON (Exceeds the limit (4300 digits)"),
        (b'{"text": "\xff"}', "not UTF-8 (byte 0xff at 11)"),
        (b'{"text": "a", "text": "b"}', "the key 'text' occurs twice"),
        (b"[1]", 'expected an object such as {"text": ...}, got a list'),
        (b"7", 'expected an object such as {"text": ...}, got the number 7'),
        (b"null", 'expected an object such as {"text": ...}, got null'),
    ],
)
def test_a_bad_line_of_jsonl_says_what_is_wrong_and_spares_the_next(written, line, reason):
    rows = jsonl_rows(written("a.jsonl", line + b'\n{"text": "fine"}\n'))
    (name, told), following = everything(rows)
    assert name == "a.jsonl:1" and told.startswith(reason)
    assert following == ("a.jsonl:2", {"text": "fine"})


def test_a_line_of_more_than_10_mb_is_not_read(written):
    long = b'{"text": "' + b"a" * 10_500_000 + b'"}'
    rows = jsonl_rows(written("a.jsonl", long + b'\n{"text": "fine"}\n'))
    assert everything(rows) == [
        ("a.jsonl:1", "10.5 MB long, where at most 10 MB are read"),
        ("a.jsonl:2", {"text": "fine"}),
    ]


def test_a_long_line_is_found_without_holding_it_in_memory(written, monkeypatch):
    monkeypatch.setattr(file_rows, "MAX_ROW_BYTES", 100)
    path = written("a.jsonl", b"x" * 1000 + b"\n{}\n" + b"y" * 5000)
    lines = list(file_rows.file_lines(path))
    assert [(start, size, number) for start, size, number, _ in lines] == [
        (0, 1001, 1),
        (1001, 3, 2),
        (1004, 5000, 3),
    ]
    assert max(len(content) for *_, content in lines) == 101


def test_utf_16_is_an_error_that_names_the_remedy(written):
    with pytest.raises(DataError, match=r"a\.jsonl is UTF-16; save it as UTF-8"):
        jsonl_rows(written("a.jsonl", '{"a": 1}\n'.encode("utf-16")))


def test_threads_may_read_one_file_at_once(written):
    count, wrong = 2000, []
    lines = [json.dumps({"number": i, "text": "x" * (i % 97)}) for i in range(count)]
    rows = jsonl_rows(written("a.jsonl", "\n".join(lines)))

    def read(first):
        wrong.extend(i for i in range(first, count, 4) if rows.read(i)["number"] != i)

    threads = [threading.Thread(target=read, args=(first,)) for first in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_csv_cells_may_hold_commas_quotes_and_line_breaks(written):
    content = b'\xef\xbb\xbftext,label\r\n"a, ""b""\r\nc",x\r\n\r\n5" disk,y\r\n'
    assert everything(csv_rows(written("a.csv", content))) == [
        ("a.csv:2", {"text": 'a, "b"\r\nc', "label": "x"}),
        ("a.csv:5", {"text": '5" disk', "label": "y"}),
    ]


@pytest.mark.parametrize(("name", "mark"), [("a.tsv", "\t"), ("a.csv", ";"), ("a.csv", ",")])
def test_cells_are_divided_by_tabs_semicolons_or_commas(written, name, mark):
    rows = csv_rows(written(name, f"text{mark}label\nyes{mark}1\n"))
    assert rows.read(0) == {"text": "yes", "label": "1"}


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"a,b,c", "expected 2 cells as in the header, got 3"),
        (b"a", "expected 2 cells as in the header, got 1"),
        (b"\xff,b", "not UTF-8 (byte 0xff at 1)"),
        (b'"a"b,c', "invalid CSV (',' expected after '\"')"),
    ],
)
def test_a_bad_record_of_a_csv_says_what_is_wrong_and_spares_the_next(written, line, reason):
    rows = csv_rows(written("a.csv", b"text,label\n" + line + b"\nfine,1\n"))
    assert everything(rows) == [("a.csv:2", reason), ("a.csv:3", {"text": "fine", "label": "1"})]


def test_a_quote_that_is_never_closed_is_told_at_its_own_line(written):
    rows = csv_rows(written("a.csv", 'text,label\nfine,1\n"open,2\nmore,3\n'))
    assert everything(rows)[1:] == [("a.csv:3", "invalid CSV (a quote is never closed)")]


def test_a_cell_of_a_csv_may_be_longer_than_pythons_limit(written):
    rows = csv_rows(written("a.csv", "text,label\n" + "a" * 200_000 + ",1\n"))
    assert len(rows.read(0)["text"]) == 200_000


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", r"a\.csv is empty; expected a header"),
        ("text,label,text\n", r"the header names 'text' twice"),
        (b"te\xffxt,label\n", r"the header cannot be read: not UTF-8"),
    ],
)
def test_a_bad_header_of_a_csv_is_an_error(written, content, message):
    with pytest.raises(DataError, match=message):
        csv_rows(written("a.csv", content))


def test_plain_text_is_a_line_each_where_no_blank_lines_divide_it(written):
    lines = [f"line {i}" for i in range(50)]
    rows = text_rows(written("a.txt", "\n".join([*lines[:30], "", *lines[30:]])))
    assert [row["text"] for _, row in everything(rows)] == lines
    assert rows.name(30) == "a.txt:32"


def test_plain_text_is_a_paragraph_each_where_blank_lines_divide_it(written):
    rows = text_rows(written("a.txt", "One\r\ntwo.\r\n\r\n\r\nThree.\r\n\r\nFour"))
    assert everything(rows) == [
        ("a.txt:1", {"text": "One\ntwo."}),
        ("a.txt:5", {"text": "Three."}),
        ("a.txt:7", {"text": "Four"}),
    ]


def test_conll_sentences_are_the_first_and_the_last_cell_of_each_line(written):
    content = "-DOCSTART- -X- O\n\nEU NNP B-ORG\nrejects VBZ O\n\nPeter\tB-PER\n"
    assert everything(conll_rows(written("a.conll", content))) == [
        ("a.conll:3", {"tokens": ["EU", "rejects"], "tags": ["B-ORG", "O"]}),
        ("a.conll:6", {"tokens": ["Peter"], "tags": ["B-PER"]}),
    ]


def test_a_word_without_a_tag_is_a_bad_row(written):
    assert everything(conll_rows(written("a.conll", "EU O\nrejects\n"))) == [
        ("a.conll:1", "the word 'rejects' has no tag")
    ]


@pytest.mark.parametrize(
    "content",
    [
        '[{"text": "a"}, {"text": "b"}]',
        '{"version": 2, "data": [{"text": "a"}, {"text": "b"}]}',
        '["a", "b"]',
        '\ufeff[{"text": "a"},\n {"text": "b"}]',
    ],
)
def test_json_rows_are_an_array_or_the_one_inside_an_object(written, content):
    rows = json_rows(written("a.json", content))
    assert everything(rows) == [("a.json[0]", {"text": "a"}), ("a.json[1]", {"text": "b"})]


def test_json_lines_in_a_file_called_json_are_read_by_line(written):
    rows = json_rows(written("a.json", '{"text": "a"}\n{"text": "b"}\n'))
    assert everything(rows) == [("a.json:1", {"text": "a"}), ("a.json:2", {"text": "b"})]


def test_questions_nested_as_in_squad_are_a_row_each(written):
    questions = [{"id": "1", "question": q, "answers": []} for q in ("Who?", "When?")]
    tree = {"data": [{"title": "T", "paragraphs": [{"context": "C", "qas": questions}]}]}
    assert [row for _, row in everything(json_rows(written("a.json", json.dumps(tree))))] == [
        {"question": "Who?", "context": "C", "answers": []},
        {"question": "When?", "context": "C", "answers": []},
    ]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('[{"a": 1},\n {"a" 2}]', r"a\.json:2: invalid JSON \(Expecting ':' delimiter at char"),
        (b'["\xff"]', r"a\.json is not UTF-8"),
        ('{"a": [{}], "b": [{}]}', r"expected an array of rows in .*; it has a, b"),
        ("7", r"expected an array of rows in .*a\.json, got 7"),
        (
            '{"data": [{"paragraphs": [{"qas": [{}]}]}]}',
            r"not nested as SQuAD.*KeyError: 'question",
        ),
    ],
)
def test_json_that_is_no_table_is_an_error(written, content, message):
    with pytest.raises(DataError, match=message):
        json_rows(written("a.json", content))


def test_rows_of_several_files_follow_each_other_under_their_own_names(written):
    rows = JoinedRows(
        tuple(jsonl_rows(written(f"{i}.jsonl", '{"a": 1}\n{"a": 2}\n')) for i in range(2))
    )
    assert [rows.name(i) for i in range(len(rows))] == [
        "0.jsonl:1",
        "0.jsonl:2",
        "1.jsonl:1",
        "1.jsonl:2",
    ]
    assert rows.read(3) == {"a": 2}
