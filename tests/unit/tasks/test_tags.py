from __future__ import annotations

import pytest

from tunekit.errors import DataError
from tunekit.tasks.tags import continued, entity_spans, tag_scheme, words_of


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (("O", "B-PER", "I-PER"), "bio"),
        (("I-PER", "O"), "bio"),
        (("B-PER", "I-PER", "L-PER", "O", "U-LOC"), "bilou"),
        (("B-PER", "I-PER", "E-PER", "O", "S-LOC"), "bilou"),
        (("NOUN", "VERB", "O"), "none"),
        (("B-PER", "NOUN"), "none"),
        (("O",), "none"),
        ((), "none"),
    ],
)
def test_the_scheme_is_seen_in_the_names_of_the_tags(names, expected):
    assert tag_scheme(names, "auto") == expected


def test_a_recipe_may_say_that_tags_mark_no_entities():
    assert tag_scheme(("O", "B-PER"), "none") == "none"
    assert tag_scheme(("O", "B-PER"), "bilou") == "bilou"


@pytest.mark.parametrize("asked", ["bio", "bilou"])
def test_tags_of_another_scheme_than_the_one_asked_for_are_listed(asked):
    with pytest.raises(DataError, match=f"task.scheme: '{asked}' has tags .* the data has NOUN, X"):
        tag_scheme(("B-PER", "NOUN", "O", "X"), asked)


@pytest.mark.parametrize(
    ("tags", "expected"),
    [
        ("B-PER I-PER O B-LOC", [("PER", 0, 2), ("LOC", 3, 4)]),
        ("B-PER B-PER", [("PER", 0, 1), ("PER", 1, 2)]),
        ("O I-PER I-PER", [("PER", 1, 3)]),
        ("B-PER I-LOC", [("PER", 0, 1), ("LOC", 1, 2)]),
        ("O O", []),
    ],
)
def test_entities_of_bio_are_read_as_conlleval_does(tags, expected):
    assert entity_spans(tags.split(), "bio") == expected


@pytest.mark.parametrize(
    ("tags", "expected"),
    [
        ("B-PER I-PER L-PER O U-LOC", [("PER", 0, 3), ("LOC", 4, 5)]),
        ("B-PER E-PER S-LOC", [("PER", 0, 2), ("LOC", 2, 3)]),
        ("B-PER I-PER O", []),
        ("I-PER L-PER", []),
        ("B-PER L-LOC", []),
    ],
)
def test_entities_of_bilou_are_whole_or_none(tags, expected):
    assert entity_spans(tags.split(), "bilou") == expected


def test_tags_without_a_scheme_mark_nothing():
    assert entity_spans(["B-PER", "I-PER"], "none") == []


def test_what_goes_on_in_an_entity_does_not_begin_it():
    assert [continued(tag) for tag in ("B-PER", "I-PER", "U-LOC", "O")] == [
        "I-PER",
        "I-PER",
        "U-LOC",
        "O",
    ]


def test_a_text_is_split_at_white_space_and_round_marks():
    words, spans = words_of("Dr. Müller's  3.5\tkm.")
    assert words == ["Dr", ".", "Müller", "'", "s", "3", ".", "5", "km", "."]
    assert ["Dr. Müller's  3.5\tkm."[slice(*span)] for span in spans] == words
    assert words_of(" ") == ([], [])
