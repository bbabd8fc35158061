from __future__ import annotations

import numpy as np
import pytest

from tunekit.data.stratify import draw, split


def names(count):
    return [str(i) for i in range(count)]


@pytest.mark.parametrize("fraction", [0.1, 0.2, 0.5, 0.9])
def test_split_is_a_partition_that_keeps_shares(fraction):
    labels = np.repeat([0, 1, 2], [100, 50, 10])
    train, held_out = split(labels, names(160), fraction, seed=3)
    assert sorted([*train, *held_out]) == list(range(160))
    assert np.bincount(labels[held_out]).tolist() == [100 * fraction, 50 * fraction, 10 * fraction]


@pytest.mark.parametrize("fraction", [0.01, 0.99])
def test_both_parts_have_every_class_of_two_or_more(fraction):
    labels = np.array([0, 0, 1, 1, 1, 2])
    train, held_out = split(labels, names(6), fraction, seed=0)
    assert set(labels[train]) == {0, 1, 2} and set(labels[held_out]) == {0, 1}


def test_copies_under_different_labels_stay_together():
    labels = np.repeat([0, 1], 10)
    digests = [*names(10), *names(10)]
    for seed in range(5):
        train, held_out = split(labels, digests, 0.3, seed)
        assert not {digests[i] for i in train} & {digests[i] for i in held_out}


def test_multi_label_split_keeps_the_share_of_rare_labels():
    rng = np.random.default_rng(0)
    labels = (rng.random((400, 4)) < [0.5, 0.3, 0.1, 0.05]).astype(np.float32)
    _, held_out = split(labels, names(400), 0.25, seed=0)
    share = labels[held_out].sum(0) / labels.sum(0)
    assert len(held_out) == pytest.approx(100, abs=3) and np.all(np.abs(share - 0.25) < 0.06)


def test_no_label_is_held_out_whole():
    rng = np.random.default_rng(0)
    for seed in range(200):
        labels = (rng.random((8, 5)) < 0.25).astype(np.float32)
        train, _ = split(labels, names(8), 0.5, seed)
        assert np.array_equal(labels[train].any(0), labels.any(0))


@pytest.mark.parametrize("count", [3, 7, 16, 160])
def test_draw_keeps_every_class_and_its_share(count):
    labels = np.repeat([0, 1, 2], [80, 70, 10])
    kept = draw(labels, count, seed=1)
    assert len(set(kept)) == count and set(labels[kept]) == {0, 1, 2}
    if count == 16:
        assert np.bincount(labels[kept]).tolist() == [8, 7, 1]
