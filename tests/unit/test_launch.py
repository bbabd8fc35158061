"""Engines that start processes elsewhere: what they are asked for, and what each is given."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.contract.process_runs import dialogues
from tests.contract.text_families import llama
from tunekit.cli import main
from tunekit.errors import DistributedError
from tunekit.launch import on_kinetic, on_ray
from tunekit.recipe import Recipe


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Trains a tiny Llama for two steps."""
    folder = tmp_path_factory.mktemp("launch")
    llama(folder / "llama")
    tree = {
        "backbone": {"name": str(folder / "llama")},
        "data": {"path": str(dialogues(folder))},
        "task": {"name": "sft", "samples": 0},
        "plan": [{"epochs": 1, "learning_rate": 1e-3}],
        "batch": {"size": 4, "max_length": 64},
        "runtime": {"out": str(folder / "out"), "progress": "none"},
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(tree))
    return folder / "recipe.yaml"


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--workers", "2"], "--workers is of an engine; name it with --launcher"),
        (["--accelerator", "gpu"], "--accelerator is of an engine; name it with --launcher"),
        (["--launcher", "ray", "--process", "1"], "--process: --launcher ray sees to that"),
        (["--launcher", "ray", "--workers", "0"], "--workers: expected 1 or more, got 0"),
        (["--launcher", "ray", "--accelerator", "gpu:x"], "is given cpu, gpu or tpu, several as"),
        (["--launcher", "kinetic", "--workers", "2"], "Kinetic runs on a single machine"),
        (["--launcher", "kinetic", "--resume"], "there is nothing to resume; leave --resume out"),
    ],
)
def test_options_that_do_not_go_together_are_refused(
    recipe: Path, options: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", str(recipe), *options]) == 2
    assert told in capsys.readouterr().err


@pytest.mark.parametrize(("name", "extra"), [("ray", "ray"), ("kinetic", "kinetic")])
def test_an_engine_that_is_not_installed_is_a_line_with_what_to_install(
    recipe: Path, name: str, extra: str, monkeypatch: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    assert main(["run", str(recipe), "--launcher", name]) == 2
    said = capsys.readouterr().err
    assert f"pip install 'tunekit[{extra}]'" in said and len(said.splitlines()) == 1


@pytest.mark.parametrize(
    ("workers", "accelerator", "each"),
    [
        (2, "cpu", {"CPU": 1}),
        (2, "gpu:4", {"GPU": 4}),
        (1, "tpu:4", {"TPU": 4}),
        (4, "tpu-v6e:4x4", {"TPU": 4}),
    ],
)
def test_ray_itself_accepts_what_it_is_asked_for(
    workers: int, accelerator: str, each: dict[str, int]
) -> None:
    from ray.train import ScalingConfig

    asked = ScalingConfig(**on_ray.scaling(workers, accelerator))
    assert asked.num_workers == workers
    assert each.items() <= asked._resources_per_worker_not_none.items()


def test_an_accelerator_that_ray_has_not_is_refused() -> None:
    with pytest.raises(DistributedError, match="as in tpu-v6e:4x4; got 'tpu-v5e-1'"):
        on_ray.scaling(1, "tpu-v5e-1")


def test_the_data_and_the_model_of_this_machine_go_to_the_cloud(recipe: Path) -> None:
    read = Recipe.load(recipe)
    folder = recipe.parent
    expected = {"data.path": folder / "dialogues.jsonl", "backbone.name": folder / "llama"}
    assert on_kinetic.local_paths(read) == {name: str(path) for name, path in expected.items()}
    bundled = Recipe.load(recipe, ["backbone.name=minilm", "data.path=tfds:mnist"])
    assert on_kinetic.local_paths(bundled) == {}


ELSEWHERE = """
import pickle, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import tunekit
assert tunekit.__file__.startswith(sys.argv[1]), tunekit.__file__
job, tree, paths = pickle.loads(Path(sys.argv[2]).read_bytes())
assert job.__module__ == "tunekit_job"
Path(sys.argv[2]).write_bytes(pickle.dumps(job(tree, paths)))
"""


def test_the_function_for_the_cloud_trains_in_another_process_and_hands_the_result_back(
    recipe: Path, tmp_path: Path
) -> None:
    import pickle

    import tunekit

    tree = Recipe.load(recipe).model_dump(mode="json")
    paths = {name: tree[name.split(".")[0]][name.split(".")[1]] for name in ("data.path",)}
    parcel = tmp_path / "parcel"
    with on_kinetic.project() as job:
        folder = Path(job.__file__).parent
        assert "keras-hub==0.32.*" in (folder / "requirements.txt").read_text().splitlines()
        assert (folder / "tunekit" / "_recipes" / "llm").is_dir()
        parcel.write_bytes(pickle.dumps((job.train, tree, paths)))
        command = [sys.executable, "-c", ELSEWHERE, str(folder), str(parcel)]
        subprocess.run(command, check=True, cwd=tmp_path)
    found = pickle.loads(parcel.read_bytes())
    on_kinetic.write(found["files"], tmp_path / "out")
    assert found["metrics"]["loss"] == tunekit.load(tmp_path / "out").metrics["loss"]
    assert (tmp_path / "out" / "curves.png").is_file()
    assert not list((tmp_path / "out").glob("checkpoints*"))
