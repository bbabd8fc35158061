from __future__ import annotations

import json
from dataclasses import asdict, replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.unit.tasks.labelled_texts import Texts, batches_of, splits, wordpiece
from tunekit.data.packing import Packing
from tunekit.data.sequences import SequenceBatches, buckets
from tunekit.errors import DataError
from tunekit.tasks.spec import TokenClassificationSpec
from tunekit.tasks.token_classification import TokenClassification

NAMES = ("O", "B-PER", "I-PER")
TOKENIZER = wordpiece(("ada", "love", "##lace", "met", "bob", ".", "in"))
TASK = TokenClassification(NAMES, "bio")
EXAMPLE = {"words": ["Ada", "Lovelace", "met", "Bob", "."], "tags": [1, 2, 0, 1, 0]}
SOURCE = Texts([EXAMPLE, {"words": ["Bob"], "tags": [1]}], NAMES)
TAG_OF = {"ada": 1, "love": 2, "##lace": 1, "bob": 1}


def by_piece(inputs):
    """Logits [B, T, 3] that say of each piece the tag in TAG_OF, with probability 0.8."""
    ids = np.asarray(inputs["token_ids"])
    tags = np.vectorize(lambda i: TAG_OF.get(TOKENIZER.token(i), 0))(ids)
    return np.log(np.where(np.arange(3) == tags[..., None], 0.8, 0.1)).astype(np.float32)


def encode(task, example, max_length=16, rng=None):
    return task.encoder(TOKENIZER, max_length)(example, rng)


def tokens(columns):
    return [TOKENIZER.token(i) for i in columns["token_ids"]]


def test_the_first_piece_of_a_word_carries_its_tag():
    columns = encode(TASK, EXAMPLE)
    assert tokens(columns) == ["[CLS]", "ada", "love", "##lace", "met", "bob", ".", "[SEP]"]
    assert columns["token_labels"].tolist() == [0, 1, 2, 0, 0, 1, 0, 0]
    assert columns["token_weights"].tolist() == [0, 1, 1, 0, 1, 1, 1, 0]
    assert columns["first_pieces"].tolist() == [1, 2, 4, 5, 6] + [-1] * 11


def test_every_piece_may_carry_a_tag_and_later_ones_begin_no_entity():
    task = replace(TASK, label_all_pieces=True)
    columns = encode(task, {"words": ["Lovelace", "met"], "tags": [1, 0]})
    assert columns["token_labels"].tolist() == [0, 1, 2, 0, 0]
    assert columns["token_weights"].tolist() == [0, 1, 1, 1, 0]


def test_later_pieces_keep_a_tag_that_marks_no_entity():
    task = TokenClassification(("B-x", "I-x"), "none", label_all_pieces=True)
    columns = encode(task, {"words": ["Lovelace"], "tags": [0]})
    assert columns["token_labels"].tolist() == [0, 0, 0, 0]
    # Of a scheme without an I- for it, the word's own tag stays.
    lonely = TokenClassification(("B-y", "O"), "bio", label_all_pieces=True)
    assert encode(lonely, {"words": ["Lovelace"], "tags": [0]})["token_labels"][2] == 0


def test_words_cut_off_have_no_piece_and_cut_words_keep_their_first():
    columns = encode(TASK, EXAMPLE, max_length=4)
    assert tokens(columns) == ["[CLS]", "ada", "love", "[SEP]"]
    assert columns["first_pieces"].tolist() == [1, 2, -1, -1]
    assert columns["token_weights"].tolist() == [0, 1, 1, 0]


def test_a_word_of_which_the_tokenizer_keeps_nothing_has_no_piece():
    columns = encode(TASK, {"words": ["Ada", "\u200b", "Bob"], "tags": [1, 0, 2]})
    assert columns["first_pieces"].tolist()[:3] == [1, -1, 2]
    assert columns["token_labels"].tolist() == [0, 1, 2, 0]


def test_training_batches_have_no_use_for_the_places_of_words():
    rng = np.random.default_rng(0)
    assert "first_pieces" not in encode(TASK, EXAMPLE, rng=rng)
    assert "token_labels" not in encode(TASK, {"words": ["Ada"]})


def test_binding_sees_the_scheme_in_the_tags():
    task = TokenClassification.bind(TokenClassificationSpec(label_all_pieces=True), splits(SOURCE))
    assert task == TokenClassification(NAMES, "bio", label_all_pieces=True)
    assert (task.monitor, task.stands_on) == ("f1", "token")
    words = TokenClassification.bind(TokenClassificationSpec(scheme="none"), splits(SOURCE))
    assert (words.scheme, words.monitor) == ("none", "accuracy")


def test_its_loss_is_the_log_probability_of_the_tags_of_first_pieces():
    (batch,) = batches_of(SOURCE, TASK, TOKENIZER, batch_size=2)
    total, weight = TASK.loss(jnp.asarray(by_piece(batch)), batch)
    assert float(weight) == 6
    assert float(total) == pytest.approx(-6 * np.log(0.8), rel=1e-6)


def test_packed_texts_have_the_loss_that_they_have_apart():
    source = Texts([EXAMPLE, *[{"words": ["Bob", "met"], "tags": [1, 2]}] * 4], NAMES)
    batches = SequenceBatches(
        source,
        TASK.encoder(TOKENIZER, 16),
        batch_size=2,
        seed=0,
        shuffle=True,
        buckets=buckets(16),
        pad_id=TOKENIZER.pad_id,
        workers=0,
    )
    packed = list(replace(batches, packing=Packing(16)).epoch(0))
    assert len(packed) == 1 and "documents" in TASK.inputs(packed[0])
    sums = [
        np.sum([TASK.loss(jnp.asarray(by_piece(batch)), batch) for batch in each], axis=0)
        for each in (packed, batches.epoch(0))
    ]
    assert sums[0] == pytest.approx(sums[1], rel=1e-6)
    assert sums[0][1] == 13


def test_half_precision_logits_are_summed_in_float32():
    (batch,) = batches_of(SOURCE, TASK, TOKENIZER, batch_size=2)
    half = jnp.asarray(by_piece(batch), jnp.bfloat16)
    total, _ = TASK.loss(half, batch)
    assert total.dtype == jnp.float32
    assert total == TASK.loss(half.astype(jnp.float32), batch)[0]


def test_tokens_and_rows_that_do_not_count_have_no_gradient_even_when_nan():
    (batch,) = batches_of(SOURCE, TASK, TOKENIZER, batch_size=3)
    assert batch["weight"].tolist() == [1, 1, 0]
    counts = batch["token_weights"] * batch["weight"][:, None] > 0
    logits = jnp.where(jnp.asarray(counts)[..., None], by_piece(batch), jnp.nan)
    total, weight = TASK.loss(logits, batch)
    gradient = jax.grad(lambda x: TASK.loss(x, batch)[0])(logits)
    assert (float(weight), float(total)) == pytest.approx((6.0, -6 * np.log(0.8)), rel=1e-6)
    assert bool(jnp.isfinite(gradient).all())
    assert not np.asarray(gradient)[~counts].any()
    assert np.asarray(gradient)[counts].any(axis=-1).all()


def test_a_text_is_read_back_as_words_and_entities():
    text = "Ada Lovelace met  Bob."
    (found,) = TASK.predict(text, TOKENIZER, 16, by_piece)
    assert [(word, tag) for word, tag, _ in found.words] == [
        ("Ada", "B-PER"), ("Lovelace", "I-PER"), ("met", "O"), ("Bob", "B-PER"), (".", "O"),
    ]  # fmt: skip
    assert [word.probability for word in found.words] == pytest.approx([0.8] * 5, rel=1e-6)
    assert [(e.label, e.text, e.start, e.end) for e in found.entities] == [
        ("PER", "Ada Lovelace", 0, 12),
        ("PER", "Bob", 18, 21),
    ]
    assert found.entities[0].probability == pytest.approx(0.8, rel=1e-6)
    assert str(found) == "Ada/B-PER Lovelace/I-PER met/O Bob/B-PER ./O"


def test_words_that_are_split_already_stay_so():
    items = [["in"], ["Ada-x", "met", "Bob"]]
    short, found = TASK.predict(items, TOKENIZER, 16, by_piece, batch_size=1)
    assert [word for word, _, _ in found.words] == ["Ada-x", "met", "Bob"]
    assert [(e.text, e.start, e.end) for e in found.entities] == [("Ada-x", 0, 5), ("Bob", 10, 13)]
    assert (short.id, short.entities) == ("in", ())


def test_words_cut_off_are_given_as_missing():
    (found,) = TASK.predict(["met met Bob Ada in"], TOKENIZER, 4, by_piece)
    assert found.words[1].tag == "O"
    assert [tuple(word) for word in found.words[2:]] == [
        ("Bob", None, None), ("Ada", None, None), ("in", None, None),
    ]  # fmt: skip
    assert str(found).endswith("Bob/? Ada/? in/?")
    assert found.entities == ()


def test_a_prediction_is_json():
    (found,) = TASK.predict(["Ada met"], TOKENIZER, 16, by_piece)
    read = json.loads(json.dumps(found.to_json()))
    assert read["words"][0][:2] == ["Ada", "B-PER"]
    assert read["entities"][0]["text"] == "Ada"


@pytest.mark.parametrize(
    ("item", "message"),
    [
        (7, r"items\[1\]: expected a text or a list of words, got 7"),
        (["a", 3], r"items\[1\]: expected a text or a list of words, got \['a', 3\]"),
        ("  ", r"items\[1\]: expected a text, got one without a word"),
        ([], r"items\[1\]: expected a text, got one without a word"),
    ],
)
def test_what_has_no_words_is_refused_by_its_place(item, message):
    with pytest.raises(DataError, match=message):
        TASK.predict(["Ada", item], TOKENIZER, 16, by_piece)


def test_a_task_survives_json():
    read = json.loads(json.dumps(asdict(TASK)))
    assert TokenClassification(**{**read, "label_names": tuple(read["label_names"])}) == TASK
