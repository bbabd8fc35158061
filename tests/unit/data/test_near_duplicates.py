"""Texts that are nearly the same are found, in one split or in two."""

from __future__ import annotations

import random
from itertools import combinations

import numpy as np
import pytest

from tunekit.data.near_duplicates import (
    THRESHOLD,
    Candidates,
    NearDuplicates,
    near_duplicates,
    shingles_of,
)

STORY = "the quick brown fox jumps over the lazy dog while seven wizards box in the quiet park"


def candidates(name: str, *texts: str) -> Candidates:
    sizes = np.array([len(text) for text in texts], np.int64)
    return Candidates(texts.__getitem__, lambda i: f"{name}:{i}", np.arange(len(texts)), sizes)


def found(limits: dict[str, int] | None = None, **splits: list[str]) -> NearDuplicates:
    named = {name: candidates(name, *texts) for name, texts in splits.items()}
    return near_duplicates(named, **(limits or {}))


def jaccard(first: str, second: str) -> float:
    ours, theirs = shingles_of(first), shingles_of(second)
    return len(ours & theirs) / len(ours | theirs)


def test_shingles_leave_case_and_punctuation_out():
    assert shingles_of("Hello, World!") == shingles_of("hello world")
    assert shingles_of("Hi.") == {"hi"}
    assert shingles_of("?!") == frozenset()


def test_a_text_of_the_test_that_is_nearly_one_of_train_is_found_with_its_similarity():
    other = STORY.replace("quiet", "noisy")
    result = found(train=["something else altogether", STORY], test=[other])
    assert result.counts == (("train", "test", 1),)
    assert result.between("train", "test") == 1 and result.between("train", "train") == 0
    (pair,) = result.pairs
    assert (pair.first, pair.first_split) == ("train:1", "train")
    assert (pair.second, pair.second_split) == ("test:0", "test")
    assert (
        pair.similarity == pytest.approx(jaccard(STORY, other), abs=5e-4)
        and 0.8 < pair.similarity < 1
    )


def test_a_text_counts_once_however_many_it_is_like():
    alike = [f"{STORY} {i}" for i in range(60)]
    assert found(train=alike).counts == (("train", "train", 59),)


def test_a_text_is_held_against_its_own_split_and_the_others():
    result = found(train=[STORY], test=[STORY + " a", STORY + " b"])
    assert result.counts == (("test", "test", 1), ("train", "test", 2))
    assert [pair.first_split for pair in result.pairs] == ["train", "train", "test"]


def test_texts_of_the_same_words_in_another_order_are_not_near():
    words = STORY.split()
    assert found(train=[STORY, " ".join(words[::-1]), "!", "?"]).counts == ()


def test_nearly_all_are_found_that_comparing_every_pair_finds():
    rng = random.Random(0)
    words = ["".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=6)) for _ in range(500)]
    texts = [" ".join(rng.choices(words, k=25)) for _ in range(100)]
    for text in texts[:100]:
        changed = text.split()
        changed[rng.randrange(25)] = rng.choice(words)
        texts.append(" ".join(changed))
    true = {j for i, j in combinations(range(200), 2) if jaccard(texts[i], texts[j]) >= THRESHOLD}
    assert len(true) > 80
    count = found(train=texts).between("train", "train")
    assert 0.97 * len(true) <= count <= len(true)


@pytest.mark.parametrize("limits", [{"most": 10}, {"most_bytes": 10 * len(STORY)}])
def test_of_many_texts_some_of_every_split_are_drawn_and_it_says_so(limits):
    result = found(limits, train=[STORY] * 30, test=[STORY] * 10)
    assert (result.compared, result.total) == (10, 40)
    assert result.between("train", "train") > 0 and result.between("train", "test") > 0


def test_without_texts_nothing_is_near():
    result = found(train=[])
    assert (result.compared, result.total, result.counts) == (0, 0, ())
