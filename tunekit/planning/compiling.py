"""Compiles a recipe's steps for a named machine, in a process of its own that may crash or hang."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tunekit import errors
from tunekit.errors import Issue, RecipeError, TunekitError
from tunekit.planning.compiled import CompiledPhase
from tunekit.planning.hardware import Target
from tunekit.planning.topology import environment, require_compiler
from tunekit.planning.worker import REQUEST, RESULT
from tunekit.recipe import Recipe

__all__ = ["CompileError", "CompiledPhase", "compile_phases"]

TIMEOUT_SECONDS = 3600.0
"""Longer than any program tried takes; XLA has been seen not to end."""


class CompileError(TunekitError, RuntimeError):
    """The compiler of the target crashed, or did not end."""


def compile_phases(
    recipe: Recipe,
    target: Target,
    *,
    examples: int | None = None,
    labels: int | Sequence[str] | None = None,
    blocks: int | None = None,
    phases: Sequence[int] | None = None,
    optimization: str = "O0",
    timeout_seconds: float = TIMEOUT_SECONDS,
) -> list[CompiledPhase]:
    """Returns what the steps of a recipe's phases need on a machine, compiled for it.

    Nothing is allocated, and none of the machine's devices is needed.

    Args:
        recipe: its ``runtime.mesh`` says how the devices share the work.
        target: the machine.
        examples: of the training data; `None` as in ``tunekit.planning.shapes.planned``.
        labels: of the task, or how many.
        blocks: how many blocks of the network to build, from the first; `None` builds all.
        phases: which to compile, by number from 0; `None` is all.
        optimization: effort of a TPU's compiler, "O0" or "O1".
        timeout_seconds: after which it is given up.

    Raises:
        CompilerMissing: the compiler is not installed; the message says how it is.
        CompileError: it crashed or did not end.
        RecipeError: the mesh is not of these devices, or a batch does not divide.
        TunekitError: whatever else is wrong with the recipe.
    """
    require_compiler(target)
    request = {
        "recipe": recipe.model_dump(mode="json"),
        "target": target.name,
        "examples": examples,
        "labels": labels if labels is None or isinstance(labels, int) else list(labels),
        "blocks": blocks,
        "phases": None if phases is None else list(phases),
    }
    with tempfile.TemporaryDirectory(prefix="tunekit-plan-") as name:
        folder = Path(name)
        (folder / REQUEST).write_text(json.dumps(request), encoding="utf-8")
        settings = environment(target, os.environ, optimization=optimization)
        ending = _run(folder, settings, timeout_seconds)
        result = _result(folder / RESULT)
    if error := result.get("error"):
        raise _raised(error)
    if not result.get("done"):
        raise CompileError(_what_happened(target, result.get("at"), ending, optimization))
    return [CompiledPhase(**phase) for phase in result["phases"]]


def _run(folder: Path, settings: dict[str, str], timeout_seconds: float) -> str:
    """Runs a worker to its end and returns how it ended: "" where it ended well."""
    command = [sys.executable, "-m", "tunekit.planning.worker", str(folder)]
    with open(folder / "log", "w+", encoding="utf-8", errors="replace") as log:
        try:
            process = subprocess.run(
                command,
                env=settings,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                timeout=timeout_seconds,
            )
        except subprocess.TimeoutExpired:
            return f"did not end within {timeout_seconds:g} s"
        if process.returncode == 0:
            return ""
        log.seek(0)
        said = log.read().strip().splitlines()[-1:] or ["nothing"]
    if process.returncode < 0:
        return f"crashed ({signal.Signals(-process.returncode).name})"
    return f"failed, its last words being: {said[0]}"


def _result(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def _what_happened(target: Target, at: str | None, ending: str, optimization: str) -> str:
    other = "O1" if optimization == "O0" else "O0"
    tried = f"optimization='{other}', " if target.kind == "tpu" else ""
    return (
        f"the compiler for {target} {ending} at {at or 'its start'}. What may help: {tried}"
        "exact=True or exact=False, another micro-batch or mesh, or a newer JAX with its compiler."
    )


def _raised(error: dict[str, Any]) -> TunekitError:
    """The worker's error as one of this process."""
    if error["issues"]:
        return RecipeError([Issue(*issue) for issue in error["issues"]])
    kind = getattr(errors, error["kind"], TunekitError)
    return kind(error["message"])
