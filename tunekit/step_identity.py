"""What the compiled steps of a run are made from: equal for two starts only if the steps are."""

from __future__ import annotations

import hashlib
import json
import os
import re
import sys
from pathlib import Path
from typing import Any

import jax
import keras

from tunekit.compilation_cache import kept_steps_folder
from tunekit.data.source import Splits
from tunekit.distributed import process_count
from tunekit.errors import ModelError
from tunekit.models.cpu_memory import keep_freed_memory
from tunekit.models.model import Model
from tunekit.names import layer_names
from tunekit.recipe import Recipe
from tunekit.saved import described
from tunekit.training.kept_steps import ExpectedStep, KeptSteps

_UNTRACED = {
    "runtime": {"out", "resume", "checkpoint_every", "keep_checkpoints", "progress"},
    "data": {"path"},
    "cache": {"folder"},
}
"""Fields of a recipe that no step depends on; of a field that is new nobody has said so."""
_KNOWN_CODE = ("keras", "keras_hub", "tunekit")
_TRACED_BY = ("jax", "jaxlib", "keras", "keras_hub", "optax", "numpy", "tunekit")
_SETTINGS = ("JAX_", "XLA_", "LIBTPU_", "KERAS_", "TUNEKIT_")
"""How the environment variables begin that decide of a program."""


def expected_step(recipe: Recipe) -> ExpectedStep | None:
    """Begins to load the step that the last start of a recipe began with; `None` without steps.

    It needs a second or more of a thread of its own, which are there while the model is loaded.
    """
    folder = kept_steps_folder()
    if folder is None or process_count() > 1:
        return None
    keep_freed_memory()  # Which has to be told to `malloc` before JAX starts its threads.
    return ExpectedStep(folder, _short_name(recipe))


def kept_steps(
    recipe: Recipe, splits: Splits, model: Model, expected: ExpectedStep | None = None
) -> KeptSteps | None:
    """Returns the steps that earlier starts of a run have left; `None` where none are kept.

    Args:
        recipe: of the run, on one device.
        splits: its data.
        model: as the recipe names it. One with layers of somebody else's code keeps no steps: the
            code may change, and nothing here would tell.
        expected: on its way already.
    """
    folder = kept_steps_folder()
    if folder is None or process_count() > 1 or not _is_known_code(model):
        return None
    try:
        architecture = described(model)
    except ModelError:
        return None
    machine = {"versions": _versions(), "settings": _settings()}
    made_from = {
        **machine,
        "recipe": _traced(recipe),
        "data": splits.fingerprints(),
        "model": _numbered_anew(json.dumps(architecture, sort_keys=True, default=str)),
        "weights": _stamps(Path(recipe.backbone.name).expanduser(), "*"),
        "code": _LOADED_CODE,
    }
    return KeptSteps(folder, _hash(made_from), _hash(machine), _short_name(recipe), expected)


def _short_name(recipe: Recipe) -> str:
    return _hash({"recipe": _traced(recipe), "data": recipe.data.path})[:16]


def _traced(recipe: Recipe) -> dict[str, Any]:
    return recipe.model_dump(mode="json", exclude=_UNTRACED)


def _hash(facts: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()


def _numbered_anew(description: str) -> str:
    """A description in which names that Keras numbers in each process count from its beginning."""
    seen: dict[str, str] = {}
    numbered = re.compile(r'"[A-Za-z]\w*_\d+"')
    return numbered.sub(lambda name: seen.setdefault(name[0], f'"#{len(seen)}"'), description)


def _is_known_code(model: Model) -> bool:
    layers = [model.backbone.keras, *layer_names(model.keras).values()]
    return all(type(layer).__module__.partition(".")[0] in _KNOWN_CODE for layer in layers)


def _stamps(path: Path, pattern: str) -> list[tuple[str, int, int]]:
    """Name, bytes and time of change of a file, or of the files in a folder; else nothing."""
    files = sorted(path.rglob(pattern)) if path.is_dir() else [path]
    facts = ((str(file), file.stat()) for file in files if file.is_file())
    return [(name, fact.st_size, fact.st_mtime_ns) for name, fact in facts]


_LOADED_CODE = _stamps(Path(__file__).parent, "*.py")
"""Of tunekit when this process read it: a notebook goes on with that code where it is upgraded."""


def _versions() -> dict[str, str]:
    """Of what traces and compiles, as it is loaded; what is installed may be newer by now."""
    loaded = {name: sys.modules.get(name) for name in _TRACED_BY}
    return {name: str(getattr(module, "__version__", None)) for name, module in loaded.items()}


def _settings() -> dict[str, Any]:
    """What of this process and its machine tracing and compiling look at."""
    devices = jax.devices()
    return {
        "device": (devices[0].platform, devices[0].device_kind, len(devices)),
        "jax": {name: str(value) for name, value in jax.config.values.items()},
        "keras": (
            keras.config.floatx(),
            keras.config.epsilon(),
            keras.config.image_data_format(),
            keras.config.dtype_policy().name,
        ),
        "environment": {n: v for n, v in os.environ.items() if n.startswith(_SETTINGS)},
    }
