"""Lowered steps in a folder: they compute what the program in memory computes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from tunekit.cli import main
from tunekit.errors import ExportError, ModelError
from tunekit.planning.artifact import Artifact, load_artifact, write_artifact
from tunekit.planning.hardware import target
from tunekit.planning.shapes import planned
from tunekit.recipe import Recipe

EXAMPLES, LABELS = 640, 10


@pytest.fixture(scope="module")
def recipe() -> Recipe:
    return Recipe.load("vision/linear_probe")


@pytest.fixture(scope="module")
def folder(recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("artifacts") / "probe"
    machine, platforms = target("v5e-1"), ["tpu", "cpu"]
    write_artifact(recipe, machine, out, examples=EXAMPLES, labels=LABELS, platforms=platforms)
    return out


@pytest.fixture(scope="module")
def artifact(folder: Path) -> Artifact:
    return load_artifact(folder)


def values_of(artifact: Artifact) -> dict[str, np.ndarray]:
    """Some values for every argument of the first phase."""
    rng = np.random.default_rng(0)
    values = {}
    for each in artifact.phases[0].arguments:
        dtype = np.dtype(each["dtype"])
        integers = np.issubdtype(dtype, np.integer)
        drawn = rng.integers(0, 10, each["shape"]) if integers else rng.random(each["shape"]) * 0.1
        values[each["name"]] = drawn.astype(dtype)
    return values


def test_a_loaded_step_computes_what_the_live_program_does(
    artifact: Artifact, recipe: Recipe
) -> None:
    values = values_of(artifact)
    found = artifact.step(0, values)

    run = planned(recipe, examples=EXAMPLES, labels=LABELS).programs()
    leaves, tree = jax.tree.flatten(run.arguments(0))
    *given, key = values.values()
    live = jax.tree.unflatten(tree, [*given, jax.random.wrap_key_data(key)])
    assert len(leaves) == len(values)
    carried, measured = jax.jit(run.step(0))(*live)
    expected = [*jax.tree.leaves(carried), *jax.tree.leaves(measured)]
    assert list(found) == list(artifact.phases[0].results) and len(found) == len(expected)
    for name, value in zip(found, expected, strict=True):
        np.testing.assert_allclose(found[name], value, rtol=2e-5, atol=1e-6, err_msg=name)
    moved = "carried/trainable/heads/label/logits/kernel"
    assert np.abs(found[moved] - values[moved]).max() > 1e-6


def test_the_manifest_says_what_each_file_and_argument_is(folder: Path, recipe: Recipe) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["target"] == {"name": "v5e-1", "chip": "TPU v5e", "devices": 1}
    assert manifest["versions"]["jax"] == jax.__version__
    (phase,) = manifest["phases"]
    assert phase["platforms"] == ["tpu", "cpu"]
    kernel = "carried/trainable/heads/label/logits/kernel"
    (described,) = [each for each in phase["arguments"] if each["name"] == kernel]
    assert described == {
        "name": kernel, "shape": [1280, LABELS], "dtype": "float32", "sharding": None
    }  # fmt: skip
    files = {path.name for path in folder.iterdir()}
    assert files == {"manifest.json", *manifest["sha256"]}
    assert "stablehlo.dot_general" in (folder / phase["text"]).read_text()
    assert Recipe.load(folder / "recipe.yaml") == recipe


def test_a_changed_or_missing_file_is_found(folder: Path, tmp_path: Path) -> None:
    for name, change in (("phase-1.jax", "not as it was"), ("recipe.yaml", "is missing")):
        copy = tmp_path / name
        copy.mkdir()
        for path in folder.iterdir():
            (copy / path.name).write_bytes(path.read_bytes())
        if change == "is missing":
            (copy / name).unlink()
        else:
            (copy / name).write_bytes(b"other")
        with pytest.raises(
            ExportError, match=rf"{name} .*{change}.* compile the recipe again|{name} is missing"
        ):
            load_artifact(copy)
    with pytest.raises(ExportError, match="holds no manifest.json"):
        load_artifact(tmp_path)


def test_wrong_arguments_are_named(artifact: Artifact) -> None:
    values: dict[str, Any] = dict(values_of(artifact))
    with pytest.raises(ExportError, match="no argument 'batch/labl'. Did you mean 'batch/label'"):
        artifact.step(0, {**values, "batch/labl": values["batch/label"]})
    with pytest.raises(ExportError, match=r"'batch/weight': expected the shape \[32\], got \[3\]"):
        artifact.step(0, {**values, "batch/weight": np.ones(3, np.float32)})
    del values["key"]
    with pytest.raises(ExportError, match=r"needs the argument 'key': uint32 \[2\]"):
        artifact.step(0, values)


def test_the_command_writes_a_folder_for_a_slice(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "artifact"
    words = ["vision/linear_probe", "--on", "v5e-8", "--out", str(out), "--examples", "640"]
    assert main(["compile", *words]) == 0
    assert f"8 x TPU v5e (v5e-8), data 8: written in {out}" in capsys.readouterr().out
    loaded = load_artifact(out)
    assert loaded.phases[0].exported.nr_devices == 8
    batch = [each for each in loaded.phases[0].arguments if each["name"] == "batch/label"]
    assert batch[0]["sharding"] == [["data", "fsdp"]]
    with pytest.raises(ExportError, match="lowered for tpu, and this machine's devices are cpu"):
        loaded.step(0, {})


def test_programs_for_several_cards_are_said_to_have_plain_attention(
    recipe: Recipe, tmp_path: Path
) -> None:
    cards = write_artifact(recipe, target("h100-2"), tmp_path, examples=EXAMPLES, labels=LABELS)
    assert any("attention is plain" in note for note in cards.manifest["notes"])


def test_other_files_are_not_written_over(recipe: Recipe, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years")
    with pytest.raises(ModelError, match=str(tmp_path)):
        write_artifact(recipe, target("v5e-1"), tmp_path, examples=EXAMPLES, labels=LABELS)
    assert (tmp_path / "thesis.tex").read_text() == "years"
