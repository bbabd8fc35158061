from __future__ import annotations

import threading
from dataclasses import dataclass

import numpy as np
import pytest

from tunekit.data.packing import Packing, pack, token_lengths
from tunekit.data.sequences import SequenceBatches, buckets
from tunekit.errors import DataError

PAD = 9
LENGTHS = (3, 40, 5, 33, 8, 70, 2, 31, 64, 12, 1)


@dataclass(frozen=True)
class Texts:
    """Texts of so many tokens; text i is the ids 100 i, 100 i + 1, ..."""

    lengths: tuple[int, ...] = LENGTHS
    label_array = np.array([0] * 8 + [1] * 3)
    multi_label = False

    def __len__(self):
        return len(self.lengths)

    def __getitem__(self, index):
        if self.lengths[index] < 0:
            raise DataError(f"texts.jsonl:{index}: no text")
        ids = 100 * index + np.arange(self.lengths[index])
        return {"id": f"texts.jsonl:{index}", "ids": ids, "label": index % 2}


class SizedTexts(Texts):
    @property
    def sizes(self):
        return np.asarray(self.lengths) * 4


def classify(example, rng):
    return {"token_ids": example["ids"], "label": np.int32(example["label"])}


def language(example, rng):
    weights = np.ones(len(example["ids"]), np.float32)
    return {"token_ids": example["ids"], "targets": example["ids"] + 1, "loss_weights": weights}


def pairs(example, rng):
    ids = example["ids"]
    return {"token_ids": (ids, ids[::-1]), "score": np.float32(0.5)}


def chance(example, rng):
    return {**classify(example, rng), "noise": np.float32(0 if rng is None else rng.random())}


def batches(source=None, **options):
    defaults = {"encode": classify, "batch_size": 4, "seed": 7, "shuffle": True, "pad_id": PAD}
    source = Texts() if source is None else source
    return SequenceBatches(source, **{**defaults, "buckets": buckets(128), **options})


def packed(encode=language, length=80, **options):
    return batches(encode=encode, packing=Packing(length), **options)


def assert_same(one, other):
    one, other = list(one), list(other)
    assert len(one) == len(other)
    for a, b in zip(one, other, strict=True):
        assert a.keys() == b.keys()
        assert all(
            np.array_equal(a[name], b[name]) and a[name].dtype == b[name].dtype for name in a
        )


def test_buckets_double_up_to_the_longest_length():
    assert buckets(512) == (32, 64, 128, 256, 512)
    assert buckets(300) == (32, 64, 128, 256, 300)
    assert buckets(32) == (32,) and buckets(10) == (10,)


@pytest.mark.parametrize("source", [Texts(), SizedTexts()])
@pytest.mark.parametrize("shuffle", [True, False])
def test_epoch_has_every_text_once_padded_to_the_smallest_bucket_that_holds_its_batch(
    source, shuffle
):
    seen = []
    for batch in batches(source, shuffle=shuffle).epoch(1):
        longest = 0
        for ids, mask, index in zip(
            batch["token_ids"], batch["padding_mask"], batch["index"], strict=True
        ):
            length = LENGTHS[index]
            longest = max(longest, length)
            assert mask.tolist() == [1] * length + [0] * (len(mask) - length)
            assert (ids[:length] == source[index]["ids"]).all() and (ids[length:] == PAD).all()
        assert batch["token_ids"].shape[1] == min(b for b in buckets(128) if b >= longest)
        assert batch["label"].tolist() == [index % 2 for index in batch["index"]]
        assert {batch[n].dtype for n in ("token_ids", "padding_mask", "index")} == {
            np.dtype(np.int32)
        }
        seen += batch["index"][batch["weight"] > 0].tolist()
    assert sorted(seen) == list(range(11))


def test_texts_of_similar_size_share_batches():
    many = tuple(np.random.default_rng(0).permutation(np.arange(1, 129)).tolist())

    def tokens(source):
        return sum(batch["token_ids"].size for batch in batches(source).epoch(0))

    assert tokens(SizedTexts(many)) < 0.75 * tokens(Texts(many))


def test_batches_of_similar_sizes_come_in_another_order_every_epoch():
    many = SizedTexts(tuple(range(1, 129)))
    firsts = {next(batches(many).epoch(epoch))["token_ids"].shape[1] for epoch in range(8)}
    assert len(firsts) > 1
    orders = [batches(many, seed=seed).order(epoch).tolist() for seed in (7, 8) for epoch in (0, 1)]
    assert len({tuple(order) for order in orders}) == 4
    assert batches(many).order(1).tolist() == orders[1]


def test_last_batch_is_filled_with_its_own_rows_which_weigh_nothing():
    every = list(batches(encode=language).epoch(0))
    assert len(every) == batches().steps_per_epoch == 3
    last = every[-1]
    assert last["weight"].tolist() == [1, 1, 1, 0] and last["weight"].dtype == np.float32
    assert last["index"][3] == last["index"][0]
    assert last["loss_weights"][0].any() and not last["loss_weights"][3].any()
    assert (last["targets"][3] == last["targets"][0]).all()


def test_source_smaller_than_a_batch_makes_one():
    (only,) = batches(Texts((3, 5)), shuffle=False, batch_size=5).epoch(0)
    assert only["index"].tolist() == [0, 1, 0, 1, 0] and only["weight"].tolist() == [1, 1, 0, 0, 0]


@pytest.mark.parametrize("kind", ["single", "packed"])
@pytest.mark.parametrize("start", [0, 1, 3, 4])
def test_epoch_started_at_a_step_goes_on_as_if_from_the_beginning(kind, start):
    make = {"single": batches, "packed": packed}[kind]
    whole = list(make().epoch(3))
    assert_same(make().epoch(3, start), whole[start:])


@pytest.mark.parametrize("workers", [0, 1, None])
def test_batches_do_not_depend_on_the_number_of_workers(workers):
    def made(workers):
        return batches(SizedTexts(), encode=chance, workers=workers).epoch(1)

    assert_same(made(workers), made(2))


def test_every_text_gets_its_own_chance_where_shuffled_and_none_elsewhere():
    def noise(shuffle, epoch):
        every = batches(encode=chance, shuffle=shuffle).epoch(epoch)
        return np.concatenate([batch["noise"][batch["weight"] > 0] for batch in every])

    assert len(np.unique([noise(True, 0), noise(True, 1)])) == 22
    assert not noise(False, 0).any()


def test_threads_end_with_a_closed_epoch():
    before = set(threading.enumerate())
    epoch = batches(Texts((3,) * 500), workers=3).epoch(0)
    next(epoch)
    started = set(threading.enumerate()) - before
    assert started
    epoch.close()
    for thread in started:
        thread.join(timeout=10)
    assert not any(thread.is_alive() for thread in started)


def test_several_sequences_of_a_text_are_padded_alike():
    batch = next(batches(encode=pairs, shuffle=False).epoch(0))
    assert batch["token_ids"].shape == batch["padding_mask"].shape == (4, 2, 64)
    assert batch["token_ids"][1, 1, :40].tolist() == (100 + np.arange(40))[::-1].tolist()
    assert batch["padding_mask"].sum((1, 2)).tolist() == [6, 80, 10, 66]
    assert batch["score"].shape == (4,)


@pytest.mark.parametrize("make", [batches, packed])
def test_shapes_are_those_of_batches(make):
    for batch in make().epoch(0):
        length = batch["token_ids"].shape[-1]
        assert make().shapes(length) == {n: (x.shape, x.dtype) for n, x in batch.items()}
    assert make(shuffle=False).shapes(2)["token_ids"] == ((4, 2), np.int32)


def test_balanced_batches_draw_every_class_equally_often():
    order = batches(SizedTexts(), balanced=True).order(0)
    counts = np.bincount(Texts.label_array[order])
    assert len(order) == 11 and abs(counts[0] - counts[1]) <= 1


def test_packed_rows_hold_texts_one_after_the_other():
    seen = []
    for batch in packed(shuffle=False).epoch(0):
        for row in range(4):
            ids, documents = batch["token_ids"][row], batch["documents"][row]
            count = batch["padding_mask"][row].sum()
            assert (documents[:count] > 0).all() and (documents[count:] == 0).all()
            assert (np.diff(documents[:count]) >= 0).all()
            for document in range(1, documents.max() + 1):
                own = documents == document
                text = ids[own][0] // 100
                assert ids[own].tolist() == Texts()[text]["ids"].tolist()
                assert batch["positions"][row][own].tolist() == list(range(LENGTHS[text]))
                assert batch["targets"][row][own].tolist() == (ids[own] + 1).tolist()
                if batch["weight"][row]:
                    seen.append(int(text))
            assert batch["index"][row] == ids[0] // 100
    assert sorted(seen) == list(range(11))


def test_packed_epochs_have_the_same_rows_in_another_order():
    first = packed()
    rows = [
        sorted(tuple(ids) for batch in first.epoch(epoch) for ids in batch["token_ids"].tolist())
        for epoch in (0, 1)
    ]
    assert {*rows[0]} == {*rows[1]}
    assert first.order(0).tolist() != first.order(1).tolist()
    assert sorted(first.order(1)) == list(range(11))


def test_packing_fills_rows_of_many_texts_nearly_whole():
    lengths = np.random.default_rng(1).integers(1, 200, 2000)
    rows = pack(lengths, 256, seed=0)
    sizes = [lengths[texts].sum() for texts in rows.texts_of(range(len(rows)))]
    assert max(sizes) <= 256 and sum(sizes) == lengths.sum()
    assert rows.fill == pytest.approx(np.mean(sizes) / 256) and rows.fill > 0.95
    assert sorted(rows.texts) == list(range(2000))


def test_packing_follows_its_seed():
    lengths = np.random.default_rng(1).integers(1, 20, 50)
    one, same, other = (pack(lengths, 32, seed=seed).texts.tolist() for seed in (0, 0, 1))
    assert one == same != other


def test_text_as_long_as_a_row_has_one_of_its_own():
    rows = pack(np.array([4, 4, 3, 1]), 4, seed=0)
    assert rows.fill == 1 and len(rows) == 3


def test_lengths_are_those_of_the_encoder():
    assert token_lengths(Texts(), language, workers=3).tolist() == list(LENGTHS)
    assert token_lengths(Texts(), language, workers=0).dtype == np.int32


def test_text_beyond_the_last_bucket_is_an_error():
    with pytest.raises(DataError, match=r"70 tokens is longer than the longest batch, of 64.*cut"):
        list(batches(buckets=(32, 64)).epoch(0))


def test_text_beyond_a_packed_row_is_an_error():
    with pytest.raises(DataError, match=r"example 1 has 9 tokens, and a packed row holds 8"):
        pack(np.array([3, 9]), 8, seed=0)


def test_no_texts_are_an_error():
    with pytest.raises(DataError, match="at least one example"):
        list(batches(Texts(())).epoch(0))
    with pytest.raises(DataError, match="at least one example"):
        pack(np.array([], np.int32), 8, seed=0)


def test_unreadable_text_is_named():
    with pytest.raises(DataError, match="texts.jsonl:1: no text"):
        list(batches(Texts((3, -1, 2))).epoch(0))


def test_error_of_the_encoder_notes_which_text_it_was_given():
    with pytest.raises(KeyError) as caught:
        list(batches(encode=lambda example, rng: {"token_ids": example["tokens"]}).epoch(0))
    assert any("while reading texts.jsonl:" in note for note in caught.value.__notes__)


def test_column_by_text_cannot_be_packed():
    with pytest.raises(DataError, match=r"batch.packing: column 'label' has one value for each"):
        list(packed(encode=classify).epoch(0))
    with pytest.raises(DataError, match=r"several sequences for each text"):
        packed(encode=lambda example, rng: {"token_ids": (example["ids"],) * 2}).shapes(80)


def test_packing_and_balancing_exclude_each_other():
    with pytest.raises(DataError, match=r"batch.packing: .* chosen by length alone"):
        packed(balanced=True)


def test_balancing_texts_without_labels_is_an_error():
    class Unlabelled(Texts):
        label_array = np.zeros(0, np.int32)

    with pytest.raises(DataError, match="batch.balanced: needs a label per example"):
        batches(Unlabelled(), balanced=True).order(0)


def test_columns_of_several_shapes_are_an_error():
    def ragged(example, rng):
        return {**classify(example, rng), "extra": np.zeros(len(example["ids"]))}

    def uneven(example, rng):
        return {"token_ids": (example["ids"],) * (1 + example["label"])}

    with pytest.raises(DataError, match=r"column 'extra': expected one shape.*token_ids"):
        list(batches(encode=ragged).epoch(0))
    with pytest.raises(DataError, match=r"as many sequences in every row, got 1 and 2"):
        list(batches(encode=uneven).epoch(0))


@pytest.mark.parametrize(
    "whole",
    [batches(SizedTexts()), batches(encode=language), packed(), batches(encode=pairs)],
    ids=["texts", "language", "packed", "pairs"],
)
def test_rows_read_by_several_processes_and_padded_alike_are_the_whole_batches(whole):
    shares = [whole.of_rows(rows) for rows in ((0, 1), (2, 3))]
    epochs = zip(whole.epoch(1), *(share.epoch(1) for share in shares), strict=True)
    further = 0
    for batch, *parts in epochs:
        length = max(part["padding_mask"].shape[-1] for part in parts)
        further += any(part["padding_mask"].shape[-1] < length for part in parts)
        padded = [whole.padded(part, length) for part in parts]
        joined = {name: np.concatenate([part[name] for part in padded]) for name in batch}
        assert_same([batch], [joined])
    assert whole.packing is not None or further > 0


def test_a_share_of_packed_batches_measures_no_text_anew():
    whole = packed()
    assert whole.packed is whole.of_rows((0,)).packed
