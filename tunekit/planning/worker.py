"""A process that compiles the steps of a recipe: ``python -m tunekit.planning.worker FOLDER``.

Compilers read the environment once, hold what they have allocated, and may crash: so each asked
recipe has a process of its own (``tunekit.planning.compiling`` starts it). The folder holds
``request.json``; ``result.json`` there is written anew after each phase, so that what is known
when the process dies is kept.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

from tunekit.errors import RecipeError, TunekitError

REQUEST, RESULT = "request.json", "result.json"
_PARENT_DEATH_SIGNAL = 1
"""``PR_SET_PDEATHSIG`` of Linux' ``prctl``."""


def answer(folder: Path) -> None:
    """Compiles what the request in `folder` asks for, and writes what was found beside it."""
    request = json.loads((folder / REQUEST).read_text(encoding="utf-8"))
    result: dict[str, Any] = {"phases": [], "at": "the model in shapes"}

    def write() -> None:
        new = folder / f"{RESULT}.new"
        new.write_text(json.dumps(result), encoding="utf-8")
        os.replace(new, folder / RESULT)

    write()
    try:
        for phase in _compiled(request, result, write):
            result["phases"].append(phase)
            write()
        result["done"] = True
    except TunekitError as error:
        issues = (
            [[i.path, i.message] for i in error.issues] if isinstance(error, RecipeError) else []
        )
        result["error"] = {"kind": type(error).__name__, "message": str(error), "issues": issues}
    write()


def _compiled(request: dict[str, Any], result: dict[str, Any], write: Any):
    from tunekit.planning.compiled import compiled_phase, target_layout
    from tunekit.planning.hardware import target
    from tunekit.planning.shapes import planned
    from tunekit.planning.topology import topology_devices
    from tunekit.recipe import Recipe

    machine = target(request["target"])
    devices = topology_devices(machine)
    run = planned(
        Recipe(**request["recipe"]),
        examples=request["examples"],
        labels=request["labels"],
        blocks=request["blocks"],
    )
    layout = target_layout(run, machine, devices)
    result["mesh"] = dict(layout.mesh.shape)
    asked = range(len(run.phases)) if request["phases"] is None else request["phases"]
    for index in asked:
        result["at"] = f"phase {index + 1} ({run.phases[index].label})"
        write()
        yield compiled_phase(run, index, machine, layout).to_json()


def end_with_parent() -> None:
    """The kernel ends this process when the one that started it dies (on Linux alone)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PARENT_DEATH_SIGNAL, signal.SIGKILL)


if __name__ == "__main__":
    end_with_parent()
    answer(Path(sys.argv[1]))
