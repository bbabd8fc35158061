"""Before anything trains: whether the processes of a run have the same recipe, data and weights."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from tunekit.agreement import check_agreed
from tunekit.data.source import Splits
from tunekit.distributed import process_count
from tunekit.models.model import Model
from tunekit.recipe import Recipe
from tunekit.report.run import versions

_BITS = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32, 8: jnp.uint32}
"""Unsigned integers by the bytes of what is read as them."""


def check_same_run(recipe: Recipe, splits: Splits, model: Model) -> None:
    """Passes where every process has the same; a process that is alone computes nothing.

    Paths of data may differ, as machines do: what is read counts.

    Raises:
        DistributedError: they differ; says in what.
    """
    if process_count() == 1:
        return
    excluded = {"data": {"path"}, "cache": True}
    tree: dict[str, Any] = recipe.model_dump(mode="json", exclude=excluded)
    check_agreed({**tree, **splits.fingerprints(), "version": versions(), "weights": _sums(model)})


def _sums(model: Model) -> dict[str, int]:
    """The bits of each variable, summed: equal whatever the order, on any machine."""

    @jax.jit
    def sums(values: dict[str, jax.Array]) -> dict[str, jax.Array]:
        return {name: jnp.sum(_bits(value), dtype=jnp.uint32) for name, value in values.items()}

    values = model.forward().values()
    return {name: int(total) for name, total in sums(values).items()}


def _bits(value: jax.Array) -> jax.Array:
    if value.dtype == jnp.bool_:
        return value.astype(jnp.uint8)
    return jax.lax.bitcast_convert_type(value, _BITS[value.dtype.itemsize])
