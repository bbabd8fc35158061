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


# Sums that jaxlib 0.10.2 gets wrong on a CPU: of a product with a broadcast (jax-ml/jax issue 39103
# has the other), which are off by more than all that there is to sum. Products are still fused.
SUMS = """
import jax, jax.numpy as jnp, numpy as np
rng = np.random.default_rng(0)
a, x, w = (rng.normal(size=s).astype("float32") for s in ((5, 60, 60), (33_000, 3), (3, 3)))
programs = [
    (lambda a: jnp.sum((a @ jnp.full_like(a, 0.37)) * a, axis=-1), [a]),
    (lambda x, w: jax.vmap(lambda row: jnp.sum(jnp.square(w @ row)))(x), [x, w]),
]
wide = [array.astype("float64") for array in (a, x, w)]
right = [
    ((wide[0] @ np.full((5, 60, 60), 0.37)) * wide[0]).sum(-1),
    np.square(wide[1] @ wide[2].T).sum(-1),
]
for (program, given), expected in zip(programs, right):
    found = jax.jit(program)(*given)
    print("error:", np.abs(found - expected).max() / np.abs(expected).max())
"""


def errors_of(done: subprocess.CompletedProcess[str]) -> list[float]:
    assert done.returncode == 0, done.stderr
    found = [line.split()[1] for line in done.stdout.splitlines() if line.startswith("error:")]
    assert len(found) == 2
    return [float(error) for error in found]


def test_programs_that_a_cpu_computes_sum_up_right() -> None:
    plain = dict.fromkeys(("XLA_FLAGS", "JAX_DISABLE_MOST_OPTIMIZATIONS"))
    done = python(f"import tunekit\n{SUMS}", JAX_PLATFORMS="cpu", **plain)
    # Rounding of float32 over 3,600 products; what is wrong is wrong in the first digit.
    assert max(errors_of(done)) < 1e-5


def test_a_choice_of_fusions_in_the_environment_is_left_alone() -> None:
    mine = "--xla_cpu_experimental_ynn_fusion_type=individual_dot --xla_dump_to="
    done = python("import tunekit, os; print(os.environ['XLA_FLAGS'])", XLA_FLAGS=mine)
    assert done.stdout.strip() == mine


def test_other_flags_in_the_environment_stay() -> None:
    done = python("import tunekit, os; print(os.environ['XLA_FLAGS'])", XLA_FLAGS="--xla_dump_to=")
    first, second = done.stdout.split()
    assert first == "--xla_dump_to=" and second.endswith("ynn_fusion_type=-reduce")


@pytest.mark.parametrize("version", ["0.10.1", "0.12.0", "1.0"])
def test_a_jaxlib_that_sums_up_right_is_told_nothing(version: str) -> None:
    code = f"import jaxlib.version as v, os; v.__version__ = {version!r}; import tunekit"
    done = python(f"{code}; print(os.environ.get('XLA_FLAGS'))", XLA_FLAGS=None)
    assert done.stdout.split() == ["None"], done.stderr


def test_who_has_run_jax_before_is_told_that_its_sums_may_be_wrong() -> None:
    code = "import jax; jax.devices(); import tunekit, os; assert 'XLA_FLAGS' not in os.environ"
    done = python(code, XLA_FLAGS=None, JAX_PLATFORMS="cpu")
    assert "RuntimeWarning: JAX had run before tunekit was imported" in done.stderr
    assert "Import tunekit first, or set XLA_FLAGS=--xla_cpu" in done.stderr
    assert "RuntimeWarning" not in python("import jax; import tunekit", XLA_FLAGS=None).stderr


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
