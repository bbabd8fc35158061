from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import log_softmax

from tests.reference import text_folders
from tests.unit.tasks.labelled_texts import Texts, batches_of, labelled, splits, wordpiece
from tunekit.errors import DataError
from tunekit.models.heads import Pooling
from tunekit.models.loading import load_backbone
from tunekit.models.model import Model
from tunekit.models.spec import BackboneSpec
from tunekit.tasks.contrast import pooled_states, similarity, unit_vectors
from tunekit.tasks.embedding import EmbeddingTask
from tunekit.tasks.label_pairs import label_pairs
from tunekit.tasks.registry import from_json, to_json
from tunekit.tasks.spec import EmbeddingSpec

TOKENIZER = wordpiece("abcdefghijklmnopqrstuvwxyz")
TASK = EmbeddingTask("multiple_negatives", temperature=0.5)
RNG = np.random.default_rng(0)
TABLE = RNG.normal(size=(40, 8)).astype("float32")


def states(inputs):
    """Hidden states [N, T, 8] that are the tokens' own vectors, and noise where padding is."""
    found = TABLE[inputs["token_ids"]]
    return np.where(inputs["padding_mask"][..., None] > 0, found, 7.0).astype("float32")


def vector(text):
    found = TABLE[TOKENIZER.encode(text).ids].mean(axis=0)
    return found / np.linalg.norm(found)


def pairs(*texts, scores=()):
    rows = [{"texts": row, "score": None} for row in texts]
    for row, score in zip(rows, scores, strict=False):
        row["score"] = score
    return Texts(rows)


def batch_of(task, source, size=None):
    return next(batches_of(source, task, TOKENIZER, batch_size=size or len(source)))


def loss_of(task, source, size=None):
    batch = batch_of(task, source, size)
    total, weight = task.loss(states(task.inputs(batch)), batch)
    return float(total), float(weight)


def cross_entropy(first, own, others):
    cosines = np.array([vector(first) @ vector(text) for text in (own, *others)]) / 0.5
    return -log_softmax(cosines)[0]


def test_a_pair_is_told_from_the_other_pairs_of_its_batch():
    source = pairs(("a b", "a c"), ("d e f", "d"), ("x", "y z"))
    seconds = ["a c", "d", "y z"]
    expected = sum(
        cross_entropy(first, own, [text for text in seconds if text != own])
        for first, own in zip(["a b", "d e f", "x"], seconds, strict=True)
    )
    np.testing.assert_allclose(loss_of(TASK, source), (expected, 3), rtol=1e-5)


def test_a_third_text_is_one_more_that_all_pairs_are_told_from():
    source = pairs(("a", "b", "c"), ("d", "e", "f"))
    expected = cross_entropy("a", "b", "cef") + cross_entropy("d", "e", "bcf")
    np.testing.assert_allclose(loss_of(TASK, source), (expected, 2), rtol=1e-5)


@pytest.mark.parametrize(
    ("rows", "candidates"),
    [
        # The second text of two pairs is held against neither of them, and counts once for others.
        ([("a", "b"), ("c", "b"), ("d", "e")], [("a", "b", "e"), ("c", "b", "e"), ("d", "e", "b")]),
        # What another pair says the same first text means.
        (
            [("a", "b"), ("a", "c"), ("d", "e")],
            [("a", "b", "e"), ("a", "c", "e"), ("d", "e", "bc")],
        ),
        # The first text itself.
        ([("a", "b"), ("b", "c")], [("a", "b", "c"), ("b", "c", "")]),
    ],
)
def test_equal_texts_are_not_held_against_each_other(rows, candidates):
    expected = sum(cross_entropy(first, own, others) for first, own, others in candidates)
    np.testing.assert_allclose(loss_of(TASK, pairs(*rows))[0], expected, rtol=1e-5)


def test_rows_that_fill_a_batch_up_take_no_part():
    source = pairs(("a", "b"), ("c", "d"))
    alone, filled = loss_of(TASK, source), loss_of(TASK, source, size=5)
    np.testing.assert_allclose(filled, alone, rtol=1e-6)
    batch = batch_of(TASK, source, 5)
    gradient = jax.grad(lambda x: TASK.loss(x, batch)[0])(jnp.asarray(states(TASK.inputs(batch))))
    by_row = np.asarray(gradient).reshape(5, -1)
    assert np.abs(by_row[:2]).max() > 0 and np.all(by_row[2:] == 0)


def test_padding_has_no_influence_on_the_gradient():
    batch = batch_of(TASK, pairs(("a b c d", "e"), ("f", "g h")))
    inputs = TASK.inputs(batch)
    gradient = jax.grad(lambda x: TASK.loss(x, batch)[0])(jnp.asarray(states(inputs)))
    padding = inputs["padding_mask"] == 0
    assert padding.any() and np.all(np.asarray(gradient)[padding] == 0)


def test_the_loss_of_scored_pairs_is_the_squared_distance_of_cosine_and_score():
    source = pairs(("a b", "a c"), ("d", "e f"), scores=(0.25, 1.0))
    task = EmbeddingTask.bind(EmbeddingSpec(), splits(source))
    assert (task.contrast, task.monitor) == ("cosine", "spearman")
    cosines = [vector("a b") @ vector("a c"), vector("d") @ vector("e f")]
    expected = ((np.array(cosines) - [0.25, 1]) ** 2).sum()
    np.testing.assert_allclose(loss_of(task, source, size=3), (expected, 2), rtol=1e-5)


def test_scores_beyond_one_are_brought_to_between_0_and_1():
    source = pairs(("a", "b"), ("c", "d"), ("e", "f"), scores=(1.0, 2.0, 5.0))
    task = EmbeddingTask.bind(EmbeddingSpec(), splits(source))
    assert task.score_range == (1.0, 5.0)
    assert sorted(batch_of(task, source)["score"].tolist()) == [0, 0.25, 1]
    assert EmbeddingTask.bind(
        EmbeddingSpec(), splits(pairs(("a", "b"), scores=(-1.0,)))
    ).score_range == (0.0, 1.0)


@pytest.mark.parametrize("kind", ["avg", "token", "max", "last"])
def test_vectors_are_the_pooled_states_of_a_head_and_of_length_one(kind):
    hidden = RNG.normal(size=(3, 5, 4)).astype("float32")
    mask = np.array([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0], [1, 0, 0, 0, 0]], np.int32)
    layer = Pooling(kind)
    layer.build(hidden.shape)
    pooled = np.asarray(pooled_states(hidden, mask, kind))
    np.testing.assert_allclose(pooled, layer(hidden, padding_mask=mask), rtol=1e-5, atol=1e-6)
    vectors = np.asarray(unit_vectors(hidden, mask, kind))
    np.testing.assert_allclose(
        vectors, pooled / np.linalg.norm(pooled, axis=1, keepdims=True), rtol=1e-5
    )


def test_a_vector_of_zeros_has_a_finite_gradient():
    def total(x):
        return unit_vectors(x, np.ones((1, 2), np.int32), "avg").sum()

    assert np.isfinite(np.asarray(jax.grad(total)(jnp.zeros((1, 2, 4))))).all()


def test_pooling_is_that_of_the_backbone(tmp_path):
    bert = load_backbone(text_folders.write("bert", tmp_path / "bert"), BackboneSpec())
    gpt2 = load_backbone(text_folders.write("gpt2", tmp_path / "gpt2"), BackboneSpec())
    assert TASK.for_backbone(bert).pooling == "avg"
    assert TASK.for_backbone(gpt2).pooling == "last"


def test_texts_become_unit_vectors_in_their_order():
    texts = ["a b c d e f g h", "x", "a", "a b c"]
    vectors = TASK.predict(texts, TOKENIZER, 16, states, batch_size=3)
    assert (vectors.shape, vectors.dtype) == ((4, 8), np.float32)
    np.testing.assert_allclose(vectors, [vector(text) for text in texts], rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(
        similarity(2 * vectors, vectors[:1])[:, 0], vectors @ vectors[0], rtol=1e-5
    )
    np.testing.assert_allclose(np.diag(similarity(vectors)), 1, rtol=1e-6)


def test_a_model_s_vectors_are_the_same_beside_other_texts(tmp_path):
    model = Model(load_backbone(text_folders.write("bert", tmp_path), BackboneSpec()))
    together = TASK.predict(["a b", "c d e f g"], TOKENIZER, 16, model.apply)
    alone = TASK.predict("a b", TOKENIZER, 16, model.apply)
    np.testing.assert_allclose(together[:1], alone, rtol=1e-4, atol=1e-5)


def test_pairs_are_drawn_half_of_them_of_one_label_and_never_of_a_text_with_itself():
    labels = [0, 1, 0, 2, 1, 0, 2, 1]
    texts = [f"{name} {label}" for name, label in zip("abcdefgh", labels, strict=True)]
    source = labelled(texts, labels)
    found = label_pairs(source, 20, seed=0)
    assert len(found) == len(found.sizes) == 8 * 20
    first, second = found.pairs.T
    assert np.array_equal(np.take(labels, first) == np.take(labels, second), found.same)
    assert found.same.mean() == 0.5 and not (first == second).any()
    assert np.array_equal(np.bincount(first), [20] * 8)
    example = found[3]
    assert example["texts"] == (texts[first[3]], texts[second[3]])
    assert example["score"] == float(found.same[3])
    # Every partner that is possible comes: 80 draws among at most 8.
    assert set(second[found.same]) == set(range(8)) == set(second[~found.same])


def test_pairs_follow_the_seed_and_those_to_be_judged_do_not():
    source = labelled(list("abcdef"), [0, 1] * 3)
    task = EmbeddingTask.bind(EmbeddingSpec(pairs_per_text=6), splits(source))
    assert (task.contrast, task.kind) == ("labels", "labelled")

    def drawn(training, seed):
        return task.prepared(source, TOKENIZER, 16, training=training, seed=seed).pairs

    assert np.array_equal(drawn(True, 1), drawn(True, 1))
    assert not np.array_equal(drawn(True, 1), drawn(True, 2))
    assert np.array_equal(drawn(False, 1), drawn(False, 2)) and len(drawn(False, 1)) == 12


def test_the_loss_of_pairs_by_label_is_that_of_scores_1_and_0():
    source = labelled(["a b", "c d", "e f", "g"], [0, 0, 1, 1])
    task = EmbeddingTask("labels", pairs_per_text=4)
    drawn = task.prepared(source, TOKENIZER, 16, training=True, seed=0)
    rows = [drawn[i] for i in range(len(drawn))]
    cosines = [vector(a) @ vector(b) for a, b in (row["texts"] for row in rows)]
    expected = ((np.array(cosines) - [row["score"] for row in rows]) ** 2).sum()
    np.testing.assert_allclose(loss_of(task, drawn), (expected, 16), rtol=1e-5)


def test_a_text_alone_with_its_label_is_paired_with_those_of_others():
    found = label_pairs(labelled(list("abc"), [0, 0, 1]), 4, seed=0)
    alone = found.pairs[:, 0] == 2
    assert not found.same[alone].any() and found.same[~alone].mean() == 0.5


def test_selected_pairs_keep_their_texts_and_scores():
    found = label_pairs(labelled(list("abcd"), [0, 0, 1, 1]), 4, seed=0)
    assert found.select([5])[0] == found[5]


BAD_LABELS = [
    (labelled(list("ab"), [1, 1]), "texts of at least 2 labels, and these have 1"),
    (labelled(list("ab"), [[1, 0], [1, 1]], multi_label=True), "and these have several"),
]


@pytest.mark.parametrize(("source", "message"), BAD_LABELS)
def test_labels_that_set_nothing_apart_are_an_error(source, message):
    with pytest.raises(DataError, match=message):
        label_pairs(source, 2, seed=0)


@pytest.mark.parametrize(
    ("contrast", "source", "message"),
    [
        ("labels", pairs(("a", "b")), "'labels' expects labelled texts.*no 'label'.*multiple_neg"),
        ("cosine", pairs(("a", "b")), "'cosine' expects pairs of texts with a score"),
        ("multiple_negatives", labelled(["a"], [0]), "no 'texts'.*For these data it is 'labels'"),
        ("auto", labelled([("a", "b")], [0]), "'labels' expects one text a row"),
        ("auto", pairs(("a", "b"), ("c", "d"), scores=(1.0,)), "texts:2: expected a score"),
        ("auto", pairs(("a", "b"), scores=(3.0,)), "every pair has the score 3"),
    ],
)
def test_data_that_do_not_fit_the_contrast_are_an_error(contrast, source, message):
    with pytest.raises(DataError, match=message):
        EmbeddingTask.bind(EmbeddingSpec(contrast=contrast), splits(source))


def test_the_task_comes_back_from_json():
    task = EmbeddingTask("cosine", score_range=(1.0, 5.0), pooling="token")
    assert from_json(to_json(task)) == task
    assert (task.stands_on, task.label_names, task.multi_label) == ("none", (), False)
