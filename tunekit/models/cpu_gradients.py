"""GELU and LayerNorm whose backward passes keep and compute less, for the length of a trace.

XLA's CPU backend writes what differentiation keeps to memory, several arrays the size of the
activations for each of these two; here each keeps its input.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import keras

from tunekit.methods.intercept import Call, Wrap, with_attributes


def cpu_gradients(layers: Iterable[keras.Layer]) -> dict[keras.Layer, Wrap]:
    """Returns an interception for each layer whose gradient has a faster form on a CPU."""
    layers = tuple(layers)
    norms: dict[keras.Layer, Wrap] = {
        layer: functools.partial(_norm_call, layer)
        for layer in layers
        if type(layer) is keras.layers.LayerNormalization and _is_plain(layer)
    }
    return norms | cpu_activations(layers)


def cpu_activations(layers: Iterable[keras.Layer]) -> dict[keras.Layer, Wrap]:
    """Returns those of the interceptions that put another activation into a layer.

    Installed once more outside of adapters, which apply a layer's activation themselves.
    """
    kinds = (keras.layers.Dense, keras.layers.Activation)
    return {
        layer: functools.partial(_gelu_call, layer)
        for layer in layers
        if type(layer) in kinds and _is_gelu(layer)
    }


def _is_plain(layer: Any) -> bool:
    """Whether `layer` is built to norm its last axis, with a scale and a shift."""
    affine = layer.scale and layer.center and not layer.rms_scaling
    return affine and layer.built and layer.axis == [-1]


def _is_gelu(layer: Any) -> bool:
    return layer.activation is keras.activations.gelu


def _gelu_call(layer: keras.Layer, call: Call) -> Call:
    quick = with_attributes(layer, call, activation=gelu)

    def gelu_call(*args: Any, **kwargs: Any) -> Any:
        # An adapter has taken it away, to apply it after its own part.
        return (call if layer.__dict__["activation"] is None else quick)(*args, **kwargs)

    return gelu_call


@jax.custom_vjp
def gelu(x: jax.Array) -> jax.Array:
    """``x P(X <= x)`` of a standard normal X: the exact form, whose gradient keeps only `x`.

    On a CPU ``erf`` is a polynomial where the ``erfc`` of ``jax.nn.gelu`` takes exponentials; the
    two differ by rounding, next to one.
    """
    return (x * _normal_cdf(x)).astype(x.dtype)


def _normal_cdf(x: jax.Array) -> jax.Array:
    return 0.5 * (1 + jax.lax.erf(x.astype(jnp.float32) * math.sqrt(0.5)))


def _gelu_backward(x: jax.Array, cotangent: jax.Array) -> tuple[jax.Array]:
    wide = x.astype(jnp.float32)
    density = jnp.exp(-0.5 * wide * wide) / math.sqrt(2 * math.pi)
    return ((cotangent * (_normal_cdf(x) + wide * density)).astype(x.dtype),)


gelu.defvjp(lambda x: (gelu(x), x), _gelu_backward)


def _norm_call(layer: Any, call: Call) -> Call:
    del call

    def norm(inputs: Any, *args: Any, **kwargs: Any) -> Any:
        del args, kwargs
        rows = inputs.reshape(-1, inputs.shape[-1])
        scale, shift = jnp.asarray(layer.gamma), jnp.asarray(layer.beta)
        y: Any = layer_norm(layer.epsilon, rows, scale, shift)
        return y.reshape(inputs.shape).astype(layer.compute_dtype)

    return norm


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def layer_norm(epsilon: float, x: jax.Array, scale: jax.Array, shift: jax.Array) -> jax.Array:
    """Rows of `x` to mean 0 and variance 1, scaled and shifted; computed in float32.

    Args:
        epsilon: added to the variance.
        x: ``[B, D]``.
        scale: ``[D]``.
        shift: ``[D]``.

    Returns:
        ``[B, D]`` in the dtype of `x`.
    """
    return _norm_forward(epsilon, x, scale, shift)[0]


def _norm_forward(epsilon, x, scale, shift):
    wide = x.astype(jnp.float32)
    across = _averaging(x.shape[1])
    mean = wide @ across
    centred = wide - mean
    inverse = jax.lax.rsqrt(jnp.square(centred) @ across + epsilon)
    y = centred * inverse * scale + shift
    return y.astype(x.dtype), (x, mean, inverse, scale, shift)


def _norm_backward(epsilon, saved, cotangent):
    del epsilon
    x, mean, inverse, scale, shift = saved
    change = cotangent.astype(jnp.float32)
    normed = (x.astype(jnp.float32) - mean) * inverse
    across, down = _averaging(x.shape[1]), jnp.ones((1, x.shape[0]), jnp.float32)
    scaled = change * scale
    to_x = inverse * (scaled - scaled @ across - normed * ((scaled * normed) @ across))
    to_scale, to_shift = (down @ (change * normed))[0], (down @ change)[0]
    return to_x.astype(x.dtype), to_scale.astype(scale.dtype), to_shift.astype(shift.dtype)


def _averaging(width: int) -> jax.Array:
    """``[D, 1]``: the mean as a product. XLA fuses a plain sum with whole layers before it."""
    return jnp.full((width, 1), 1 / width, jnp.float32)


layer_norm.defvjp(_norm_forward, _norm_backward)
