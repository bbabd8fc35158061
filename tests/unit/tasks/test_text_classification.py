from __future__ import annotations

import json
from dataclasses import asdict, replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import softmax
from sklearn.metrics import log_loss

from tests.unit.tasks.labelled_texts import batches_of, labelled, splits, wordpiece
from tunekit.errors import DataError
from tunekit.evaluation.text_classification import evaluate
from tunekit.tasks.image_classification import ImageClassification
from tunekit.tasks.spec import ClassificationSpec
from tunekit.tasks.text_classification import TextClassification

NAMES = ("bad", "good")
WORDS = ("bad", "good", "film", "##s", "a", "the", ".")
TOKENIZER = wordpiece(WORDS)
TASK = TextClassification(NAMES)
MULTI = TextClassification(NAMES, multi_label=True)
PAIRS = TextClassification(NAMES, pairs=True)
TEXTS = labelled(
    ["good film", "bad", "a good good film .", "films", "the bad film"], [1, 0, 1, 0, 0], NAMES
)


def counting(inputs):
    """Logits that count the words "bad" and "good" of each text, padding left out."""
    ids = np.asarray(inputs["token_ids"]) * np.asarray(inputs["padding_mask"])
    marks = [TOKENIZER.token_id(name) for name in NAMES]
    return np.stack([(ids == mark).sum(axis=1) for mark in marks], axis=1).astype(np.float32)


def encode(task, example, max_length=16, rng=None):
    return task.encoder(TOKENIZER, max_length)(example, rng)


def test_a_text_becomes_its_token_ids_and_its_label():
    columns = encode(TASK, {"text": "Good films.", "label": 1})
    expected = ["[CLS]", "good", "film", "##s", ".", "[SEP]"]
    assert [TOKENIZER.token(i) for i in columns["token_ids"]] == expected
    assert (columns["label"].dtype, int(columns["label"])) == (np.int32, 1)
    assert columns.keys() == {"token_ids", "label"}


def test_a_long_text_is_cut_at_its_end_and_keeps_its_special_tokens():
    ids = encode(TASK, {"text": "good film a the bad"}, max_length=4)["token_ids"]
    assert [TOKENIZER.token(i) for i in ids] == ["[CLS]", "good", "film", "[SEP]"]


def test_the_tokens_of_a_pair_say_which_text_they_are_of():
    columns = encode(PAIRS, {"text": ("good film", "bad"), "label": 0})
    assert columns["token_types"].tolist() == [0, 0, 0, 0, 1, 1]
    assert len(columns["token_ids"]) == 6


def test_of_a_long_pair_the_longer_text_is_cut():
    columns = encode(PAIRS, {"text": ("bad", "good film a the film")}, max_length=7)
    tokens = [TOKENIZER.token(i) for i in columns["token_ids"]]
    assert tokens == ["[CLS]", "bad", "[SEP]", "good", "film", "a", "[SEP]"]


def test_the_model_is_told_the_types_of_pairs_only():
    (batch,) = batches_of(labelled([("good", "bad")], [1], NAMES), PAIRS, TOKENIZER, batch_size=1)
    assert PAIRS.inputs(batch).keys() == {"token_ids", "padding_mask", "token_types"}
    first = next(batches_of(TEXTS, TASK, TOKENIZER))
    assert TASK.inputs(first).keys() == {"token_ids", "padding_mask"}


def test_binding_reads_labels_and_pairs_from_the_training_texts():
    spec = ClassificationSpec(label_smoothing=0.1, top_k=2)
    task = TextClassification.bind(spec, splits(TEXTS))
    assert task == TextClassification(NAMES, label_smoothing=0.1, top_k=2)
    pairs = labelled([("good", "bad")], [1], NAMES)
    assert TextClassification.bind(spec, splits(pairs)).pairs


def test_balanced_class_weights_are_those_of_images():
    spec = ClassificationSpec(class_weights="balanced")
    expected = ImageClassification.bind(spec, TEXTS).class_weights
    assert TextClassification.bind(spec, splits(TEXTS)).class_weights == expected == (5 / 6, 5 / 4)


def test_several_labels_a_text_refuse_a_task_of_one():
    source = labelled(["good"], [[1.0, 0.0]], NAMES, multi_label=True)
    with pytest.raises(DataError, match="several labels an example"):
        TextClassification.bind(ClassificationSpec(multi_label=False), splits(source))


@pytest.mark.parametrize("multi_label", [False, True])
def test_its_loss_is_that_of_images(multi_label):
    options = {"label_smoothing": 0.1, "class_weights": (0.5, 2.0), "multi_label": multi_label}
    task, images = TextClassification(NAMES, **options), ImageClassification(NAMES, **options)
    labels = jnp.asarray([[1.0, 0.0], [0.0, 1.0]] if multi_label else [1, 0])
    batch = {"label": labels, "weight": jnp.asarray([1.0, 0.5])}
    logits = jnp.asarray([[2.0, -1.0], [0.5, 0.0]])
    ready = task.augment_batch(jax.random.key(0), batch)
    assert ready["target"].shape == (2, 2)
    assert task.loss(logits, ready) == images.loss(logits, ready)


def test_the_evaluated_loss_is_scikit_learns_over_texts_in_any_order():
    metrics = evaluate(TASK, TEXTS, batches_of(TEXTS, TASK, TOKENIZER, batch_size=2), counting)
    logits = np.asarray([[0, 1], [1, 0], [0, 2], [0, 0], [1, 0]], np.float64)
    expected = log_loss(TEXTS.label_array, softmax(logits, axis=1))
    assert metrics["loss"] == pytest.approx(expected, rel=1e-6)
    assert (metrics["accuracy"], metrics["examples"]) == (1.0, 5)
    assert metrics[TASK.monitor] == 1.0
    json.dumps(metrics)


def test_several_labels_are_judged_label_by_label():
    source = labelled(["good film", "bad"], np.eye(2, dtype=np.float32), NAMES, multi_label=True)
    metrics = evaluate(
        MULTI, source, batches_of(source, MULTI, TOKENIZER), lambda x: 4 * counting(x) - 2
    )
    # "good film" is said to be good and is labelled bad; of "bad" the same is true.
    assert (metrics["f1_micro"], metrics["accuracy"]) == (0.0, 0.0)
    assert MULTI.monitor in metrics


def test_predictions_come_in_the_order_of_the_texts():
    texts = ["a film . . . . the bad film", "good", "bad"]
    found = TASK.predict(texts, TOKENIZER, 16, counting, batch_size=2)
    assert [p.label for p in found] == ["bad", "good", "bad"]
    assert [p.id for p in found] == texts
    assert found[1].probability == pytest.approx(1 / (1 + np.exp(-1)))


def test_a_batch_of_predictions_equals_each_alone():
    texts = ["good", "bad a film", "good good good bad . . ."]
    together = TASK.predict(texts, TOKENIZER, 16, counting)
    assert together == [TASK.predict(text, TOKENIZER, 16, counting)[0] for text in texts]


def test_labels_above_the_threshold_are_given():
    (found,) = MULTI.predict(["good"], TOKENIZER, 16, counting, threshold=0.6)
    assert found.labels == ("good",)


def test_pairs_are_predicted_as_pairs():
    (found,) = PAIRS.predict([("good film", "good")], TOKENIZER, 16, counting)
    assert (found.label, found.id) == ("good", "good film / good")


def test_no_text_has_no_prediction():
    assert TASK.predict([], TOKENIZER, 16, counting) == []


@pytest.mark.parametrize(
    ("task", "item", "message"),
    [
        (TASK, 3, r"items\[1\]: expected a text, got 3"),
        (TASK, ("good", "bad"), r"items\[1\]: expected a text, got \('good', 'bad'\)"),
        (TASK, "  ", r"items\[1\]: expected a text, got an empty one"),
        (PAIRS, "good", r"items\[1\]: expected a pair of texts, \(text, text\), got 'good'"),
        (PAIRS, ("good", ""), r"items\[1\]: expected a pair .* got an empty one"),
    ],
)
def test_what_is_no_text_is_refused_by_its_place(task, item, message):
    first = ("good", "bad") if task is PAIRS else "good"
    with pytest.raises(DataError, match=message):
        task.predict([first, item], TOKENIZER, 16, counting)


def test_a_task_survives_json():
    task = replace(TASK, class_weights=(1.0, 2.0), pairs=True)
    read = json.loads(json.dumps(asdict(task)))
    tuples = {k: tuple(v) if isinstance(v, list) else v for k, v in read.items()}
    assert TextClassification(**tuples) == task
