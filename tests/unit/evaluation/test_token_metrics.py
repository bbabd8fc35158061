from __future__ import annotations

import json

import numpy as np
import pytest
from seqeval.metrics import f1_score
from seqeval.scheme import BILOU
from sklearn.metrics import f1_score as sklearn_f1

from tests.unit.tasks.labelled_texts import Texts, batches_of, wordpiece
from tunekit.errors import DataError, ModelError
from tunekit.evaluation.token_classification import (
    MISSING,
    entity_metrics,
    evaluate,
    word_metrics,
)
from tunekit.tasks.token_classification import TokenClassification

NAMES = ("O", "B-PER", "I-PER")
TOKENIZER = wordpiece(("ada", "love", "##lace", "met", "bob"))
TASK = TokenClassification(NAMES, "bio")
SOURCE = Texts(
    [
        {"words": ["met", "Bob", "Bob", "Ada", "met"], "tags": [0, 1, 1, 1, 0]},
        {"words": ["Ada", "Lovelace", "met"], "tags": [1, 2, 0]},
    ],
    NAMES,
)


def by_piece(inputs):
    """Says of "ada", "bob" and "love" what they begin or go on with, of "met" an O."""
    ids = np.asarray(inputs["token_ids"])
    tag_of = {"ada": 1, "bob": 1, "love": 2}
    tags = np.vectorize(lambda i: tag_of.get(TOKENIZER.token(i), 0))(ids)
    return 5.0 * (np.arange(3) == tags[..., None]).astype(np.float32)


def judged(source=SOURCE, task=TASK, outputs=by_piece, max_length=16):
    batches = batches_of(source, task, TOKENIZER, max_length=max_length, batch_size=3)
    return evaluate(task, source, batches, outputs)


def test_tags_that_are_all_right_find_every_entity():
    metrics = judged()
    assert (metrics["f1"], metrics["accuracy"], metrics["words"]) == (1.0, 1.0, 8)
    assert metrics["per_class"] == {"PER": {"precision": 1, "recall": 1, "f1": 1, "support": 4}}
    assert metrics["loss"] == pytest.approx(np.log(1 + 2 * np.exp(-5)), rel=1e-5)
    assert metrics["examples"] == 2
    assert TASK.monitor in metrics
    json.dumps(metrics)


def test_words_cut_off_are_counted_and_their_entities_are_lost():
    metrics = judged(max_length=4)
    # Of the first text two words fit, of the second two: 2 of 4 entities are found, whole.
    assert (metrics["words_missing"], metrics["words"]) == (4, 8)
    assert metrics["accuracy"] == 0.5
    assert (metrics["precision"], metrics["recall"]) == (1.0, 0.5)


def test_bio_counts_as_seqeval_does():
    true = [["B-PER", "I-PER", "O", "B-LOC"], ["O", "B-PER"]]
    given = [["B-PER", "O", "O", "B-LOC"], ["O", "I-PER"]]
    metrics = entity_metrics(true, given, scheme="bio")
    assert metrics["f1"] == pytest.approx(f1_score(true, given)) == pytest.approx(2 / 3)
    assert metrics["per_class"]["LOC"]["f1"] == 1.0
    assert metrics["per_class"]["PER"]["support"] == 2
    assert metrics["label_names"] == ["LOC", "PER"]


def test_bilou_counts_strictly():
    true = [["B-PER", "L-PER", "O", "U-LOC"]]
    given = [["B-PER", "I-PER", "O", "U-LOC"]]
    metrics = entity_metrics(true, given, scheme="bilou")
    strict = f1_score(true, given, mode="strict", scheme=BILOU)
    assert metrics["f1"] == pytest.approx(strict) == pytest.approx(2 / 3)
    by_other_letters = [["B-PER", "E-PER", "O", "S-LOC"]]
    assert entity_metrics(by_other_letters, by_other_letters, scheme="bilou")["f1"] == 1.0


@pytest.mark.parametrize("scheme", ["bio", "bilou"])
def test_f1_of_no_entity_at_all_is_undefined(scheme):
    metrics = entity_metrics([["O", "O"]], [["O", "O"]], scheme=scheme)
    assert (metrics["f1"], metrics["per_class"]) == (None, {})


@pytest.mark.parametrize(("scheme", "tag"), [("bio", "B-X"), ("bilou", "U-X")])
def test_entities_where_there_are_none_are_wrong(scheme, tag):
    metrics = entity_metrics([["O", "O"]], [["O", tag]], scheme=scheme)
    assert (metrics["f1"], metrics["precision"]) == (0.0, 0.0)
    assert metrics["per_class"]["X"] == {
        "precision": None,
        "recall": None,
        "f1": None,
        "support": 0,
    }


def test_tags_without_a_scheme_are_judged_word_by_word():
    task = TokenClassification(NAMES, "none")
    source = Texts([{"words": ["Ada", "met", "Bob", "met"], "tags": [1, 0, 0, 0]}], NAMES)
    metrics = judged(source, task)
    assert metrics["accuracy"] == 0.75
    assert metrics["f1_macro"] == pytest.approx(np.mean([0.8, 2 / 3]))
    assert metrics["confusion_matrix"] == [[2, 1, 0], [0, 1, 0], [0, 0, 0]]
    assert metrics["absent_labels"] == ["I-PER"]
    assert "f1" not in metrics


def test_macro_f1_of_words_is_scikit_learns_over_the_tags_there_are():
    rng = np.random.default_rng(0)
    true, given = rng.integers(0, 3, 50), rng.integers(-1, 3, 50)
    metrics = word_metrics(true, given, ("a", "b", "c", "d"))
    expected = sklearn_f1(true, given, labels=[0, 1, 2], average="macro")
    assert metrics["f1_macro"] == pytest.approx(expected)
    assert np.sum(metrics["confusion_matrix"]) == (given != MISSING).sum() < 50
    assert metrics["per_class"]["d"]["f1"] is None


def test_words_that_were_all_cut_off_are_all_wrong():
    metrics = word_metrics(np.asarray([0, 1]), np.asarray([MISSING, MISSING]), ("a", "b"))
    assert metrics["f1_macro"] == 0.0
    assert metrics["confusion_matrix"] == [[0, 0], [0, 0]]


def test_nothing_to_evaluate_is_an_error():
    with pytest.raises(DataError, match="at least one example to evaluate on"):
        evaluate(TASK, SOURCE, [], by_piece)


def test_logits_that_are_not_finite_are_refused():
    with pytest.raises(ModelError, match="the loss is not finite"):
        judged(outputs=lambda inputs: by_piece(inputs) * np.nan)
