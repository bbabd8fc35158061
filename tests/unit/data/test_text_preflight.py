"""What there is to know of texts before they are trained on."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from tunekit.data.examples import Splits
from tunekit.data.spec import DataSpec
from tunekit.data.text_preflight import (
    Bin,
    copies,
    drawn,
    histogram,
    lengths_of,
    near_copies,
    numbers,
    read_lengths,
    split_facts,
    tag_counts,
    texts_of,
    unknown_words,
)
from tunekit.data.text_source import TextKind, open_text

LENIENT = DataSpec(on_duplicate="ignore", on_unreadable="skip", validation_fraction=0)


def opened(kind: TextKind, spec: DataSpec = LENIENT, **splits: list[Any]) -> Splits:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return open_text(splits, spec, kind, seed=0)


def labelled(*pairs: tuple[str, Any]) -> list[dict[str, Any]]:
    return [{"text": text, "label": label} for text, label in pairs]


@dataclass(frozen=True)
class Rows:
    """Examples with their token ids written in them."""

    examples: list[dict[str, Any]]

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.examples[index]

    def name(self, index: int) -> str:
        return f"row {index}"


def encoder(length: int) -> Any:
    def encode(example: dict[str, Any], rng: np.random.Generator | None) -> dict[str, Any]:
        assert rng is not None
        return {name: np.array(value[:length]) for name, value in example.items()}

    return encode


def test_each_split_has_its_rows_labels_copies_and_what_was_skipped():
    train = labelled(("good", "yes"), ("good", "yes"), ("bad", "no"), ("", "no"), ("so", None))
    facts = split_facts(opened("labelled", train=train, test=labelled(("fine", "yes"))))
    assert [(one.name, one.rows, one.copies, one.skipped) for one in facts] == [
        ("train", 3, 1, 2),
        ("test", 1, 0, 0),
    ]
    assert dict(facts[0].labels) == {"no": 1, "yes": 2}
    assert dict(facts[0].reasons) == {
        "data.train[3]": "empty text in 'text'",
        "data.train[4]": "no label",
    }


def test_rows_skipped_before_the_validation_was_drawn_count_once():
    rows = labelled(*((f"text {i}", i % 2) for i in range(20)), ("", 1))
    spec = DataSpec(on_unreadable="skip", validation_fraction=0.5)
    assert [one.skipped for one in split_facts(opened("labelled", spec, train=rows))] == [1, 0]


def test_texts_without_any_of_several_labels_are_counted():
    rows = labelled(("one", ["a", "b"]), ("two", ["a"]), ("three", []))
    (facts,) = split_facts(opened("labelled", train=rows))
    assert (dict(facts.labels), facts.unlabelled) == ({"a": 2, "b": 1}, 1)


def test_labels_that_are_numbers_have_a_spread():
    found = numbers(opened("number", train=labelled(("a", 1), ("b", 2), ("c", 6))).train)
    assert found is not None
    assert (found.least, found.mean, found.most) == (1, 3, 6)
    assert found.deviation == pytest.approx(np.std([1, 2, 6]))
    assert numbers(opened("plain", train=["a"]).train) is None


def test_lengths_are_summed_up_and_what_lies_beyond_the_longest_is_counted():
    found = lengths_of(np.arange(1, 11), 8, 40)
    assert (found.texts, found.total, found.tokens, found.longest) == (10, 40, 55, 10)
    assert (found.cut_texts, found.cut_tokens) == (0.2, pytest.approx(3 / 55))


def test_a_histogram_has_round_bars_and_one_for_the_longest():
    lengths = np.array([1, 20, 21, 40, *[190] * 300, 5000])
    bars = histogram(lengths)
    assert bars[:2] == (Bin(1, 20, 2), Bin(21, 40, 2))
    assert bars[-1] == Bin(201, None, 1)
    assert sum(bar.count for bar in bars) == len(lengths)
    assert histogram(np.array([15, 17, 18])) == (Bin(15, 16, 1), Bin(17, 18, 2))
    assert histogram(np.array([0, 1])) == (Bin(1, 1, 2),)


def test_tokens_count_in_the_loss_after_cutting_and_texts_without_one_are_named():
    examples = [
        {"token_ids": [1, 2, 3, 4], "loss_weights": [0, 0, 0, 1]},
        {"token_ids": [1, 2], "loss_weights": [0, 1]},
    ]
    lengths, learned = read_lengths(Rows(examples), encoder(99), encoder(2), 2, 2)
    assert lengths.longest == 4 and lengths.cut_tokens == pytest.approx(2 / 6)
    assert learned is not None
    assert (learned.tokens, learned.silent, learned.silent_names) == (0.25, 1, ("row 0",))


def test_examples_of_two_texts_have_two_lengths_and_no_loss_of_tokens():
    def encode(example: Any, rng: Any) -> Any:
        return {"token_ids": (np.zeros(3), np.zeros(5))}

    lengths, learned = read_lengths(Rows([{}]), encode, encode, 8, 1)
    assert (lengths.texts, lengths.total, lengths.tokens, learned) == (2, 2, 8, None)


def test_copies_across_splits_and_under_two_labels_are_named():
    train = labelled(("good", "yes"), ("bad", "no"), ("bad", "yes"), ("fine", "yes"))
    found = copies(opened("labelled", train=train, test=labelled(("fine", "yes"))))
    assert found.across == (("train", "test", 1),)
    assert found.across_names == (("data.train[3]", "data.test[0]"),)
    assert (found.conflicts, found.conflict_names) == (1, (("data.train[1]", "data.train[2]"),))


def test_exact_copies_are_not_near_ones():
    text = "a long text that is written twice and then once more with a change"
    splits = opened("plain", train=[text, text, text + "."], test=[text])
    assert near_copies(splits).counts == (("train", "train", 1),)
    assert near_copies(splits).total == 2


def test_words_have_their_tags_counted():
    rows = [{"words": ["a", "b"], "tags": ["X", "O"]}, {"words": ["c"], "tags": ["X"]}]
    assert tag_counts(opened("tagged", train=rows).train) == (("O", 1), ("X", 2))


@pytest.mark.parametrize(
    ("example", "texts"),
    [
        ({"text": "a"}, ("a",)),
        ({"text": ("a", "b")}, ("a", "b")),
        ({"texts": ("a", "b", "c")}, ("a", "b", "c")),
        ({"words": ["a", "b"]}, ("a b",)),
        ({"question": "who", "context": "she"}, ("who",)),
        (
            {
                "messages": [
                    {"role": "system", "content": "s"},
                    {"role": "user", "content": "u"},
                    {"role": "assistant", "content": "a"},
                ]
            },
            ("u", "a"),
        ),
    ],
)
def test_an_example_is_told_apart_by_its_texts(example, texts):
    assert texts_of(example) == texts


@dataclass(frozen=True)
class Letters:
    """A token each letter; z is unknown."""

    ids: np.ndarray
    offsets: np.ndarray


def letters(texts: Any) -> list[Letters]:
    ids = [np.array([0 if letter == "z" else ord(letter) for letter in text]) for text in texts]
    return [
        Letters(one, np.stack([np.arange(len(one)), np.arange(len(one)) + 1], 1)) for one in ids
    ]


def test_unknown_words_are_counted_the_commonest_first():
    found = unknown_words(["azb", "zz", "abcd"], letters, 0)
    assert found is not None and (found.tokens, found.words) == (3 / 9, (("z", 3),))
    assert unknown_words(["z"], letters, None) is None


def test_of_many_examples_some_are_drawn_in_their_order():
    places = drawn(range(1000), 10)
    assert len(set(places)) == 10 and (np.diff(places) > 0).all()
    assert drawn(range(3), 10).tolist() == [0, 1, 2]
