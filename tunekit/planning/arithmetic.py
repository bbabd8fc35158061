"""Operations of a planned step, as ``tunekit.training.operations`` counts them."""

from __future__ import annotations

import jax
from jax.interpreters import partial_eval

from tunekit.planning.shapes import Planned
from tunekit.platforms import Platform, tracing_for
from tunekit.training.operations import operations


def step_flops(planned: Planned, index: int, platform: Platform) -> float:
    """Returns the operations of one step of a phase, of all devices together.

    What is computed anew in the backward pass counts again.

    Args:
        planned: the run in shapes.
        index: of the phase.
        platform: for which it is traced. Attention is counted as products, whatever kernel does it.
    """
    programs = planned.programs()
    with tracing_for(platform):
        traced = jax.jit(programs.step(index)).trace(*programs.arguments(index))
    jaxpr = traced.jaxpr.jaxpr
    # What no result needs is traced too, and never runs.
    used, _ = partial_eval.dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))
    return operations(used)
