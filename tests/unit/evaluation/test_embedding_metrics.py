from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import pearsonr, spearmanr
from sklearn.linear_model import LogisticRegression

from tests.reference import text_folders
from tests.unit.tasks.labelled_texts import Texts, batches_of, labelled, wordpiece
from tunekit.errors import DataError
from tunekit.evaluation.embedding import evaluate
from tunekit.evaluation.embedding_head import fit_head
from tunekit.models.loading import load_backbone
from tunekit.models.model import Model
from tunekit.models.spec import BackboneSpec
from tunekit.tasks.embedding import EmbeddingTask
from tunekit.tasks.text_classification import TextClassification

TOKENIZER = wordpiece("abcdefghijklmnopqrstuvwxyz")
TASK = EmbeddingTask("multiple_negatives", pooling="max")
ANGLES = {"a": 0, "b": 10, "c": 90, "d": 95, "e": 180, "f": 60}
"""Degrees of the vectors of texts of one letter."""


def on_a_circle(inputs):
    """Hidden states [N, T, 2] of which the largest are the angles' cosine and sine."""
    found = np.full((*inputs["token_ids"].shape, 2), -9, np.float32)
    for letter, angle in ANGLES.items():
        there = inputs["token_ids"] == TOKENIZER.token_id(letter)
        found[there] = [math.cos(math.radians(angle)), math.sin(math.radians(angle))]
    return found


def squared(first, second):
    return 2 - 2 * math.cos(math.radians(ANGLES[first] - ANGLES[second]))


def judged(task, source, batch_size=2, outputs=on_a_circle):
    batches = batches_of(source, task, TOKENIZER, batch_size=batch_size)
    return evaluate(task, source, batches, outputs)


def pairs(*texts, scores=()):
    scores = scores or [None] * len(texts)
    return Texts([{"texts": t, "score": s} for t, s in zip(texts, scores, strict=True)])


def test_ranks_are_those_among_the_second_texts_of_all_batches():
    # a: b at 10 degrees is nearest. c: d at 5. e: of b, d and f, the nearest is d at 85; f is 120.
    metrics = judged(TASK, pairs(("a", "b"), ("c", "d"), ("e", "f")))
    np.testing.assert_allclose(metrics["mrr"], (1 + 1 + 1 / 2) / 3)
    np.testing.assert_allclose(metrics["recall_at_1"], 2 / 3)
    assert metrics["recall_at_5"] == metrics["recall_at_10"] == 1
    assert metrics["examples"] == 3 and TASK.monitor in metrics


def test_accuracy_is_that_within_a_batch():
    source = pairs(("a", "b"), ("c", "d"), ("e", "f"))
    assert judged(TASK, source, batch_size=1)["accuracy"] == 1
    np.testing.assert_allclose(judged(TASK, source, batch_size=4)["accuracy"], 2 / 3)


def test_third_texts_are_candidates_too():
    # From a, b is at 10 degrees and the negative of the other pair, a itself, is not counted.
    metrics = judged(TASK, pairs(("a", "f", "b"), ("c", "d", "a")))
    np.testing.assert_allclose(metrics["mrr"], (1 / 2 + 1) / 2)


def test_what_another_pair_gives_the_same_text_is_not_held_against_it():
    metrics = judged(TASK, pairs(("a", "b"), ("a", "f"), ("c", "d")))
    assert metrics["mrr"] == 1


def test_vectors_that_are_all_the_same_find_nothing():
    same = judged(
        TASK,
        pairs(("a", "b"), ("c", "d"), ("e", "f")),
        outputs=lambda inputs: np.ones((*inputs["token_ids"].shape, 2), np.float32),
    )
    assert same["recall_at_1"] == 0
    np.testing.assert_allclose([same["alignment"], same["uniformity"]], 0, atol=1e-6)
    np.testing.assert_allclose(same["mrr"], 1 / 3)


def test_alignment_and_uniformity_are_those_of_wang_and_isola():
    metrics = judged(TASK, pairs(("a", "b"), ("c", "d"), ("e", "b")))
    aligned = [squared("a", "b"), squared("c", "d"), squared("e", "b")]
    np.testing.assert_allclose(metrics["alignment"], np.mean(aligned), rtol=1e-5)
    potentials = [math.exp(-2 * squared(x, y)) for x in "abcde" for y in "abcde" if x < y]
    np.testing.assert_allclose(metrics["uniformity"], math.log(np.mean(potentials)), rtol=1e-5)


def test_cosines_are_correlated_with_scores():
    rows, scores = [("a", "b"), ("a", "c"), ("c", "d"), ("e", "f")], (0.9, 0.3, 0.4, 0.1)
    task = EmbeddingTask("cosine", pooling="max")
    metrics = judged(task, pairs(*rows, scores=scores))
    cosines = [math.cos(math.radians(ANGLES[x] - ANGLES[y])) for x, y in rows]
    np.testing.assert_allclose(metrics["spearman"], spearmanr(cosines, scores)[0], rtol=1e-6)
    np.testing.assert_allclose(metrics["pearson"], pearsonr(cosines, scores)[0], rtol=1e-5)
    np.testing.assert_allclose(metrics["loss"], np.mean((np.array(cosines) - scores) ** 2), 1e-5)
    np.testing.assert_allclose(metrics["alignment"], 2 - 2 * cosines[0], rtol=1e-4)
    assert "mrr" not in metrics and task.monitor in metrics


def test_equal_scores_have_no_correlation():
    task = EmbeddingTask("cosine", pooling="max")
    metrics = judged(task, pairs(("a", "b"), ("a", "c"), scores=(0.5, 0.5)))
    assert metrics["spearman"] is metrics["pearson"] is metrics["alignment"] is None


def test_pairs_by_label_are_judged_by_their_loss():
    source = labelled(list("abcd"), [0, 0, 1, 1])
    task = EmbeddingTask("labels", pooling="max")
    drawn = task.prepared(source, TOKENIZER, 16, training=False, seed=3)
    metrics = judged(task, drawn)
    assert metrics["examples"] == 8 and metrics["loss"] < 0.1 and metrics["spearman"] > 0.8


def test_no_pair_is_an_error():
    with pytest.raises(DataError, match="at least one pair"):
        evaluate(TASK, None, [], on_a_circle)


@pytest.fixture(scope="module")
def backbone(tmp_path_factory):
    folder = text_folders.write("bert", tmp_path_factory.mktemp("bert"))
    return load_backbone(folder, BackboneSpec())


@pytest.mark.parametrize("names", [("x", "y"), ("x", "y", "z")])
def test_a_fitted_head_is_scikit_learn_s_regression_on_the_pooled_states(backbone, names):
    texts = ["a b", "c d e", "f", "g h i j", "k", "l m"]
    labels = np.arange(6) % len(names)
    source, model = labelled(texts, labels, names), Model(backbone)
    task = EmbeddingTask("labels")
    (batch,) = batches_of(source, task, TOKENIZER, batch_size=6)
    states, masks = model.apply(task.inputs(batch)), task.inputs(batch)["padding_mask"]
    pooled = np.array(
        [state[mask > 0].mean(axis=0) for state, mask in zip(states, masks, strict=True)]
    )
    pooled = pooled[np.argsort(batch["index"])]
    scale = np.linalg.norm(pooled, axis=1).mean()
    found = fit_head(model, task, source, model.apply, TOKENIZER, 16, batch_size=6)
    assert found == TextClassification(names)
    assert (model.labels, model.head_spec.pooling) == (names, "avg")
    predicted = found.predict(texts, TOKENIZER, 16, model.apply)
    expected = LogisticRegression(max_iter=1000).fit(pooled / scale, labels)
    np.testing.assert_allclose(
        [[p.probabilities[name] for name in names] for p in predicted],
        expected.predict_proba(pooled / scale),
        atol=1e-4,
    )


@pytest.mark.parametrize(
    ("labels", "names", "message"),
    [
        ([0, 0], ("x", "y"), "got 2 and no text of y"),
        ([0, 0], ("x",), "got 1 and no text of a second one"),
        ([[1, 0], [0, 1]], ("x", "y"), "these texts have several; train it by task: text_class"),
    ],
)
def test_labels_that_no_head_can_be_fitted_to_are_an_error(backbone, labels, names, message):
    model = Model(backbone)
    with pytest.raises(DataError, match=message):
        fit_head(
            model,
            EmbeddingTask("labels"),
            labelled(["a", "b"], labels, names),
            model.apply,
            TOKENIZER,
            16,
        )
    assert model.labels == ()
