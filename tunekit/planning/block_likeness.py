"""Whether all blocks of a network are one block several times, in shapes and in what trains."""

from __future__ import annotations

from collections.abc import Sequence

from tunekit.models.depth import Group
from tunekit.models.model import Model
from tunekit.plans.resolve import ResolvedPhase


def alike(model: Model, phases: Sequence[ResolvedPhase]) -> bool:
    """Returns whether all blocks have the same variables, and every phase trains the same of each.

    Args:
        model: the whole network, with its adapters.
        phases: of the run.
    """
    variables = model.variables()

    def kind(group: Group) -> frozenset[tuple]:
        return frozenset(
            (
                _within(group, name),
                tuple(variables[name].shape),
                str(variables[name].dtype),
                *(name in phase.trainable for phase in phases),
            )
            for name in group.variables
        )

    blocks = [group for group in model.groups() if group.kind == "block"]
    return len({kind(block) for block in blocks}) == 1


def _within(group: Group, name: str) -> str:
    """The name of a variable with a block's own layers numbered from its first."""
    for place, layer in sorted(enumerate(group.layers), key=lambda pair: -len(pair[1])):
        if f"{layer}/" in name:
            return name.replace(f"{layer}/", f"{place}/", 1)
    return name
