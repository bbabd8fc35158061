"""A recipe run: from a model and data to a trained model and its record."""

from __future__ import annotations

import shlex
import sys
import time
from pathlib import Path
from typing import Any

import keras

from tunekit.agreement import check_shared
from tunekit.distributed import advise, is_first, together
from tunekit.folder import check_replaceable
from tunekit.models.model import Model
from tunekit.recipe import Recipe
from tunekit.result import MARKS, RUN_FOLDER, Result
from tunekit.session import session


def run(recipe: Recipe, *, model: Model | keras.Model | None = None, data: Any = None) -> Result:
    """Returns the result of `recipe`; saved too where the recipe names a folder.

    Several processes that have joined (`tunekit.distributed.initialise`) each return it, and the
    first saves it.

    Args:
        recipe: what to do.
        model: used in place of the one that the recipe names.
        data: used in place of the path that the recipe names.

    Raises:
        RecipeError: the recipe names no data, or stops early without validation data.
        DataError: everything that is wrong with the data, at once.
        ModelError: the model cannot be loaded, or the folder is not tunekit's to write to.
        CheckpointError: the checkpoints to resume from belong to another run, or there are some of
            an unfinished run and it is not to be resumed.
        DistributedError: the processes of the run are not of one recipe, data and folder.
    """
    since = time.perf_counter()
    if recipe.runtime.out is not None:
        # Now, and not when hours of training are to be saved.
        out = Path(recipe.runtime.out).expanduser()
        if is_first():
            check_replaceable(out, MARKS)
        check_shared(out)
        advise(lambda: how_to_resume(out / RUN_FOLDER))
    with session(recipe, model, data) as ready:
        before = ready.feeder.forward.values()
        trained = ready.train()
    if not isinstance(model, Model):
        ready.model.features = None  # Nobody asked to go on from here: memory is given back.
    # From here on the model is trained, and an error no reason to take its new head away.
    result = ready.result(trained, before, seconds=time.perf_counter() - since)
    if recipe.runtime.out is not None and is_first():
        result.save(recipe.runtime.out)
    together("the result saved")
    return result


def how_to_resume(checkpoints: Path) -> str:
    """Returns what to do where a process is gone, by the checkpoints there are by then."""
    steps = [int(entry.name) for entry in checkpoints.glob("*") if entry.name.isdigit()]
    if not steps:
        return "No checkpoint was written yet; start all processes again."
    arguments = [word for word in sys.argv[1:] if word != "--resume"]
    from_command = arguments and arguments[0] == "run"
    command = shlex.join(["tunekit", *arguments, "--resume"]) if from_command else "resume=True"
    return (
        f"The checkpoint of step {max(steps)} is in {checkpoints}; go on from it by starting all "
        f"processes, or fewer, with {command}"
    )
