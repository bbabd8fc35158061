"""A recipe on one TPU or GPU machine in the cloud, by Keras Kinetic.

Kinetic packs a function with the folder of its module, makes an image of the requirements there,
runs it on a machine of a GKE cluster, and hands back what it returns (read from keras-kinetic
0.0.4). The folder is made here: this tunekit, its requirements and one function.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

import tunekit.launch
from tunekit.errors import DistributedError
from tunekit.launch.work import trained
from tunekit.recipe import Recipe
from tunekit.result import RUN_FOLDER

_MODULE = "tunekit_job"
_JOB = '''"""What the machine in the cloud runs."""


def train(recipe, paths):
    """Returns the metrics, the sample answers and the files of the run."""
    from tunekit.launch.on_kinetic import trained_there

    return trained_there(recipe, paths)
'''


def run_on_kinetic(recipe: Recipe, *, accelerator: str = "tpu-v5e-1") -> dict[str, Any]:
    """Returns the metrics and sample answers of the run; its result is in `runtime.out` here.

    The data and the model's folder go there where they are of this machine. What has been trained
    is lost if the machine is: its checkpoints stay there.

    Args:
        recipe: with `runtime.out`.
        accelerator: as Kinetic names it, of a single machine: "tpu-v5e-1", "gpu-l4".

    Raises:
        DistributedError: Kinetic is not installed, has no such machine, or the recipe is to be
            resumed.
    """
    assert recipe.runtime.out is not None
    if recipe.runtime.resume:
        raise DistributedError(
            "--launcher kinetic: the checkpoints of a run stay on the machine that is gone, so "
            "there is nothing to resume; leave --resume out."
        )
    kinetic, accelerators = _kinetic()
    _check_machine(accelerator, accelerators)
    paths = {name: kinetic.Data(path) for name, path in local_paths(recipe).items()}
    with project() as job:
        there = kinetic.run(accelerator=accelerator)(job.train)
        found = there(recipe.model_dump(mode="json"), paths)
    write(found.pop("files"), Path(recipe.runtime.out).expanduser())
    return found


def trained_there(tree: dict[str, Any], paths: dict[str, str]) -> dict[str, Any]:
    """Returns the metrics, sample answers and files of a run; on the machine in the cloud.

    Args:
        tree: of the recipe.
        paths: where the data and the model's folder are on this machine, by field.
    """
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out"
        for field, path in {**paths, "runtime.out": str(out)}.items():
            section, name = field.split(".")
            tree[section][name] = path
        found = trained(Recipe.model_validate(tree))
        shutil.rmtree(out / RUN_FOLDER, ignore_errors=True)
        files = [path for path in out.rglob("*") if path.is_file()]
        return {**found, "files": {str(path.relative_to(out)): path.read_bytes() for path in files}}


def local_paths(recipe: Recipe) -> dict[str, str]:
    """Returns what of the recipe is on this machine, by field: the data, the model's folder."""
    given = {"data.path": recipe.data.path, "backbone.name": recipe.backbone.name}
    here = {name: str(Path(path).expanduser()) for name, path in given.items() if path}
    return {name: path for name, path in here.items() if os.path.exists(path)}


def write(files: dict[str, bytes], out: Path) -> None:
    """Writes the files of a run into a folder."""
    for name, content in files.items():
        path = out / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


@contextmanager
def project() -> Iterator[Any]:
    """Yields the module of the function to run, in a folder with all that it needs there."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        package = Path(tunekit.launch.__file__).parents[1]
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(package, folder / "tunekit", ignore=ignored)
        recipes = package.parent / "recipes"
        if recipes.is_dir() and not (package / "_recipes").is_dir():
            shutil.copytree(recipes, folder / "tunekit" / "_recipes")
        (folder / "requirements.txt").write_text("\n".join(requirements()) + "\n")
        (folder / f"{_MODULE}.py").write_text(_JOB)
        spec = importlib.util.spec_from_file_location(_MODULE, folder / f"{_MODULE}.py")
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        # Pickled by its name, under which the machine finds it beside the package.
        sys.modules[_MODULE] = module
        try:
            spec.loader.exec_module(module)
            yield module
        finally:
            del sys.modules[_MODULE]


def requirements() -> list[str]:
    """Returns what tunekit itself needs; JAX for the accelerator is Kinetic's to choose."""
    needed = metadata.requires("tunekit") or []
    return [each for each in needed if "extra ==" not in each]


def _check_machine(accelerator: str, accelerators: Any) -> None:
    try:
        found = accelerators.parse_accelerator(accelerator)
    except ValueError as error:
        raise DistributedError(f"--accelerator: {error}") from None
    if getattr(found, "num_nodes", 1) > 1:
        raise DistributedError(
            f"--accelerator: {accelerator} is {found.num_nodes} machines, and Kinetic runs a "
            "recipe on one; choose a smaller one, or --launcher ray."
        )


def _kinetic() -> tuple[Any, Any]:
    try:
        kinetic = importlib.import_module("kinetic")
        accelerators = importlib.import_module("kinetic.core.accelerators")
    except ImportError as error:
        raise DistributedError(
            f"--launcher kinetic needs Keras Kinetic, and it is not here ({error}): "
            "pip install 'tunekit[kinetic]'"
        ) from None
    return kinetic, accelerators
