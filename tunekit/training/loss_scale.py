"""Dynamic loss scaling: gradients in float16 that would be 0 are not.

Below 6e-8 a float16 is 0, and the gradients of a network often are. The loss is multiplied before
the backward pass, which multiplies every gradient, and the gradients are divided again in float32
(Micikevicius et al. 2018, https://arxiv.org/abs/1710.03740, section 3.2). A factor too large makes
them infinite: that step changes nothing, and the factor is halved. After `GOOD_STEPS` steps that
went well it is doubled.
"""

from __future__ import annotations

from typing import Any, TypeVar

import jax
import jax.numpy as jnp

from tunekit.models.forward import Forward

Scale = dict[str, jax.Array]
"""The factor, float32 [], under "factor", and the good steps since it changed, int32 [], under
"good"; empty where nothing is scaled."""
Tree = TypeVar("Tree")

FIRST_FACTOR = 2.0**15
GOOD_STEPS = 2000
LARGEST_FACTOR = 2.0**24
"""Of which the products with losses stay far from float32's end."""
MOST_SKIPPED = 30
"""Steps in a row without finite gradients, by which the factor is long below 1: it is the training
that diverges, not the scaling."""


def needs_scaling(forward: Forward) -> bool:
    """Returns whether a layer computes in float16."""
    layers = forward.layers.values()
    return any(getattr(layer, "compute_dtype", None) == "float16" for layer in layers)


def first_scale() -> Scale:
    """Returns the scale that a run begins with."""
    return {"factor": jnp.float32(FIRST_FACTOR), "good": jnp.int32(0)}


def factor_of(scale: Scale, weight: jax.Array) -> jax.Array | None:
    """Returns what a summed loss is multiplied by, float32 []; `None` where nothing is scaled.

    The factor of `scale` is that of the mean, whose gradients do not grow with the batch.

    Args:
        scale: of the step.
        weight: over which the loss is a mean; 0 where all is padding.
    """
    return scale["factor"] / jnp.where(weight > 0, weight, 1.0) if scale else None


def divided(gradients: Tree, factor: jax.Array | None) -> Tree:
    """Returns the gradients, float32, without the factor."""
    if factor is None:
        return gradients
    return jax.tree.map(lambda gradient: gradient / factor, gradients)


def next_scale(scale: Scale, finite: jax.Array) -> Scale:
    """Returns the scale after a step.

    Args:
        scale: of the step.
        finite: bool [], whether its gradients were.
    """
    good = jnp.where(finite, scale["good"] + 1, 0)
    doubles = good >= GOOD_STEPS
    up = jnp.where(doubles, jnp.minimum(scale["factor"] * 2, LARGEST_FACTOR), scale["factor"])
    factor = jnp.where(finite, up, scale["factor"] / 2)
    return {"factor": factor, "good": jnp.where(doubles, 0, good)}


def chosen(finite: jax.Array, new: Tree, old: Tree) -> Tree:
    """Returns `new` where the gradients were finite, else `old`, bit for bit."""

    def choose(new: Any, old: Any) -> Any:
        return jnp.where(finite, new, old)

    return jax.tree.map(choose, new, old)
