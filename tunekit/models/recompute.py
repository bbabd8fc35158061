"""What of a pure function is kept for its backward pass, and where; the rest is computed anew."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from tunekit.errors import ModelError
from tunekit.platforms import traced_platform

Function = Callable[[list[jax.Array]], Any]
Recompute = Callable[[Function], Function]
"""From a pure function to one that keeps less for the backward pass."""

_BETWEEN_BLOCKS = "between_blocks"


def keeping_inputs(function: Function) -> Function:
    """Returns `function`, of which the backward pass keeps the inputs alone."""
    return _recomputed_on_cpu(function) if traced_platform() == "cpu" else jax.checkpoint(function)


def keeping_products(function: Function) -> Function:
    """Returns `function`, of which the products with weights are kept too; attention's are not.

    Raises:
        ModelError: it is traced for a CPU.
    """
    _check_not_on_cpu("dots", "keeps the products, but computes everything anew all the same")
    policy = jax.checkpoint_policies.dots_with_no_batch_dims_saveable
    return jax.checkpoint(function, policy=policy)


def named_inputs(function: Function) -> Function:
    """Returns `function`, which keeps its inputs alone, and names them for `offloading`."""

    def named(tensors: list[jax.Array]) -> Any:
        return jax.checkpoint(function)([checkpoint_name(x, _BETWEEN_BLOCKS) for x in tensors])

    return named


def offloading(function: Function) -> Function:
    """Returns `function`, of which what is named is kept in the host's memory, and nothing else.

    Raises:
        ModelError: it is traced for a CPU.
    """
    _check_not_on_cpu("offload", "has no other memory than the host's")
    policy = jax.checkpoint_policies.save_and_offload_only_these_names(
        names_which_can_be_saved=[],
        names_which_can_be_offloaded=[_BETWEEN_BLOCKS],
        offload_src="device",
        offload_dst="pinned_host",
    )
    return jax.checkpoint(function, policy=policy)


def _check_not_on_cpu(mode: str, why: str) -> None:
    if traced_platform() == "cpu":
        raise ModelError(
            f"runtime.remat: '{mode}' is of no use on a CPU, which {why}; choose 'blocks' or "
            "'none' here, or run on a GPU or TPU."
        )


def _recomputed_on_cpu(function: Callable[[list[jax.Array]], Any]) -> Function:
    """`jax.checkpoint` for XLA's CPU backend, which takes no notice of the latter's barriers.

    It drops them before it looks for common subexpressions, finds the pass that is to be computed
    anew, and keeps the first. Here what comes in is tied to the cotangents by adding their zero.
    """

    def call(tensors: list[jax.Array]) -> Any:
        closed, values = jax.closure_convert(function, tensors)

        @jax.custom_vjp
        def run(tensors: list[jax.Array], *values: jax.Array) -> Any:
            return closed(tensors, *values)

        def backward(saved: Any, cotangents: Any) -> Any:
            tensors, *values = saved
            zero = _zero_of(cotangents)
            tied = [x + zero.astype(x.dtype) if _is_float(x) else x for x in tensors]
            return jax.vjp(closed, tied, *values)[1](cotangents)

        run.defvjp(lambda *given: (closed(*given), given), backward)
        return run(tensors, *values)

    return call


def _zero_of(cotangents: Any) -> jax.Array:
    """0, computed of the cotangents in a way that XLA does not see through."""
    first = next(x for x in jax.tree.leaves(cotangents) if _is_float(x))
    return jnp.minimum(jnp.abs(first[(0,) * first.ndim]), 0)


def _is_float(x: jax.Array) -> bool:
    return jnp.issubdtype(x.dtype, jnp.floating)
