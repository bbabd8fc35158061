"""Convolutions in the forms that XLA compiles well for a CPU, for the length of a trace.

XLA's CPU backend runs depthwise convolutions, and the weight gradients of pointwise ones, tens of
times slower than the same sums written as shifted products or as a matrix product
(``benchmarks/cpu_convolution.py`` measures both), and the weight gradients of patches at half the
speed. The layers keep their weights and meaning; on an accelerator nothing here is used.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import keras

from tunekit.methods.intercept import Call, Wrap

Padding = tuple[tuple[int, int], tuple[int, int]]


def cpu_convolutions(layers: Iterable[keras.Layer]) -> dict[keras.Layer, Wrap]:
    """Returns an interception for each layer that has a faster form on a CPU."""
    wraps: dict[keras.Layer, Wrap] = {}
    for layer in layers:
        if getattr(layer, "data_format", None) != "channels_last":
            continue
        if type(layer) is keras.layers.DepthwiseConv2D and layer.dilation_rate == (1, 1):
            wraps[layer] = functools.partial(_depthwise_call, layer)
        elif type(layer) is keras.layers.Conv2D and _is_pointwise(layer):
            wraps[layer] = functools.partial(_pointwise_call, layer)
        elif type(layer) is keras.layers.Conv2D and _is_patchwise(layer):
            wraps[layer] = functools.partial(_patchwise_call, layer)
    return wraps


def _is_pointwise(layer: keras.layers.Conv2D) -> bool:
    return layer.kernel_size == (1, 1) and layer.groups == 1


def _pointwise_call(layer: keras.layers.Conv2D, call: Call) -> Call:
    del call

    def pointwise(inputs: Any) -> Any:
        rows, columns = layer.strides
        x = inputs[:, ::rows, ::columns, :]
        kernel = jnp.asarray(layer.kernel)[0, 0]
        y = (x.reshape(-1, x.shape[-1]) @ kernel).reshape(*x.shape[:-1], kernel.shape[-1])
        return _finish(layer, y)

    return pointwise


def _is_patchwise(layer: keras.layers.Conv2D) -> bool:
    """Whether every pixel is seen once: the patches of a vision transformer, ConvNeXt's stem."""
    apart = layer.kernel_size == layer.strides and layer.padding == "valid"
    return apart and layer.groups == 1 and layer.dilation_rate == (1, 1)


def _patchwise_call(layer: keras.layers.Conv2D, call: Call) -> Call:
    del call

    def patchwise(inputs: Any) -> Any:
        kernel = jnp.asarray(layer.kernel)
        rows, columns, channels, filters = kernel.shape
        down, across = inputs.shape[1] // rows, inputs.shape[2] // columns
        x = inputs[:, : down * rows, : across * columns, :]
        x = x.reshape(-1, down, rows, across, columns, channels).transpose(0, 1, 3, 2, 4, 5)
        y = x.reshape(-1, rows * columns * channels) @ kernel.reshape(-1, filters)
        return _finish(layer, y.reshape(-1, down, across, filters))

    return patchwise


def _depthwise_call(layer: keras.layers.DepthwiseConv2D, call: Call) -> Call:
    def depthwise(inputs: Any) -> Any:
        if layer.depth_multiplier != 1:
            return call(inputs)
        kernel = jnp.asarray(layer.kernel)[..., 0]
        padding = _padding(layer, inputs.shape[1:3])
        return _finish(layer, shifted_depthwise(inputs, kernel, tuple(layer.strides), padding))

    return depthwise


def _finish(layer: Any, y: jax.Array) -> Any:
    if layer.use_bias:
        y = y + jnp.asarray(layer.bias)
    return y if layer.activation is None else layer.activation(y)


def _padding(layer: Any, size_px: tuple[int, int]) -> Padding:
    """Rows and columns added before and after, as TensorFlow's "same" and "valid" define them."""
    if layer.padding == "valid":
        return (0, 0), (0, 0)
    pairs = []
    for size, kernel, stride in zip(size_px, layer.kernel_size, layer.strides, strict=True):
        total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
        pairs.append((total // 2, total - total // 2))
    return pairs[0], pairs[1]


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def shifted_depthwise(
    x: jax.Array, kernel: jax.Array, strides: tuple[int, int], padding: Padding
) -> jax.Array:
    """Depthwise convolution as a sum of shifted products: one fused loop on a CPU.

    Args:
        x: ``[B, H, W, C]``.
        kernel: ``[KH, KW, C]``.
        strides: of rows and columns.
        padding: zeros before and after the rows, and the columns.

    Returns:
        ``[B, H', W', C]``.
    """
    return _shifted_sum(x, kernel, strides, padding)


@functools.partial(jax.jit, static_argnums=(2, 3))
def _shifted_sum(
    x: jax.Array, kernel: jax.Array, strides: tuple[int, int], padding: Padding
) -> jax.Array:
    """A program of its own, which XLA puts in line: traced once for all layers of one shape."""
    taps = _taps(_padded(x, padding), (kernel.shape[0], kernel.shape[1]), strides)
    weights = kernel.reshape(-1, kernel.shape[-1])
    return functools.reduce(jnp.add, (tap * weights[n] for n, tap in enumerate(taps)))


def _forward(x, kernel, strides, padding):
    return shifted_depthwise(x, kernel, strides, padding), (x, kernel)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _backward(strides, padding, saved, cotangent):
    x, kernel = saved
    (x_cotangent,) = jax.vjp(lambda x: _shifted_sum(x, kernel, strides, padding), x)[1](cotangent)
    height, width, channels = kernel.shape
    padded = _padded(x, padding)

    # Rows of pixels are added as they are, in cache, and summed at the end: XLA sums over all
    # pixels at once either slowly, or by writing every product to memory first.
    def add_row(totals, row):
        strip = jax.lax.dynamic_slice_in_dim(padded, row * strides[0], height, axis=1)
        row_cotangent = jax.lax.dynamic_slice_in_dim(cotangent, row, 1, axis=1)
        taps = _taps(strip, (height, width), strides)
        return [total + tap * row_cotangent for total, tap in zip(totals, taps, strict=True)], None

    batch, rows, columns, _ = cotangent.shape
    zeros = [jnp.zeros((batch, 1, columns, channels), jnp.float32)] * (height * width)
    totals, _ = jax.lax.scan(add_row, zeros, jnp.arange(rows))
    total = jnp.stack([total.sum(axis=(0, 1, 2)) for total in totals])
    return x_cotangent, total.reshape(kernel.shape).astype(kernel.dtype)


shifted_depthwise.defvjp(_forward, _backward)


def _padded(x: jax.Array, padding: Padding) -> jax.Array:
    return jnp.pad(x, ((0, 0), *padding, (0, 0)))


def _taps(
    x: jax.Array, kernel_size: tuple[int, int], strides: tuple[int, int]
) -> Iterator[jax.Array]:
    """The views of padded `x` that each weight of the kernel multiplies, in the kernel's order."""
    height = (x.shape[1] - kernel_size[0]) // strides[0] + 1
    width = (x.shape[2] - kernel_size[1]) // strides[1] + 1
    for row in range(kernel_size[0]):
        for column in range(kernel_size[1]):
            stop = (row + (height - 1) * strides[0] + 1, column + (width - 1) * strides[1] + 1)
            yield jax.lax.slice(
                x,
                (0, row, column, 0),
                (x.shape[0], *stop, x.shape[3]),
                (1, *strides, 1),
            )
