"""Further examples drawn among those of the data."""

from __future__ import annotations

import json
from collections import Counter

import pytest

from tunekit.data.spec import DataSpec, MixedSpec
from tunekit.data.text_source import open_text, open_text_examples
from tunekit.errors import DataError


@pytest.fixture
def general(tmp_path):
    """Returns a file of ten plain texts."""
    path = tmp_path / "general.txt"
    path.write_text("\n".join(f"general {i}" for i in range(10)))
    return path


def opened(data, kind, *mix, seed=0, **fields):
    spec = DataSpec(**{"validation_fraction": 0.0, "mix": tuple(mix), **fields})
    return open_text(data, spec, kind, seed=seed)


def replayed(source):
    return [source[i]["text"] for i in range(len(source)) if source[i].get("text", "d")[0] == "g"]


DIALOGUES = [{"prompt": f"{i}?", "response": f"{i}."} for i in range(8)]
PLAIN = [f"data {i}" for i in range(8)]


def test_general_text_is_replayed_among_dialogues(general):
    source = opened(DIALOGUES, "dialogue", MixedSpec(str(general), 0.5)).train
    assert len(source) == 12 and len(set(replayed(source))) == 4
    assert [source[i]["messages"][0]["content"] for i in range(8)] == [f"{i}?" for i in range(8)]
    assert source[8]["id"].startswith("general.txt:") and source.kind == "dialogue"
    assert source.sizes.shape == source.digests.shape == (12,)
    assert source.select([11, 0])[0]["text"] in replayed(source)


def test_the_draw_is_fixed_by_the_seed(general):
    mix = MixedSpec(str(general), 0.5)
    first, same, other = (opened(PLAIN, "plain", mix, seed=seed).train for seed in (0, 0, 1))
    assert replayed(first) == replayed(same) != replayed(other)
    assert first.fingerprint == same.fingerprint != other.fingerprint


def test_none_comes_twice_before_all_have_come_once(general):
    counts = Counter(replayed(opened(PLAIN, "plain", MixedSpec(str(general), 3)).train))
    assert sum(counts.values()) == 24 and set(counts.values()) == {2, 3} and len(counts) == 10


def test_what_is_evaluated_on_is_never_mixed_in(general):
    data = {"train": PLAIN, "test": [f"general {i}" for i in range(9)]}
    source = opened(data, "plain", MixedSpec(str(general), 1)).train
    assert set(replayed(source)) == {"general 9"} and len(replayed(source)) == 8


def test_a_source_all_of_which_is_evaluated_on_is_an_error(general):
    data = {"train": PLAIN, "test": [f"general {i}" for i in range(10)]}
    with pytest.raises(DataError, match=r"data\.mix\[0\]: all 10 examples are evaluated on"):
        opened(data, "plain", MixedSpec(str(general), 1))


def test_several_sources_are_drawn_by_their_weights(general, tmp_path):
    (tmp_path / "more.txt").write_text("\n".join(f"more {i}" for i in range(10)))
    mix = [MixedSpec(str(general), 0.25), MixedSpec(str(tmp_path / "more.txt"), 0.5)]
    source = opened(PLAIN, "plain", *mix).train
    assert len(source) == 8 + 2 + 4 and len(replayed(source)) == 2


def test_the_validation_part_is_of_the_data_alone(general):
    splits = opened(PLAIN, "plain", MixedSpec(str(general), 1), validation_fraction=0.25)
    assert len(splits.validation) == 2 and not replayed(splits.validation)
    assert len(splits.train) == 12
    assert len(opened(splits, "plain", MixedSpec(str(general), 1)).train) == 12


def labelled(tmp_path, *labels):
    path = tmp_path / "more.jsonl"
    rows = [{"text": f"more {i}", "label": label} for i, label in enumerate(labels)]
    path.write_text("\n".join(map(json.dumps, rows)))
    return MixedSpec(str(path), 1.0)


def test_labels_of_the_mixed_in_are_those_of_the_data(tmp_path):
    data = (["a", "b"], ["x", "y"])
    source = opened(data, "labelled", labelled(tmp_path, "y", "y")).train
    assert source.label_names == ("x", "y") and source.label_array.tolist() == [0, 1, 1, 1]
    with pytest.raises(
        DataError, match=r"data\.mix\[0\]: labels not among those of train \(x, y\): z"
    ):
        opened(data, "labelled", labelled(tmp_path, "y", "z"))
    with pytest.raises(
        DataError, match=r"mix\[0\]: examples have several labels where train has o"
    ):
        opened(data, "labelled", labelled(tmp_path, "y", ["x", "y"]))


def test_bad_rows_of_a_mixed_in_file_are_told(tmp_path):
    (tmp_path / "bad.jsonl").write_text('{"text": "a"}\n{')
    mix = MixedSpec(str(tmp_path / "bad.jsonl"), 1.0)
    with pytest.raises(DataError, match=r"data\.mix\[0\]: bad\.jsonl:2: invalid JSON"):
        opened(PLAIN, "plain", mix)
    with pytest.warns(UserWarning, match=r"data\.mix\[0\]: skipped 1 of 2 rows"):
        assert len(opened(PLAIN, "plain", mix, on_unreadable="skip").train) == 16


def test_evaluation_mixes_nothing_in(general):
    spec = DataSpec(mix=(MixedSpec(str(general), 1.0),))
    assert len(open_text_examples(PLAIN, (), spec, "plain")) == 8
