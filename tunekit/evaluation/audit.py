"""The freeze audit: how far training moved each part of a model, and that the rest stood still."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

from tunekit.models.depth import Group

Arrays = Mapping[str, Any]
"""Arrays of NumPy or JAX by structural name."""


def audit(
    before: Arrays, after: Arrays, trained: Collection[str], groups: Sequence[Group]
) -> dict[str, Any]:
    """Returns how far every depth group moved, and whether what was frozen stood still, as JSON.

    - ``groups``, in depth order: ``group``, ``parameters``, numbers of variables (``weights``,
      of them ``trained`` and ``moved``), ``relative_l2`` and the ``largest`` of one variable.
    - ``frozen``: weights that trained in no phase, and the names of those that moved: none, unless
      something is wrong.
    - ``statistics``: running statistics, which move by themselves where a norm is in training mode.

    The relative L2 of a part is ``||after - before|| / ||before||`` over all its weights, frozen
    ones included; `None` where `before` is all zeros, as a fresh bias is. Unmoved means equal bit
    for bit. States of random seeds are no part of an audit.

    Args:
        before: the values that training began with, a fresh head's included.
        after: those that it ended with.
        trained: names of what trained in any phase.
        groups: the depth groups, which hold every variable once.

    Example:
        >>> audit(before, after, {"heads/label/logits/bias"}, model.groups())["frozen"]
        {'variables': 157, 'moved': []}
    """
    moved = {
        name
        for group in groups
        for name in group.variables
        if not _is_seed(name) and _bits(before[name]) != _bits(after[name])
    }
    weights = [name for group in groups for name in group.weights]
    statistics = [
        name
        for group in groups
        for name in group.variables
        if name not in group.weights and not _is_seed(name)
    ]
    frozen = [name for name in weights if name not in trained]
    return {
        "groups": [_of_group(group, before, after, trained, moved) for group in groups],
        "frozen": _still(frozen, moved),
        "statistics": _still(statistics, moved),
    }


def _of_group(
    group: Group, before: Arrays, after: Arrays, trained: Collection[str], moved: set[str]
) -> dict[str, Any]:
    squares = {name: _squares(before[name], after[name]) for name in group.weights}
    largest = max(
        ((ratio, name) for name in group.weights if (ratio := _ratio([squares[name]]))),
        default=None,
    )
    return {
        "group": group.name,
        "parameters": group.parameters,
        "weights": len(group.weights),
        "trained": sum(name in trained for name in group.weights),
        "moved": sum(name in moved for name in group.weights),
        "relative_l2": _ratio(squares.values()),
        "largest": largest and {"name": largest[1], "relative_l2": largest[0]},
    }


def _still(names: Sequence[str], moved: set[str]) -> dict[str, Any]:
    return {"variables": len(names), "moved": [name for name in names if name in moved]}


def _squares(before: Any, after: Any) -> tuple[float, float]:
    """The squared norms of the change and of the beginning, summed in float64."""
    start = np.asarray(before).astype(np.float64).ravel()
    change = np.asarray(after).astype(np.float64).ravel() - start
    return float(change @ change), float(start @ start)


def _ratio(squares: Collection[tuple[float, float]]) -> float | None:
    change, start = (sum(column) for column in zip(*squares, strict=True)) if squares else (0, 0)
    if change == 0:
        return 0.0
    return math.sqrt(change / start) if start else None


def _bits(value: Any) -> bytes:
    return np.asarray(value).tobytes()


def _is_seed(name: str) -> bool:
    return name.rpartition("/")[2].startswith("seed_generator_state")
