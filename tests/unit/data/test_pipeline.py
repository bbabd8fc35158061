from __future__ import annotations

import logging
import threading

import numpy as np
import pytest

from tunekit.data.pipeline import Batches
from tunekit.data.source import open_data, open_images
from tunekit.data.spec import DataSpec
from tunekit.errors import DataError


@pytest.fixture(scope="module")
def source():
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (23, 4, 4, 3), np.uint8)
    labels = np.repeat([0, 1, 2], [14, 6, 3])
    return open_data((images, labels), DataSpec(validation_fraction=0), seed=0).train


def encode(example, rng):
    noise = np.zeros(()) if rng is None else rng.random(())
    return {
        "image": np.asarray(example["image"]),
        "label": np.int32(example["label"]),
        "noise": np.asarray(noise),
    }


def batches(source, **options):
    return Batches(
        source, **{"encode": encode, "batch_size": 5, "seed": 7, "shuffle": True, **options}
    )


def indices(epoch):
    """Returns the index of every example of weight 1."""
    return np.concatenate([batch["index"][batch["weight"] > 0] for batch in epoch])


def assert_same(one, other):
    one, other = list(one), list(other)
    assert len(one) == len(other)
    for a, b in zip(one, other, strict=True):
        assert a.keys() == b.keys()
        assert all(
            np.array_equal(a[name], b[name]) and a[name].dtype == b[name].dtype for name in a
        )


def waited(name):
    """Returns the living threads of a name after those that are ending have ended."""
    for thread in threading.enumerate():
        if thread.name.startswith(name):
            thread.join(timeout=10)
    return [t for t in threading.enumerate() if t.name.startswith(name)]


@pytest.mark.parametrize("shuffle", [True, False])
def test_epoch_has_every_example_once(source, shuffle):
    found = indices(batches(source, shuffle=shuffle).epoch(0))
    assert sorted(found) == list(range(23))
    assert (found.tolist() == list(range(23))) is not shuffle


def test_rows_belong_together(source):
    for batch in batches(source).epoch(2):
        for row, index in enumerate(batch["index"]):
            assert np.array_equal(batch["image"][row], source[index]["image"])
            assert batch["label"][row] == source[index]["label"]


def test_last_batch_is_filled_with_the_epochs_first_examples_at_weight_zero(source):
    every = list(batches(source).epoch(0))
    assert len(every) == batches(source).steps_per_epoch == 5
    assert {batch["image"].shape for batch in every} == {(5, 4, 4, 3)}
    assert [batch["weight"].sum() for batch in every] == [5, 5, 5, 5, 3]
    last = every[-1]
    assert last["weight"].tolist() == [1, 1, 1, 0, 0] and last["weight"].dtype == np.float32
    assert (last["index"][3:] == every[0]["index"][:2]).all() and last["index"].dtype == np.int32


def test_source_smaller_than_a_batch_makes_one(source):
    (only,) = batches(source.select([3, 1]), shuffle=False).epoch(0)
    assert only["index"].tolist() == [0, 1, 0, 1, 0] and only["weight"].tolist() == [1, 1, 0, 0, 0]


@pytest.mark.parametrize("start", [0, 1, 4, 5])
def test_epoch_started_at_a_step_goes_on_as_if_from_the_beginning(source, start):
    whole = list(batches(source).epoch(3))
    assert_same(batches(source).epoch(3, start), whole[start:])


@pytest.mark.parametrize("workers", [0, 1, 4, None])
def test_batches_do_not_depend_on_the_number_of_workers(source, workers):
    assert_same(batches(source, workers=workers).epoch(1), batches(source, workers=2).epoch(1))


def test_seed_and_epoch_decide_the_order(source):
    def order(seed, epoch):
        return tuple(batches(source, seed=seed).order(epoch))

    assert order(7, 0) == order(7, 0)
    # Seed and epoch are apart: seed 7's second epoch is not seed 8's first.
    assert len({order(7, 0), order(7, 1), order(8, 0), order(8, 1)}) == 4


def test_every_example_gets_its_own_chance_in_every_epoch(source):
    noise = [
        np.concatenate([b["noise"][b["weight"] > 0] for b in batches(source).epoch(e)])
        for e in (0, 1)
    ]
    assert len(np.unique(np.concatenate(noise))) == 46


def test_without_shuffling_the_encoder_gets_no_chance(source):
    assert all((batch["noise"] == 0).all() for batch in batches(source, shuffle=False).epoch(0))


def test_balanced_epochs_draw_every_class_equally_often(source):
    balanced = batches(source, balanced=True)
    totals = np.zeros(3, int)
    for epoch in range(3):
        labels = source.label_array[indices(balanced.epoch(epoch))]
        counts = np.bincount(labels)
        assert counts.sum() == 23 and counts.max() - counts.min() <= 1
        totals += counts
    assert totals.max() - totals.min() <= 3


def test_balanced_epoch_uses_a_class_up_before_repeating(source):
    found = indices(batches(source, balanced=True).epoch(0))
    times = np.bincount(found, minlength=23)
    for label in range(3):
        members = times[source.label_array == label]
        assert members.max() - members.min() <= 1


def test_balancing_several_labels_is_refused():
    images = np.random.default_rng(0).integers(0, 256, (4, 2, 2, 3), np.uint8)
    data = (images, [["a"], ["a", "b"], ["b"], []])
    source = open_data(data, DataSpec(validation_fraction=0), seed=0).train
    with pytest.raises(DataError, match="balanced: needs one label per example"):
        batches(source, balanced=True).epoch(0)


def test_empty_source_is_refused(source):
    with pytest.raises(DataError, match="expected at least one example"):
        batches(source.select([])).epoch(0)


def test_shapes_that_differ_are_refused_by_column(source):
    def ragged(example, rng):
        return {"image": np.zeros((int(example["label"]) + 1, 2))}

    with pytest.raises(DataError, match=r"column 'image': .* \(1, 2\) and \(3, 2\)"):
        list(batches(source, encode=ragged, batch_size=23).epoch(0))


def test_file_that_breaks_during_training_is_named(folder):
    root = folder(a=4, b=4)
    source = open_data(root, DataSpec(validation_fraction=0), seed=0).train
    (root / "b" / "2.png").write_bytes(b"broken")
    with pytest.raises(DataError, match=r"b/2\.png: cannot be read as an image") as caught:
        list(batches(source, batch_size=2).epoch(0))
    assert not getattr(caught.value, "__notes__", [])
    assert not waited("grain-prefetch")


def test_fault_of_the_encoder_names_the_example(source):
    def faulty(example, rng):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError) as caught:
        list(batches(source, encode=faulty, shuffle=False).epoch(0))
    assert caught.value.__notes__ == ["while reading data.train.images[0]"]


def test_threads_end_with_the_last_batch_a_break_and_an_interrupt(source):
    list(batches(source).epoch(0))
    assert not waited("grain-prefetch")
    for _ in batches(source).epoch(0):
        break
    assert not waited("grain-prefetch")

    def train():
        for _ in batches(source).epoch(0):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train()
    assert not waited("grain-prefetch")


def test_unlabelled_images_make_batches_too():
    images = open_images([np.full((2, 2, 3), i, np.uint8) for i in range(3)])

    def pixels(example, rng):
        return {"image": example["image"]}

    found = list(batches(images, encode=pixels, batch_size=2, shuffle=False).epoch(0))
    assert [batch["image"][:, 0, 0, 0].tolist() for batch in found] == [[0, 1], [2, 0]]


def test_nothing_is_printed_or_logged(source, capfd, caplog):
    with caplog.at_level(logging.DEBUG):
        list(batches(source, workers=8, batch_size=1, prefetch=1).epoch(0))
    assert capfd.readouterr() == ("", "") and not caplog.records


@pytest.mark.parametrize("workers", [0, 2])
def test_processes_that_read_their_own_rows_have_the_whole_batches_between_them(source, workers):
    whole = list(batches(source, batch_size=4).epoch(1, 2))
    shares = [
        list(batches(source, batch_size=4, workers=workers).of_rows(rows).epoch(1, 2))
        for rows in ((0, 1), (2, 3))
    ]
    joined = [
        {name: np.concatenate([one[name], other[name]]) for name in one}
        for one, other in zip(*shares, strict=True)
    ]
    assert_same(whole, joined)


def test_rows_of_other_processes_are_not_read():
    class Counted:
        def __init__(self):
            self.read = []

        def __len__(self):
            return 8

        def __getitem__(self, index):
            self.read.append(index)
            return {"id": str(index), "image": np.zeros((2, 2, 3), np.uint8), "label": 0}

    source = Counted()
    own = batches(source, batch_size=4, shuffle=False, workers=0).of_rows((1, 3))
    assert indices(own.epoch(0)).tolist() == [1, 3, 5, 7]
    assert sorted(source.read) == [1, 3, 5, 7]
