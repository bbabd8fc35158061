"""How clear the gradient is, part by part: its size against its noise from batch to batch.

From the gradients g_1 ... g_b of b batches, with mean g and S = sum_i |g_i - g|^2 / (b - 1),

    |G|^2 = |g|^2 - S / b,    SNR = |G|^2 / S,

where |G|^2 estimates the squared norm of the true gradient and S the noise in that of one batch.
This is the simple noise scale of McCandlish et al. 2018 (https://arxiv.org/abs/1812.06162,
appendix A.1, from batches of one and of b times the size) the other way up: B_simple = batch size
/ SNR. Lee et al. 2023 (https://arxiv.org/abs/2210.11466) choose what to tune by the
SNR of each number of a layer, or by the relative norm |G| / |w|, which did better there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

Values = Mapping[str, jax.Array]


@dataclass(frozen=True)
class GradientNoise:
    """What a few batches say of the gradient of one part."""

    snr: float
    """Squared norm of the true gradient over the noise in that of a batch; 0: no signal found."""
    relative_norm: float
    """Norm of the true gradient over that of the weights."""


def gradient_noise(
    gradient: Callable[[Values, Any], Values],
    weights: Values,
    batches: Iterable[Any],
    groups: Mapping[str, Sequence[str]],
) -> dict[str, GradientNoise]:
    """Returns the signal and noise of each group, from at least two batches of one size.

    Args:
        gradient: from weights and a batch to the gradients by the same names; traced.
        weights: all that is differentiated, by name.
        batches: pytrees of arrays, all of the same shapes.
        groups: names of weights by group.
    """

    def squares(tree: Values) -> dict[str, jax.Array]:
        return {
            group: sum((jnp.sum(jnp.square(tree[n])) for n in names), start=jnp.zeros(()))
            for group, names in groups.items()
        }

    @jax.jit
    def added(sums: Any, weights: Values, batch: Any) -> Any:
        total, norms = sums
        # In float32 whatever the model computes in: small gradients are to be summed.
        found = {n: g.astype(jnp.float32) for n, g in gradient(weights, batch).items()}
        return jax.tree.map(jnp.add, (total, norms), (found, squares(found)))

    zeros = {name: jnp.zeros(value.shape, jnp.float32) for name, value in weights.items()}
    sums: Any = (zeros, dict.fromkeys(groups, jnp.zeros(())))
    count = 0
    for batch in batches:
        sums, count = added(sums, weights, batch), count + 1
    assert count > 1, "noise shows between batches"
    of_mean, of_weights = (
        {group: float(square) for group, square in jax.device_get(jax.jit(squares)(tree)).items()}
        for tree in ({name: total / count for name, total in sums[0].items()}, weights)
    )
    return {
        group: _noise(of_mean[group], float(square), of_weights[group], count)
        for group, square in sums[1].items()
    }


def _noise(of_mean: float, summed: float, of_weights: float, count: int) -> GradientNoise:
    """Takes squared norms: of the mean gradient, of each summed, of the weights."""
    noise = max(summed - count * of_mean, 0.0) / (count - 1)
    signal = max(of_mean - noise / count, 0.0)
    tiny = 1e-30
    return GradientNoise(signal / max(noise, tiny), (signal / max(of_weights, tiny)) ** 0.5)
