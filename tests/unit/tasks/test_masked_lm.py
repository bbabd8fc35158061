from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest
import tokenizers
from scipy.special import log_softmax

from tests.reference import text_folders
from tests.unit.tasks.labelled_texts import SPECIAL, Texts, batches_of, splits, wordpiece
from tunekit.errors import DataError, ModelError
from tunekit.evaluation.masked_lm import evaluate
from tunekit.models.loading import load_backbone
from tunekit.models.masked_head import with_masked_head
from tunekit.models.model import Model
from tunekit.models.spec import BackboneSpec
from tunekit.models.tokenizing import Tokenizer
from tunekit.tasks.masked_lm import Filled, MaskedLM
from tunekit.tasks.registry import from_json, to_json
from tunekit.tasks.spec import MaskedLMSpec
from tunekit.tasks.text_windows import text_windows

WORDS = tuple("abcdefghijklmnopqrstuvwxyz")
TOKENIZER = wordpiece((*WORDS, "un", "##believ", "##able", "film", "##s"))
MASK = TOKENIZER.mask_id
LETTERS = " ".join(WORDS * 40)
TASK = MaskedLM()


def encoded(task, text, rng=None, max_length=2000):
    return task.encoder(TOKENIZER, max_length)({"id": "1", "text": text}, rng)


def tokens(ids):
    return [TOKENIZER.token(i) for i in ids]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = text_folders.write("bert-masked-lm", tmp_path_factory.mktemp("bert"))
    return Model(with_masked_head(load_backbone(folder, BackboneSpec())))


def test_of_the_tokens_to_be_found_80_percent_are_hidden_and_10_replaced():
    columns = encoded(TASK, LETTERS, np.random.default_rng(0))
    ids, targets, chosen = (columns[n] for n in ("token_ids", "targets", "loss_weights"))
    chosen = chosen > 0
    assert chosen.sum() == round(0.15 * 26 * 40)
    assert np.array_equal(targets, TOKENIZER.encode(LETTERS).ids)
    assert np.array_equal(ids[~chosen], targets[~chosen])
    shares = [(ids[chosen] == MASK).mean(), (ids[chosen] == targets[chosen]).mean()]
    # Standard errors at 156 tokens: 0.03 and 0.025.
    np.testing.assert_allclose(shares, [0.8, 0.1], atol=0.08)


def test_special_tokens_are_neither_hidden_nor_put_in_the_place_of_others():
    task = MaskedLM(mask_probability=0.99)
    columns = encoded(task, "a [SEP] b " + LETTERS, np.random.default_rng(0))
    special = np.isin(columns["targets"], [TOKENIZER.token_id(name) for name in SPECIAL])
    assert special.sum() == 3
    assert not columns["loss_weights"][special].any()
    put = columns["token_ids"][(columns["token_ids"] != columns["targets"])]
    assert {TOKENIZER.token(i) for i in put} & set(SPECIAL) == {"[MASK]"}


def test_a_pass_over_the_data_hides_other_tokens_and_a_judge_always_the_same():
    first, second = (encoded(TASK, LETTERS, np.random.default_rng(i)) for i in (0, 1))
    assert not np.array_equal(first["loss_weights"], second["loss_weights"])
    judged, again = encoded(TASK, LETTERS), encoded(TASK, LETTERS)
    assert all(np.array_equal(judged[name], again[name]) for name in judged)
    other = encoded(TASK, " ".join(reversed(WORDS * 40)))
    assert not np.array_equal(judged["loss_weights"], other["loss_weights"])


def test_a_short_text_has_one_token_to_be_found_and_an_empty_one_none():
    assert encoded(TASK, "film")["loss_weights"].sum() == 1
    assert encoded(TASK, "")["loss_weights"].sum() == 0


def test_whole_words_are_chosen_with_all_their_pieces():
    text = "unbelievable films a unbelievable b films " * 5
    columns = encoded(MaskedLM(0.3, whole_words=True), text, np.random.default_rng(0))
    found = TOKENIZER.encode(text)
    words = np.unique(found.word_ids[columns["loss_weights"] > 0])
    assert np.array_equal(np.isin(found.word_ids, words), columns["loss_weights"] > 0)
    assert 0 < len(words) < 30
    pieces = encoded(MaskedLM(0.3), text, np.random.default_rng(0))["loss_weights"] > 0
    split = np.isin(found.word_ids, found.word_ids[pieces])
    assert not np.array_equal(split, pieces)


def test_the_loss_is_that_of_the_logits_where_tokens_are_to_be_found(model):
    source = Texts([{"text": "a b c d e f"}, {"text": "films unbelievable x y"}])
    (batch,) = batches_of(source, TASK, TOKENIZER, batch_size=3)
    logits = model.apply({name: batch[name] for name in ("token_ids", "padding_mask")})
    losses = -np.take_along_axis(log_softmax(logits, -1), batch["targets"][..., None], -1)[..., 0]
    expected = (losses * batch["loss_weights"]).sum()
    outputs = model.apply(TASK.inputs(batch))
    assert outputs.shape == batch["token_ids"].shape
    total, weight = TASK.loss(jnp.asarray(outputs), batch)
    assert float(weight) == batch["loss_weights"].sum() == 2
    np.testing.assert_allclose(float(total), expected, rtol=1e-5)
    metrics = evaluate(TASK, source, [batch], model.apply)
    np.testing.assert_allclose(metrics["loss"], expected / 2, rtol=1e-5)
    np.testing.assert_allclose(metrics["pseudo_perplexity"], np.exp(expected / 2), rtol=1e-5)
    assert (metrics["tokens"], metrics["examples"]) == (2, 2)
    assert TASK.monitor in metrics


def test_what_is_not_to_be_found_has_no_part_in_the_loss_even_where_it_is_nan():
    batch = {"loss_weights": np.array([[0, 1.0]])}
    assert float(TASK.loss(jnp.array([[np.nan, 2.0]]), batch)[0]) == 2


def test_nothing_to_be_found_is_an_error():
    (batch,) = batches_of(Texts([{"text": ""}]), TASK, TOKENIZER, batch_size=1)
    with pytest.raises(DataError, match="at least one text with a token to hide"):
        evaluate(TASK, None, [batch], lambda inputs: np.zeros(inputs["token_ids"].shape))


def wanting(*words):
    """Logits for which these words are the most probable everywhere, in this order."""

    def outputs(inputs):
        logits = np.zeros((*inputs["token_ids"].shape, 99), np.float32)
        for place, word in enumerate(words):
            logits[..., TOKENIZER.token_id(word)] = 20 - place
        logits[..., 98] = 30  # A row of the embedding beyond the vocabulary.
        return logits

    return outputs


def test_hidden_words_are_found_with_their_probabilities():
    texts = ["a [MASK] b [MASK]", "[MASK]"]
    first, second = TASK.predict(texts, TOKENIZER, 16, wanting("film", "x"), top_k=2)
    assert (first.id, first.text, second.text) == (texts[0], "a film b film", "film")
    assert [[word for word, _ in place] for place in first.words] == [["film", "x"]] * 2
    (_, film), (_, x) = second.words[0]
    np.testing.assert_allclose([film, film / x], [1 / (1 + np.exp(-1)), np.e], rtol=1e-6)
    assert str(second) == "film (film 73.1%, x 26.9%)"
    assert second.to_json()["words"][0][0]["word"] == "film"


def test_a_model_fills_in_what_it_is_given(model):
    (filled,) = TASK.predict("a [MASK] c", TOKENIZER, 16, model.apply)
    assert isinstance(filled, Filled) and len(filled.words[0]) == 5
    probabilities = [p for _, p in filled.words[0]]
    assert probabilities == sorted(probabilities, reverse=True) and 0 < sum(probabilities) <= 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a b", r"items\[0\]: expected a text with \[MASK\] for a word, got 'a b'"),
        ("a b c d [MASK]", "stands beyond the first 5 tokens; shorten"),
    ],
)
def test_a_text_that_hides_nothing_is_an_error(text, message):
    with pytest.raises(DataError, match=message):
        TASK.predict([text], TOKENIZER, 5, wanting("a"))


def test_a_tokenizer_without_a_mask_token_is_refused():
    core = tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0}, unk_token="a"))
    with pytest.raises(ModelError, match="no mask token.*for a decoder use causal_lm"):
        TASK.encoder(Tokenizer({"tokenizer.json": core.to_str()}), 8)


def test_the_task_follows_its_spec_and_comes_back_from_json():
    spec = MaskedLMSpec(mask_probability=0.3, whole_words=True)
    task = MaskedLM.bind(spec, splits(Texts([{"text": "a"}])))
    assert (task.mask_probability, task.whole_words) == (0.3, True)
    assert from_json(to_json(task)) == task
    assert (task.stands_on, task.label_names, task.kind) == ("language", (), "plain")


def test_long_texts_are_read_to_their_ends_in_pieces_between_words():
    long = "unbelievable films " * 4 + "a"
    source = Texts([{"text": "a b"}, {"text": long}, {"text": "c"}])
    pieces = TASK.prepared(source, TOKENIZER, 8, training=True, seed=0)
    texts = [pieces[i]["text"] for i in range(len(pieces))]
    assert texts[0] == "a b" and texts[-1] == "c"
    assert " ".join(texts[1:-1]).split() == long.split()
    assert all(len(TOKENIZER.encode(text)) <= 8 for text in texts)
    assert pieces.name(1) == pieces.name(2) == "texts:2"
    assert len(pieces.sizes) == len(pieces) and pieces.sizes.max() < len(str(source.examples[1]))
    assert pieces.select([1])[0]["text"] == texts[1]


def test_texts_that_fit_are_left_as_they_are():
    source = Texts([{"text": "a b c"}])
    assert text_windows(source, TOKENIZER, 8) is source


def test_a_word_longer_than_a_sequence_is_cut_within():
    source = Texts([{"text": "unbelievable"}])
    pieces = text_windows(source, TOKENIZER, 4)
    assert [pieces[i]["text"] for i in range(len(pieces))] == ["unbeliev", "able"]


def test_no_room_beside_the_special_tokens_is_an_error():
    with pytest.raises(DataError, match="2 tokens leave no room for text beside the 2 special"):
        text_windows(Texts([{"text": "a"}]), TOKENIZER, 2)
