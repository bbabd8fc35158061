"""What keeps trained weights near those they started from: L2-SP and mixout.

Both act on the *anchors*: the values before training of the backbone's weights that train. A head
has no pretrained value to keep.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping

import jax
import jax.numpy as jnp

Values = dict[str, jax.Array]


def anchor_names(trainable: frozenset[str]) -> list[str]:
    """Returns the names of the variables that have an anchor, sorted."""
    return sorted(name for name in trainable if not name.startswith("heads/"))


def l2_sp_gradients(
    trainable: Mapping[str, jax.Array], anchors: Mapping[str, jax.Array], strength: float
) -> Values:
    """Returns the gradient of ``strength / 2 * ||w - w0||^2`` of each anchored variable.

    Li et al. 2018 (https://arxiv.org/abs/1802.01483), eq. 2, without its second term: the decay
    of the head is the optimizer's. Part of the loss as there, so Adam scales it like the rest.
    """
    return {name: strength * (trainable[name] - anchor) for name, anchor in anchors.items()}


def mixed_out(
    key: jax.Array,
    trainable: Mapping[str, jax.Array],
    anchors: Mapping[str, jax.Array],
    probability: float,
) -> Values:
    """Returns the anchored variables, each number replaced by its anchor's with `probability`.

    Lee et al. 2020 (https://arxiv.org/abs/1909.11299), eq. 5: the mix is stretched about the
    anchor by 1 / (1 - p), so that its mean is the weight itself, as dropout's is.
    """
    mixed = {}
    for name, anchor in anchors.items():
        value = trainable[name]
        kept = jax.random.bernoulli(named_key(key, name), 1 - probability, value.shape)
        mixed[name] = anchor + jnp.where(kept, value - anchor, 0.0) / (1 - probability)
    return mixed


def named_key(key: jax.Array, name: str) -> jax.Array:
    """Returns the key of one variable: what else is in the model does not change it."""
    return jax.random.fold_in(key, zlib.crc32(name.encode()))
