from __future__ import annotations

import json
from dataclasses import asdict, replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import log_softmax

from tests.unit.tasks.labelled_texts import Texts, batches_of, splits
from tests.unit.tasks.questions import (
    CONTEXT,
    EMPTY,
    LONDON,
    LOVELACE,
    NOWHERE,
    TASK,
    TOKENIZER,
    pointing,
)
from tunekit.errors import DataError
from tunekit.tasks.question_windows import question_windows
from tunekit.tasks.span_qa import SpanQA
from tunekit.tasks.spec import SpanQASpec

SOURCE = Texts([LOVELACE, LONDON])


def windows(examples, max_length=16, task=TASK):
    return task.prepared(Texts(examples), TOKENIZER, max_length, training=True, seed=0)


def encoded(examples, max_length=16, task=TASK, rng=None):
    found = windows(examples, max_length, task)
    encode = task.encoder(TOKENIZER, max_length)
    return [encode(found[i], rng) for i in range(len(found))]


def tokens(columns):
    return [TOKENIZER.token(i) for i in columns["token_ids"]]


def test_a_window_is_the_question_then_the_context():
    (columns,) = encoded([LOVELACE])
    assert tokens(columns) == [
        "[CLS]", "who", "was", "born", "[UNK]", "[SEP]",
        "ada", "love", "##lace", "was", "born", "in", "london", ".", "[SEP]",
    ]  # fmt: skip
    assert columns["token_types"].tolist() == [0] * 6 + [1] * 9
    assert columns["context_mask"].tolist() == [1] + [0] * 5 + [1] * 8 + [0]
    assert (int(columns["start"]), int(columns["end"])) == (6, 8)


def test_windows_share_tokens_and_show_the_whole_context():
    columns = encoded([LONDON], max_length=8)
    shown = [tokens(c)[4:-1] for c in columns]
    assert all(tokens(c)[:4] == ["[CLS]", "where", "[UNK]", "[SEP]"] for c in columns)
    assert shown == [["ada", "love", "##lace"], ["##lace", "was", "born"], ["born", "in", "london"],
                     ["london", "."]]  # fmt: skip
    assert [(int(c["start"]), int(c["end"])) for c in columns] == [(0, 0), (0, 0), (6, 6), (4, 4)]


@pytest.mark.parametrize(("max_length", "stride"), [(10, 2), (12, 3), (16, 0), (32, 2)])
def test_windows_are_those_of_the_tokenizers_own(max_length, stride):
    found = question_windows(Texts([LONDON, LONDON]), TOKENIZER, max_length, stride)
    expected = TOKENIZER.windows(LONDON["question"], CONTEXT, max_length=max_length, stride=stride)
    assert len(found) == 2 * len(expected)
    for place, other in enumerate(expected * 2):
        mine = found[place]["window"].encoded
        assert mine.ids.tolist() == other.ids.tolist()
        assert mine.offsets.tolist() == other.offsets.tolist()
        assert mine.types.tolist() == other.types.tolist()
    assert found.sizes.tolist() == [len(other.ids) for other in expected * 2]
    assert found.rows.tolist() == sorted(found.rows.tolist())


def test_a_long_question_leaves_half_of_the_window_to_the_context():
    asked = {**LONDON, "question": "who " * 50}
    columns = encoded([asked], max_length=13)
    assert tokens(columns[0]).count("who") == 5
    assert tokens(columns[0])[7:-1] == ["ada", "love", "##lace", "was", "born"]
    # Sharing more than half of that would hardly get on.
    greedy = encoded([asked], max_length=13, task=replace(TASK, stride=100))
    assert len(greedy) == 2


def test_no_room_for_question_and_context_is_an_error():
    with pytest.raises(DataError, match="batch.max_length: 4 tokens leave no room for question"):
        windows([LONDON], max_length=4)


def test_an_answer_within_a_token_is_that_token():
    context = "Lovelace and Ada"
    (columns,) = encoded([{"question": "Who?", "context": context, "answers": [("lac", 4)]}])
    place = int(columns["start"])
    assert tokens(columns)[place : int(columns["end"]) + 1] == ["##lace"]


def test_an_answer_shown_in_part_is_not_shown():
    answered = {**LONDON, "answers": [("Lovelace was born", 4)]}
    columns = encoded([answered], max_length=8)
    assert {(int(c["start"]), int(c["end"])) for c in columns} == {(0, 0)}


def test_a_question_without_an_answer_has_it_at_the_first_token():
    (columns,) = encoded([NOWHERE])
    assert (int(columns["start"]), int(columns["end"])) == (0, 0)


def test_training_batches_have_no_use_for_places_in_the_context():
    (columns,) = encoded([LONDON], rng=np.random.default_rng(0))
    assert columns.keys() == {"token_ids", "token_types", "context_mask", "start", "end"}


def test_chosen_windows_keep_their_examples():
    found = windows([LOVELACE, LONDON], max_length=10)
    last = found.select([len(found) - 1])
    assert (len(last), last[0]["row"], last.name(0)) == (1, 1, "texts:2")
    assert last[0]["window"].encoded.ids.tolist() == found[-1]["window"].encoded.ids.tolist()
    assert (last.fingerprint, len(last.label_array)) == ("texts", 0)


def test_binding_sees_whether_a_question_may_have_no_answer():
    spec = SpanQASpec(stride=2, max_answer_tokens=4)
    assert SpanQA.bind(spec, splits(SOURCE)) == TASK
    assert SpanQA.bind(spec, splits(Texts([LOVELACE, NOWHERE]))) == EMPTY
    assert (TASK.label_names, TASK.stands_on, TASK.monitor) == (("start", "end"), "token", "f1")


def batch_of(examples, size, max_length=16):
    return next(batches_of(windows(examples, max_length), TASK, TOKENIZER, max_length, size))


def test_its_loss_is_the_mean_of_two_cross_entropies_over_context_and_first_token():
    batch = batch_of([LOVELACE], 1)
    logits = np.random.default_rng(0).normal(size=(1, batch["token_ids"].shape[1], 2))
    total, weight = TASK.loss(jnp.asarray(logits, jnp.float32), batch)
    allowed = [0, *range(6, 14)]
    start, end = log_softmax(logits[0, allowed], axis=0).T
    expected = -(start[allowed.index(6)] + end[allowed.index(8)]) / 2
    assert (float(weight), float(total)) == pytest.approx((1.0, expected), rel=1e-5)


def test_what_cannot_be_an_answer_has_no_gradient_even_when_nan():
    batch = batch_of([LOVELACE], 2)
    assert batch["weight"].tolist() == [1, 0]
    allowed = (batch["context_mask"] > 0) & (batch["weight"][:, None] > 0)
    logits = np.where(allowed[..., None], 0.5, np.nan).astype(np.float32)
    total, weight = TASK.loss(jnp.asarray(logits), batch)
    gradient = np.asarray(jax.grad(lambda x: TASK.loss(x, batch)[0])(jnp.asarray(logits)))
    assert (float(weight), float(total)) == pytest.approx((1.0, np.log(9)), rel=1e-6)
    assert np.isfinite(gradient).all()
    assert not gradient[~allowed].any()
    assert (gradient[allowed] != 0).all()


def test_the_answer_is_cut_from_the_context():
    (found,) = TASK.predict([("Who was born?", CONTEXT)], TOKENIZER, 16, pointing("ada", "##lace"))
    answer = found.answer
    assert (answer.text, answer.start, answer.end) == ("Ada Lovelace", 0, 12)
    assert len(found.others) == 2
    assert answer.probability > found.others[0].probability > 0
    assert str(found).startswith("Who was born?: Ada Lovelace ")


def test_the_best_answer_over_all_windows_is_given():
    items = [("Where?", CONTEXT), ("Who?", "Ada.")]
    first, second = TASK.predict(items, TOKENIZER, 10, pointing("in", "london"), batch_size=2)
    assert first.answer.text == "in London"
    assert second.answer.text in "Ada."
    (alone,) = TASK.predict(items[0], TOKENIZER, 32, pointing("in", "london"))
    assert alone.answer.text == "in London"


def test_an_answer_is_no_longer_than_it_may_be_and_does_not_end_before_it_starts():
    (found,) = TASK.predict([("Who?", CONTEXT)], TOKENIZER, 16, pointing("ada", "london"), most=20)
    starts_and_ends = [CONTEXT[a.start : a.end] for a in (found.answer, *found.others)]
    assert all(text and len(text.split()) <= 4 for text in starts_and_ends)
    (back,) = TASK.predict([("Who?", CONTEXT)], TOKENIZER, 16, pointing("london", "ada"))
    assert back.answer.end > back.answer.start


def test_no_answer_is_given_where_none_is_likelier_in_every_window():
    item = {"question": "Who?", "context": CONTEXT}
    (none,) = EMPTY.predict([item], TOKENIZER, 16, pointing("ada", "ada", none=9.0))
    assert (none.answer.text, none.answer.is_empty) == ("", True)
    assert none.others[0].text == "Ada"
    assert str(none).startswith("Who?: no answer ")
    (some,) = EMPTY.predict([item], TOKENIZER, 16, pointing("ada", "ada", none=5.0))
    assert (some.answer.text, some.others[0].is_empty) == ("Ada", True)
    (sure,) = EMPTY.predict(
        [item], TOKENIZER, 16, pointing("ada", "ada", none=9.0), empty_margin=7.0
    )
    assert sure.answer.text == "Ada"
    (answered,) = TASK.predict([item], TOKENIZER, 16, pointing("ada", "ada", none=9.0))
    assert answered.answer.text == "Ada"


def test_a_prediction_is_json():
    (found,) = EMPTY.predict([("Who?", CONTEXT)], TOKENIZER, 16, pointing("ada", "ada"))
    read = json.loads(json.dumps(found.to_json()))
    assert read["answer"]["text"] == "Ada"


@pytest.mark.parametrize("item", ["Who?", ("Who?", ""), ("Who?", 3), {"question": "Who?"}])
def test_what_is_no_question_with_a_context_is_refused_by_its_place(item):
    with pytest.raises(DataError, match=r"items\[1\]: expected \(question, context\), two texts"):
        TASK.predict([("Who?", CONTEXT), item], TOKENIZER, 16, pointing("ada", "ada"))


def test_a_task_survives_json():
    assert SpanQA(**json.loads(json.dumps(asdict(EMPTY)))) == EMPTY
