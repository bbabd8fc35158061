"""A recipe run: from a model and data to a trained model and its record."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import keras

from tunekit.folder import check_replaceable
from tunekit.models.model import Model
from tunekit.recipe import Recipe
from tunekit.result import MARKS, Result
from tunekit.session import session


def run(recipe: Recipe, *, model: Model | keras.Model | None = None, data: Any = None) -> Result:
    """Returns the result of `recipe`; saved too where the recipe names a folder.

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
    """
    since = time.perf_counter()
    if recipe.runtime.out is not None:
        # Now, and not when hours of training are to be saved.
        check_replaceable(Path(recipe.runtime.out).expanduser(), MARKS)
    with session(recipe, model, data) as ready:
        before = ready.feeder.forward.values()
        trained = ready.train()
    if not isinstance(model, Model):
        ready.model.features = None  # Nobody asked to go on from here: memory is given back.
    # From here on the model is trained, and an error no reason to take its new head away.
    result = ready.result(trained, before, seconds=time.perf_counter() - since)
    if recipe.runtime.out is not None:
        result.save(recipe.runtime.out)
    return result
