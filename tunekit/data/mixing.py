"""Mixup and CutMix inside the compiled step."""

from __future__ import annotations

import jax
import jax.numpy as jnp

Key = jax.Array


def mix(
    key: Key,
    images: jax.Array,
    targets: jax.Array,
    weight: jax.Array,
    mixup_alpha: float,
    cutmix_alpha: float,
) -> tuple[jax.Array, jax.Array]:
    """Returns images and targets in which each row is mixed with a partner from the batch.

    With lambda ~ Beta(alpha, alpha), mixup gives `lambda * x + (1 - lambda) * x_partner`; CutMix
    pastes a box of the partner with a share 1 - lambda of the area, and lambda becomes the share
    that is left where the box crosses the border. Targets are mixed by the same lambda. With both
    on, each batch takes one of them by chance. Partners are a permutation of the rows of positive
    weight: rows of weight 0 stay as they are and go nowhere.

    Args:
        key: a JAX random key.
        images: [B, H, W, 3], any dtype; the result is float32.
        targets: float [B, C].
        weight: [B].
        mixup_alpha: 0 turns mixup off.
        cutmix_alpha: 0 turns CutMix off.

    Source: Zhang et al. 2018 (arXiv:1710.09412), Yun et al. 2019 (arXiv:1905.04899). One lambda
    and one box a batch, as in the authors' code.
    """
    images = images.astype(jnp.float32)
    if mixup_alpha <= 0 and cutmix_alpha <= 0:
        return images, targets
    choose, partner_key, lambda_key, box_key = jax.random.split(key, 4)
    partner = partners(partner_key, weight)
    mixed = []
    if mixup_alpha > 0:
        share = jax.random.beta(lambda_key, mixup_alpha, mixup_alpha)
        mixed.append(_mixup(images, targets, partner, share))
    if cutmix_alpha > 0:
        share = jax.random.beta(lambda_key, cutmix_alpha, cutmix_alpha)
        mixed.append(_cutmix(box_key, images, targets, partner, share))
    if len(mixed) == 1:
        return mixed[0]
    first = jax.random.bernoulli(choose)
    return jax.tree.map(lambda a, b: jnp.where(first, a, b), mixed[0], mixed[1])


def partners(key: Key, weight: jax.Array) -> jax.Array:
    """Returns the partner of each row, int [B]: a permutation that leaves rows of weight 0 alone.

    The rows of positive weight, in a random order, each take the next one as partner; so none is
    its own partner while there are two of them.
    """
    real = weight > 0
    count = jnp.maximum(real.sum(), 1)
    # Real rows come first, in random order; rows of weight 0 follow.
    order = jnp.argsort(jnp.where(real, jax.random.uniform(key, weight.shape), 2.0))
    place = jnp.arange(weight.shape[0])
    following = jnp.where(place < count, (place + 1) % count, place)
    return jnp.zeros_like(order).at[order].set(order[following])


def _mixup(
    images: jax.Array, targets: jax.Array, partner: jax.Array, share: jax.Array
) -> tuple[jax.Array, jax.Array]:
    blend = [share * values + (1 - share) * values[partner] for values in (images, targets)]
    return _rows(images, blend[0], partner), _rows(targets, blend[1], partner)


def _cutmix(
    key: Key, images: jax.Array, targets: jax.Array, partner: jax.Array, share: jax.Array
) -> tuple[jax.Array, jax.Array]:
    inside = box_mask(key, images.shape[1], images.shape[2], share)
    pasted = jnp.where(inside[None, :, :, None], images[partner], images)
    kept = 1 - inside.mean()
    blend = kept * targets + (1 - kept) * targets[partner]
    return pasted, _rows(targets, blend, partner)


def box_mask(key: Key, height: int, width: int, share: jax.Array) -> jax.Array:
    """Returns bool [height, width]: true in a box of 1 - `share` of the area, cut at the border.

    Its centre is uniform over the pixels.
    """
    side = jnp.sqrt(1 - share)
    rows, columns = jax.random.split(key)

    def inside(key: Key, length: int) -> jax.Array:
        centre = jax.random.randint(key, (), 0, length)
        half = (length * side).astype(jnp.int32) // 2
        place = jnp.arange(length)
        return (place >= centre - half) & (place < centre + half)

    return inside(rows, height)[:, None] & inside(columns, width)[None, :]


def _rows(before: jax.Array, after: jax.Array, partner: jax.Array) -> jax.Array:
    """Returns `after`, but rows that are their own partner to the bit as before."""
    alone = partner == jnp.arange(partner.shape[0])
    return jnp.where(alone.reshape(-1, *[1] * (before.ndim - 1)), before, after)
