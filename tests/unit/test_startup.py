"""What importing tunekit does to a process, seen in processes of their own."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from types import ModuleType

import pytest

import tunekit

HEAVY = ("jax", "keras", "keras_hub", "tensorflow", "pydantic", "numpy", "matplotlib", "yaml")


def python(code: str, **environment: str | None) -> subprocess.CompletedProcess[str]:
    merged = {**os.environ, "KERAS_BACKEND": None, **environment}
    clean = {name: value for name, value in merged.items() if value is not None}
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", code], env=clean, capture_output=True, text=True
    )


def loaded_after(code: str) -> set[str]:
    done = python(f"{code}\nimport sys; print('loaded:', *sys.modules)")
    assert done.returncode == 0, done.stderr
    return set(done.stdout.rpartition("loaded:")[2].split()) & set(HEAVY)


def test_importing_tunekit_loads_nothing_heavy() -> None:
    assert loaded_after("import tunekit; dir(tunekit)") == set()


def test_the_help_of_the_command_loads_nothing_heavy() -> None:
    code = "from tunekit.cli import main\ntry: main(['--help'])\nexcept SystemExit: pass"
    assert loaded_after(code) == set()


def test_listing_recipes_loads_nothing_heavy() -> None:
    assert loaded_after("from tunekit.cli import main; main(['ls'])") == set()


def test_validating_a_recipe_loads_no_array_library() -> None:
    code = "from tunekit.cli import main; assert main(['validate', 'vision/lp_ft']) == 0"
    assert loaded_after(code) == {"pydantic", "yaml"}


def test_keras_runs_on_jax_where_nothing_is_said() -> None:
    done = python("import tunekit, os; print(os.environ['KERAS_BACKEND'])")
    assert done.stdout.split() == ["jax"], done.stderr


def test_another_backend_in_the_environment_is_refused_with_the_cure() -> None:
    done = python("import tunekit", KERAS_BACKEND="torch")
    assert done.returncode == 1
    assert "BackendError: tunekit runs Keras on JAX" in done.stderr
    assert "says 'torch'. Unset it, or set KERAS_BACKEND=jax." in done.stderr


def test_keras_imported_before_on_another_backend_is_refused_with_the_cure() -> None:
    code = (
        "import os; os.environ['KERAS_BACKEND'] = 'numpy'; import keras\n"
        "del os.environ['KERAS_BACKEND']; import tunekit"
    )
    # Keras' own imports warn, so warnings are no errors here.
    done = python(f"import warnings; warnings.simplefilter('ignore')\n{code}")
    assert done.returncode == 1
    assert "Keras, imported earlier in this process, says 'numpy'" in done.stderr
    assert "Import tunekit before keras" in done.stderr


def test_finetune_stays_the_function_when_its_module_is_imported() -> None:
    # Left to itself, the import system puts the module over the function of the same name.
    module = importlib.import_module("tunekit.finetune")
    tunekit.finetune = module
    assert isinstance(module, ModuleType)
    assert tunekit.finetune is module.finetune


@pytest.mark.parametrize("name", tunekit.__all__)
def test_every_public_name_is_there(name: str) -> None:
    assert getattr(tunekit, name) is not None
    assert name in dir(tunekit)


def test_a_name_that_is_not_public_is_answered_with_a_near_one() -> None:
    with pytest.raises(AttributeError, match="'fintune'. Did you mean 'finetune'"):
        tunekit.fintune  # noqa: B018


def test_naming_a_method_loads_no_array_library() -> None:
    assert loaded_after("import tunekit; tunekit.LoRA(rank=4)") == set()
