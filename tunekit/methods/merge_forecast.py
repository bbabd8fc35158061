"""What merging an adapter into a quantised base would change, told from logits before it is done.

An adapter on a quantised base computes with float factors; merged, its update is packed with the
kernel, and what is smaller than a step between two codes is there in the mean alone.
"""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from tunekit.errors import ModelError


@dataclass(frozen=True)
class MergeForecast:
    """How far predictions would move, over some positions; forecasts add up to one over all."""

    kl: float
    """Mean Kullback-Leibler divergence of merged from adapted predictions, in nats."""
    top1_agreement: float
    """Fraction of positions whose likeliest class stays the same."""
    positions: float
    """How many the means are over: examples, or tokens; the sum of their weights."""

    def __add__(self, other: MergeForecast) -> MergeForecast:
        """Returns the forecast over the positions of both."""
        positions = self.positions + other.positions
        share = other.positions / positions if positions else 0.0
        return MergeForecast(
            kl=self.kl + share * (other.kl - self.kl),
            top1_agreement=self.top1_agreement
            + share * (other.top1_agreement - self.top1_agreement),
            positions=positions,
        )

    def __str__(self) -> str:
        """Returns one line."""
        return (
            f"merged: KL {self.kl:.2g} nats, same top prediction at {self.top1_agreement:.1%} of "
            f"{self.positions:,.0f}"
        )


def merge_forecast(
    adapted: jax.Array, merged: jax.Array, weights: jax.Array | None = None
) -> MergeForecast:
    """Returns how far the merged network's predictions are from those of the adapter.

    Args:
        adapted: logits [..., C] of the adapter on the quantised base.
        merged: logits [..., C] of the base with the adapter merged and packed again.
        weights: [...], 0 where a position does not count, such as padding; `None` counts all.

    Raises:
        ModelError: the shapes do not fit each other.

    Example:
        >>> logits = jnp.array([[2.0, 0.0], [0.0, 1.0]])
        >>> print(merge_forecast(logits, logits))
        merged: KL 0 nats, same top prediction at 100.0% of 2
    """
    weights = jnp.ones(adapted.shape[:-1]) if weights is None else jnp.asarray(weights)
    if adapted.shape != merged.shape or weights.shape != adapted.shape[:-1]:
        raise ModelError(
            "merge_forecast takes two arrays of logits [..., C] of one shape and weights [...], "
            f"got {adapted.shape}, {merged.shape} and {weights.shape}"
        )
    kl, agreement, positions = _totals(adapted, merged, weights)
    count = float(positions)
    return MergeForecast(float(kl) / (count or 1), float(agreement) / (count or 1), count)


@jax.jit
def _totals(adapted: jax.Array, merged: jax.Array, weights: jax.Array) -> tuple[jax.Array, ...]:
    before, after = (jax.nn.log_softmax(x.astype(jnp.float32)) for x in (adapted, merged))
    # A class of no probability (a masked token, logit -inf) adds nothing, and not NaN.
    terms = jnp.where(before > -jnp.inf, jnp.exp(before) * (before - after), 0)
    same = jnp.argmax(adapted, axis=-1) == jnp.argmax(merged, axis=-1)
    weights = weights.astype(jnp.float32)
    counts = weights > 0
    kl = jnp.where(counts, jnp.sum(terms, axis=-1), 0)
    return jnp.sum(kl * weights), jnp.sum(same * weights), jnp.sum(weights)
