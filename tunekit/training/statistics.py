"""BatchNorm statistics measured anew: one pass over the training data, no gradients."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tunekit.models.forward import Forward
from tunekit.models.placement import fetched
from tunekit.training.feed import Feed
from tunekit.training.layout import Layout
from tunekit.training.shared_batches import open_shared
from tunekit.training.step import FEATURES, Values

_MEAN, _VARIANCE = "moving_mean", "moving_variance"


def reestimated(
    forward: Forward,
    feed: Feed,
    values: Values,
    trainable: Collection[str],
    layout: Layout | None = None,
) -> Values:
    """Returns the statistics of the norms that train, as the training data give them.

    Every norm that trains normalises by its batch during the pass, as it will in training. The
    batches' moments are averaged by their sizes: E[x] and E[x^2] - E[x]^2 over all of them (Wu &
    Johnson 2021, https://arxiv.org/abs/2105.07576, section 3). Other norms keep theirs.

    Args:
        forward: the whole model's.
        feed: of the phase.
        values: every value of the model by structural name.
        trainable: names of what trains in the phase.
        layout: where the values lie; `None` is one device.
    """
    names = [n for n in forward.names("statistic") if n.endswith((_MEAN, _VARIANCE))]
    measure = feed.measure
    assert measure is not None, "the feed of a phase that measures statistics has a way to"

    @jax.jit
    def moments(values: Values, batch: dict[str, Any]) -> Values:
        prepared = feed.objective.augment_batch(jax.random.key(0), batch)
        inputs = prepared[FEATURES] if FEATURES in batch else feed.objective.inputs(prepared)
        _, updates = measure(values, inputs, training=True, trainable=frozenset(trainable))
        return {name: updates[name] for name in names if name in updates}

    sums: dict[str, np.ndarray] = {}
    weight = 0.0
    for batch in open_shared(feed, values, layout).epoch(0):
        given = batch if layout is None else layout.batch(batch)
        measured = moments(values, given).items()
        found = {name: fetched(v).astype(np.float64) for name, v in measured}
        size = float(np.sum(fetched(given["weight"])))
        weight += size
        for name, value in _raw(found).items():
            sums[name] = sums.get(name, 0.0) + size * value
    means = {name: total / weight for name, total in sums.items()}
    central = _central(means)
    placed = {name: np.asarray(v, values[name].dtype) for name, v in central.items()}
    return jax.tree.map(jnp.asarray, placed) if layout is None else layout.values(placed)


def _raw(found: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Means and, in the variances' place, second moments about zero, which average."""
    return {
        name: value + found[_mean_of(name)] ** 2 if name.endswith(_VARIANCE) else value
        for name, value in found.items()
    }


def _central(means: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {
        name: np.maximum(value - means[_mean_of(name)] ** 2, 0.0)
        if name.endswith(_VARIANCE)
        else value
        for name, value in means.items()
    }


def _mean_of(variance: str) -> str:
    return variance.removesuffix(_VARIANCE) + _MEAN
