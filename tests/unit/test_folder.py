from __future__ import annotations

import json
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from tunekit.errors import ModelError
from tunekit.folder import (
    listed,
    mismatches,
    read_json,
    read_tensors,
    read_text,
    replacing,
    table,
    write_json,
)

OURS = ("a.json", "b.json")


def replace_with(folder, name="a.json"):
    with replacing(folder, OURS, marks=OURS) as new:
        (new / name).write_text("new")


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_folder_appears_with_its_parents(tmp_path):
    replace_with(tmp_path / "deep" / "out")
    assert names(tmp_path / "deep" / "out") == ["a.json"]
    assert names(tmp_path / "deep") == ["out"]


def test_files_of_an_earlier_save_go_and_others_stay(tmp_path):
    out = tmp_path / "out"
    replace_with(out, "b.json")
    (out / "mine.txt").write_text("mine")
    replace_with(out, "a.json")
    assert names(out) == ["a.json", "mine.txt"]
    assert names(tmp_path) == ["out"]


def test_an_exception_in_the_block_leaves_the_folder_as_it_was(tmp_path):
    replace_with(tmp_path / "out", "b.json")
    with pytest.raises(KeyboardInterrupt):
        with replacing(tmp_path / "out", OURS, marks=OURS):
            raise KeyboardInterrupt
    assert names(tmp_path / "out") == ["b.json"]
    assert names(tmp_path) == ["out"]


def test_a_swap_that_fails_half_way_puts_the_earlier_folder_back(tmp_path):
    replace_with(tmp_path / "out", "b.json")
    with pytest.raises(FileNotFoundError):
        with replacing(tmp_path / "out", OURS, marks=OURS) as new:
            new.rmdir()  # so that it cannot be renamed once the earlier one is out of the way
    assert names(tmp_path / "out") == ["b.json"]


def test_a_folder_without_a_mark_is_refused(tmp_path):
    (tmp_path / "letters.txt").write_text("")
    with pytest.raises(ModelError, match="holds other files"):
        replace_with(tmp_path)


def test_json_is_strict_whatever_the_numbers_came_as(tmp_path):
    path = tmp_path / "x.json"
    value = {"a": np.float32(0.5), "b": (jnp.asarray(2), float("inf")), "c": Path("p"), 1: None}
    write_json(path, {**value, "d": np.asarray([1.0, np.nan]), "e": True})
    expected = {"a": 0.5, "b": [2, None], "c": "p", "1": None, "d": [1.0, None], "e": True}
    assert read_json(path) == json.loads(path.read_text()) == expected


def test_what_cannot_be_read_is_named(tmp_path):
    with pytest.raises(ModelError, match=r"x\.yaml is missing"):
        read_text(tmp_path / "x.yaml")
    (tmp_path / "x.json").write_text("{")
    with pytest.raises(ModelError, match=r"x\.json is damaged"):
        read_json(tmp_path / "x.json")


def test_tensors_that_cannot_be_read_are_named(tmp_path):
    with pytest.raises(ModelError, match=r"x\.safetensors is missing"):
        read_tensors(tmp_path / "x.safetensors")
    (tmp_path / "x.safetensors").write_bytes(b"cut")
    with pytest.raises(ModelError, match=r"x\.safetensors is damaged"):
        read_tensors(tmp_path / "x.safetensors")


def test_every_mismatch_of_arrays_is_told_dtypes_only_where_they_count():
    wanted = {"a": np.zeros(2), "b": np.zeros((2, 3)), "kernel": np.zeros(1)}
    found = {"a": np.zeros(2, np.float32), "b": np.zeros(2), "kernels": np.zeros(1)}
    expected = [
        "missing: kernel. Did you mean 'kernels'?",
        "not in the model: kernels",
        "b: expected shape (2, 3), got (2,)",
    ]
    assert mismatches(found, wanted) == expected
    assert "a: expected float64, got float32" in mismatches(found, wanted, dtypes=True)
    assert mismatches(wanted, wanted, dtypes=True) == []


def test_of_many_mistakes_ten_are_listed():
    assert listed(["a", "b"]) == "a\n  b"
    assert listed(["x"] * 12).splitlines()[10:] == ["  and 2 more"]


def test_a_table_has_every_column_that_a_row_has():
    assert table([{"a": 1}, {"b": 2, "a": 3}]) == "a,b\n1,\n3,2\n"
