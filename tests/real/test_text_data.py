"""Real texts: moods of tweets and classes of words; small shares of each."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

import tunekit
from examples.corpora import brown, tweets, word_class
from tests.assets import minilm
from tunekit.models.encoded import Encoded
from tunekit.models.spec import HeadSpec

Rows = list[dict[str, Any]]
Splits = dict[str, Rows]


def splits(folder: Path, train: int | None = None, validation: int | None = None) -> Splits:
    """The first rows of a folder's train.jsonl and test.jsonl."""
    counts = {"train": train, "test": validation}
    read = {
        name: [json.loads(line) for line in (folder / f"{name}.jsonl").read_text().splitlines()]
        for name in counts
    }
    return {"train": read["train"][:train], "validation": read["test"][:validation]}


def frozen(encoded: list[Encoded]) -> np.ndarray:
    """MiniLM's hidden states as pretrained, [N, T, D]."""
    return tunekit.load_model(minilm()).hidden_states([each.ids for each in encoded])


def regressed(features: dict[str, np.ndarray], labels: dict[str, list[str]]) -> float:
    """Accuracy on the validation part of a logistic regression fitted to the other."""
    found = LogisticRegression(max_iter=300).fit(features["train"], labels["train"])
    return float(found.score(features["validation"], labels["validation"]))


@pytest.fixture(scope="module")
def moods() -> Splits:
    return splits(tweets(100, 100))


@pytest.fixture(scope="module")
def sentences() -> Splits:
    read = splits(brown())
    # As few as one length of batches holds.
    short = {n: [row for row in rows if len(row["tokens"]) <= 20] for n, rows in read.items()}
    return {"train": short["train"][:150], "validation": short["validation"][:100]}


def mood_accuracy(data: Splits, method: str, rate: float) -> float:
    result = tunekit.finetune(
        minilm(),
        data,
        method=method,
        head=HeadSpec(pooling="avg"),
        epochs=2,
        learning_rate=rate,
        warmup="10%",
        batch_size=16,
        max_length=32,
        progress="none",
    )
    return result.metrics["accuracy"]


def test_moods_of_tweets_are_told_as_by_a_regression_on_frozen_vectors(moods):
    tokenizer = tunekit.load_model(minilm()).backbone.text_tokenizer()
    features, labels = {}, {}
    for name, rows in moods.items():
        encoded = tokenizer.encode_many([row["text"] for row in rows])
        pairs = zip(frozen(encoded), encoded, strict=True)
        features[name] = np.stack([states[: len(each.ids)].mean(axis=0) for states, each in pairs])
        labels[name] = [row["label"] for row in rows]
    reference = regressed(features, labels)
    lora = mood_accuracy(moods, "lora", 5e-3)
    # Of 300 held-out tweets, one standard error is 0.027.
    assert lora >= reference - 0.027 > 0.5


def test_words_are_tagged_as_by_a_regression_on_frozen_tokens_or_better(sentences):
    tokenizer = tunekit.load_model(minilm()).backbone.text_tokenizer()
    features, labels = {}, {}
    for name, rows in sentences.items():
        encoded = [tokenizer.encode_words(row["tokens"]) for row in rows]
        features[name] = np.concatenate(
            [
                states[[each.word_ids.tolist().index(word) for word in range(len(row["tokens"]))]]
                for states, each, row in zip(frozen(encoded), encoded, rows, strict=True)
            ]
        )
        labels[name] = [tag for row in rows for tag in row["tags"]]
    reference = regressed(features, labels)
    result = tunekit.finetune(
        minilm(),
        sentences,
        epochs=2,
        learning_rate=1e-3,
        warmup="10%",
        batch_size=8,
        max_length=32,
        progress="none",
    )
    print(f"regression {reference:.3f}, full {result.metrics['accuracy']:.3f}")
    assert result.metrics["accuracy"] >= reference
    assert set(result.model.labels) >= {"NOUN", "VERB", "PUNCT"}


@pytest.mark.parametrize(
    ("tag", "name"),
    [
        ("nn-tl", "NOUN"),
        ("np$", "PROPN"),
        ("nr", "PROPN"),
        ("bedz*", "VERB"),
        ("pps+bez", "PRON"),
        ("wdt+bez-nc", "DET"),
        ("wrb", "ADV"),
        ("*", "ADV"),
        ("to-hl", "ADP"),
        ("od", "ADJ"),
        ("cs", "CONJ"),
        ("cd-tl", "NUM"),
        ("``", "PUNCT"),
        (".-hl", "PUNCT"),
        ("fw-in+nn", "X"),
        ("wql", "X"),
    ],
)
def test_tags_of_the_brown_corpus_are_of_these_classes(tag, name):
    assert word_class(tag) == name


def test_tweets_have_every_mood_equally_often_and_none_twice(moods):
    assert [sum(row["label"] == mood for row in moods["train"]) for mood in
            ("negative", "neutral", "positive")] == [100, 100, 100]  # fmt: skip
    texts = [row["text"] for rows in moods.values() for row in rows]
    assert len(set(texts)) == len(texts) == 600


def test_documents_of_the_brown_corpus_are_on_one_side(sentences):
    documents = [{row["document"] for row in rows} for rows in sentences.values()]
    assert len(documents[0]) > 100 and not documents[0] & documents[1]
