"""Kernels as few bits: 8-bit rows, or blocks of 4-bit codes whose scales are quantised again.

A kernel is [out, in] here, a row for each output, which is how PyTorch's files and bitsandbytes lay
it out. ``int8`` has one scale a row. ``int4`` and ``nf4`` follow QLoRA (Dettmers et al. 2023,
https://arxiv.org/abs/2305.14314, section 3): the rows in one line, blocks of 64, each divided by
its largest magnitude c2 and coded by the nearest of 16 levels; c2 less its mean is kept as 8-bit
floats with one float32 unit c1 for every 256: 4.127 bits a weight. The paper does not say which
c2 the codes are chosen under: here it is the one that is read back.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from typing import Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np

QuantizationMode = Literal["int8", "int4", "nf4"]
MODES: tuple[QuantizationMode, ...] = get_args(QuantizationMode)

BLOCK = 64
"""Weights that share a scale."""
SUPERBLOCK = 256
"""Scales that share a unit."""

# Appendix E of the paper: quantiles of the standard normal, zero among them, stretched to [-1, 1].
_NF4 = np.array(
    [
        -1.0,
        -0.6961928009986877,
        -0.5250730514526367,
        -0.39491748809814453,
        -0.28444138169288635,
        -0.18477343022823334,
        -0.09105003625154495,
        0.0,
        0.07958029955625534,
        0.16093020141124725,
        0.24611230194568634,
        0.33791524171829224,
        0.44070982933044434,
        0.5626170039176941,
        0.7229568362236023,
        1.0,
    ],
    np.float32,
)
# Evenly spaced and symmetric, so the sixteenth has no use.
_INT4 = (np.arange(15, dtype=np.float32) - 7) / 7
LEVELS: Mapping[str, np.ndarray] = {"int4": _INT4, "nf4": _NF4}

_LARGEST_FLOAT8 = 448.0
"""Of float8_e4m3fn, which becomes NaN beyond."""


def packed_leaves(
    rows: int, columns: int, mode: QuantizationMode
) -> dict[str, jax.ShapeDtypeStruct]:
    """Returns shape and dtype of each array that `pack` gives for a kernel [rows, columns]."""
    array = jax.ShapeDtypeStruct
    if mode == "int8":
        codes = array((rows, columns), jnp.int8)
        return {"codes": codes, "scales": array((rows,), jnp.float32)}
    blocks = math.ceil(rows * columns / BLOCK)
    return {
        "codes": array((blocks, BLOCK // 2), jnp.uint8),
        "scales": array((blocks,), jnp.uint8),
        "scale_units": array((math.ceil(blocks / SUPERBLOCK),), jnp.float32),
        "scale_mean": array((), jnp.float32),
    }


@functools.partial(jax.jit, static_argnames="mode")
def pack(
    kernel: jax.Array,
    mode: QuantizationMode,
    key: jax.Array | None = None,
) -> dict[str, jax.Array]:
    """Returns the arrays that `unpack` makes a kernel of, as `packed_leaves` describes them.

    Args:
        kernel: [out, in], any float dtype.
        mode: of quantisation.
        key: of random numbers, by which a weight between two levels goes to either, the likelier
            the nearer: in the mean the weight itself is read back, but for a largest one that its
            rounded scale does not reach (Gupta et al. 2015, https://arxiv.org/abs/1502.02551,
            section 3). `None` is the nearest.
    """
    kernel = kernel.astype(jnp.float32)
    if mode == "int8":
        scales = jnp.max(jnp.abs(kernel), axis=1) / 127
        steps = jnp.clip(kernel / _divisor(scales)[:, None], -127, 127)
        codes = jnp.round(steps) if key is None else _either(steps, key)
        return {"codes": codes.astype(jnp.int8), "scales": scales}
    flat = kernel.reshape(-1)
    blocks = jnp.pad(flat, (0, -flat.size % BLOCK)).reshape(-1, BLOCK)
    scales = _pack_scales(jnp.max(jnp.abs(blocks), axis=1))
    codes = _coded(blocks / _divisor(_unpack_scales(scales))[:, None], LEVELS[mode], key)
    # Two halves of a block in one byte, not two neighbours: unpacking then moves no single number.
    high, low = jnp.split(codes, 2, axis=1)
    return {"codes": high << 4 | low, **scales}


def unpack(
    values: Mapping[str, jax.Array], rows: int, columns: int, mode: QuantizationMode
) -> jax.Array:
    """Returns the kernel [rows, columns], float32, that is nearest to the packed one.

    Args:
        values: from `pack`.
        rows: outputs.
        columns: inputs.
        mode: of quantisation.
    """
    codes = values["codes"]
    if mode == "int8":
        return codes.astype(jnp.float32) * values["scales"][:, None]
    levels = jnp.asarray(LEVELS[mode])
    halves = jnp.concatenate([codes >> 4, codes & 15], axis=1)
    blocks = jnp.take(levels, halves.astype(jnp.int32), mode="clip")
    flat = (blocks * _unpack_scales(values)[:, None]).reshape(-1)
    return flat[: rows * columns].reshape(rows, columns)


def _coded(x: jax.Array, levels: np.ndarray, key: jax.Array | None) -> jax.Array:
    """Index of the nearest level, or of one of the two around it: how many gaps are passed."""
    share = 0.5 if key is None else jax.random.uniform(key, x.shape)
    # One random number does for all gaps: a level that is met exactly is passed by any.
    gaps = zip(levels[:-1], levels[1:], strict=True)
    passed = [(x - low > share * (high - low)).astype(jnp.uint8) for low, high in gaps]
    return functools.reduce(jnp.add, passed)


def _either(x: jax.Array, key: jax.Array) -> jax.Array:
    """The whole number below or above, above as often as x is far from the one below."""
    below = jnp.floor(x)
    return below + (jax.random.uniform(key, x.shape) < x - below)


def _pack_scales(scales: jax.Array) -> dict[str, jax.Array]:
    mean = jnp.mean(scales)
    centred = jnp.pad(scales - mean, (0, -scales.size % SUPERBLOCK)).reshape(-1, SUPERBLOCK)
    units = jnp.max(jnp.abs(centred), axis=1) / _LARGEST_FLOAT8
    # Rounding may lead beyond the largest, where there is no number.
    ratios = jnp.clip(centred / _divisor(units)[:, None], -_LARGEST_FLOAT8, _LARGEST_FLOAT8)
    floats = ratios.reshape(-1)[: scales.size].astype(jnp.float8_e4m3fn)
    # As plain bytes: safetensors and older accelerators know no such floats.
    codes = jax.lax.bitcast_convert_type(floats, jnp.uint8)
    return {"scales": codes, "scale_units": units, "scale_mean": mean}


def _unpack_scales(values: Mapping[str, jax.Array]) -> jax.Array:
    """The largest magnitude of each block, float32."""
    ratios = jax.lax.bitcast_convert_type(values["scales"], jnp.float8_e4m3fn)
    units = jnp.repeat(values["scale_units"], SUPERBLOCK)
    centred = ratios.astype(jnp.float32) * units[: ratios.size]
    # A block of zeros may come out a rounding below.
    return jnp.maximum(centred + values["scale_mean"], 0)


def _divisor(scales: jax.Array) -> jax.Array:
    """The scales, and 1 in place of 0: what they scale is 0 then."""
    return jnp.where(scales > 0, scales, 1)
