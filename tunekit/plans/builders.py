"""What stands in a plan: phases, and builders that become phases once the depth is known."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, TypeAlias

from tunekit.errors import SelectionError
from tunekit.plans.builders_gradual import Alternating, ChainThaw, GradualUnfreeze, Ulmfit
from tunekit.plans.builders_parts import BitFit, HeadOnly, LpFt, NormOnly, Surgical
from tunekit.plans.builders_rates import Discriminative, LayerDecay
from tunekit.plans.phase import Phase

if TYPE_CHECKING:
    from tunekit.models.depth import Group

Builder: TypeAlias = (
    HeadOnly
    | LpFt
    | GradualUnfreeze
    | ChainThaw
    | Surgical
    | Ulmfit
    | LayerDecay
    | Discriminative
    | Alternating
    | BitFit
    | NormOnly
)
"""Every builder; the last field of each, `build`, is its name in YAML."""


def expand_plan(items: Sequence[Phase | Builder], groups: Sequence[Group]) -> tuple[Phase, ...]:
    """Returns the phases of `items`, builders replaced by the phases that they build.

    Args:
        items: of a recipe's plan.
        groups: depth groups of the model that will train.

    Raises:
        SelectionError: a builder asks for what the model does not have; the message says which.
    """
    phases: list[Phase] = []
    for index, item in enumerate(items):
        if isinstance(item, Phase):
            phases.append(item)
            continue
        try:
            phases += item.phases(groups)
        except SelectionError as error:
            raise SelectionError(f"plan[{index}].{error}") from error
    return tuple(phases)
