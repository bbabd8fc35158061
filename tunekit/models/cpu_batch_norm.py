"""BatchNorm whose sums over pixels take one pass through cached rows, for the length of a trace.

XLA's CPU backend sums over all axes but the last ten to thirty times slower than memory is read,
and BatchNorm does little else: its statistics, and the gradients of its scale and shift.
``benchmarks/cpu_convolution.py`` measures them as part of a network.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import keras
import numpy as np

from tunekit.methods.intercept import Call, Wrap


def cpu_batch_norms(layers: Iterable[keras.Layer]) -> dict[keras.Layer, Wrap]:
    """Returns an interception for each BatchNorm that has a faster form on a CPU."""
    return {
        layer: functools.partial(_norm_call, layer)
        for layer in layers
        if type(layer) is keras.layers.BatchNormalization and _is_plain(layer)
    }


def _is_plain(layer: Any) -> bool:
    """Whether `layer` is built to norm the channels of images in their last axis."""
    if layer.renorm or layer.synchronized or not layer.built:
        return False
    (spec,) = keras.tree.flatten(layer.input_spec)
    return spec.ndim == 4 and layer.axis in (-1, 3)


def _norm_call(layer: Any, call: Call) -> Call:
    def norm(inputs: Any, training: bool | None = None, mask: Any = None) -> Any:
        if mask is not None:
            return call(inputs, training=training, mask=mask)
        x = inputs.astype(jnp.promote_types(inputs.dtype, jnp.float32))
        mean, variance = (
            jnp.asarray(value, x.dtype) for value in (layer.moving_mean, layer.moving_variance)
        )
        if training and layer.trainable:
            kept, batch = layer.momentum, moments(x)
            layer.moving_mean.assign(mean * kept + batch[0] * (1 - kept))
            layer.moving_variance.assign(variance * kept + batch[1] * (1 - kept))
            mean, variance = batch
        factor = jax.lax.rsqrt(variance + layer.epsilon)
        if layer.scale:
            factor = factor * jnp.asarray(layer.gamma, x.dtype)
        shift = -mean * factor
        if layer.center:
            shift = shift + jnp.asarray(layer.beta, x.dtype)
        y: Any = affine(x, factor, shift)
        return y.astype(layer.compute_dtype)

    return norm


@jax.custom_vjp
def moments(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The mean and the variance of each channel.

    Args:
        x: ``[B, H, W, C]``.

    Returns:
        ``[C]`` and ``[C]``; the variance is that of the batch, not an estimate beyond it.
    """
    count = x.size // x.shape[-1]
    mean = channel_sums(lambda rows: rows, x) / count
    return mean, channel_sums(lambda rows: jnp.square(rows - mean), x) / count


def _moments_forward(x):
    mean, variance = moments(x)
    return (mean, variance), (x, mean)


def _moments_backward(saved, cotangents):
    (x, mean), (to_mean, to_variance) = saved, cotangents
    # What reaches `x` through the mean within the variance cancels: deviations add up to zero.
    return ((to_mean + 2 * to_variance * (x - mean)) * (x.shape[-1] / x.size),)


moments.defvjp(_moments_forward, _moments_backward)


@jax.custom_vjp
def affine(x: jax.Array, factor: jax.Array, shift: jax.Array) -> jax.Array:
    """Returns ``x * factor + shift``, each channel by its own.

    Args:
        x: ``[B, H, W, C]``.
        factor: ``[C]``.
        shift: ``[C]``.
    """
    return x * factor + shift


def _affine_backward(saved, cotangent):
    x, factor = saved
    to_factor = channel_sums(jnp.multiply, x, cotangent)
    return cotangent * factor, to_factor, channel_sums(lambda rows: rows, cotangent)


affine.defvjp(lambda x, factor, shift: (affine(x, factor, shift), (x, factor)), _affine_backward)


def channel_sums(function: Any, *arrays: jax.Array) -> jax.Array:
    """Returns the sum over all pixels of a function of them, computed row by row.

    Args:
        function: from a row of each array, ``[B, 1, W, C]`` or ``[B, H, 1, C]``, to a like row.
        *arrays: ``[B, H, W, C]``, alike.

    Returns:
        ``[C]``.
    """
    shape = arrays[0].shape
    axis = 1 + int(np.argmax(shape[1:3]))

    def add_row(total: jax.Array, row: Any) -> tuple[jax.Array, None]:
        rows = (jax.lax.dynamic_slice_in_dim(array, row, 1, axis) for array in arrays)
        return total + function(*rows), None

    zeros = jnp.zeros((*shape[:axis], 1, *shape[axis + 1 :]), arrays[0].dtype)
    total, _ = jax.lax.scan(add_row, zeros, jnp.arange(shape[axis]))
    return total.sum(axis=(0, 1, 2))
