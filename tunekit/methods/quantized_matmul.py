"""The product of activations with a packed kernel, whose backward pass unpacks it again.

Differentiating ``x @ unpack(codes)`` would keep the unpacked kernel of every layer from the forward
pass to the backward one, which is the memory that packing was to save. Here nothing is kept but
the codes, and neither pass can unpack before the activations, or their gradient, are there.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from tunekit.methods.packing import QuantizationMode, pack, packed_leaves, unpack

Packed = Mapping[str, jax.Array]


@dataclass(frozen=True)
class PackedForm:
    """A kernel's shape, its part in the layer's product, and how it is packed.

    Example:
        >>> PackedForm("nf4", "...i,io->...o", (576, 1536)).row_shape
        (1536, 576)
    """

    mode: QuantizationMode
    equation: str
    """Inputs, kernel -> outputs, for ``einsum``."""
    shape: tuple[int, ...]
    """Of the kernel."""

    @property
    def subscripts(self) -> tuple[str, str, str, str]:
        """Of inputs, kernel and outputs; and of the kernel with the summed axes behind."""
        inputs, _, rest = self.equation.partition(",")
        kernel, _, outputs = rest.partition("->")
        summed = [label for label in kernel if label not in outputs]
        made = [label for label in kernel if label in outputs]
        return inputs, kernel, outputs, "".join(made + summed)

    @property
    def _axes(self) -> tuple[int, ...]:
        _, kernel, _, rows = self.subscripts
        return tuple(kernel.index(label) for label in rows)

    @property
    def row_shape(self) -> tuple[int, int]:
        """Outputs and inputs: the kernel as `pack` takes it."""
        _, kernel, outputs, _ = self.subscripts
        made = math.prod(n for label, n in zip(kernel, self.shape, strict=True) if label in outputs)
        return made, math.prod(self.shape) // made

    def leaves(self) -> dict[str, jax.ShapeDtypeStruct]:
        """Returns shape and dtype of each packed array."""
        return packed_leaves(*self.row_shape, self.mode)

    def pack(self, kernel: jax.Array, key: jax.Array | None = None) -> dict[str, jax.Array]:
        """Returns the packed arrays of a kernel in the layer's shape; `key` is as for `pack`."""
        rows = jnp.transpose(kernel, self._axes).reshape(self.row_shape)
        return pack(rows, self.mode, key)

    def rows(self, packed: Packed) -> jax.Array:
        """Returns the kernel, float32, its axes in the order that it is packed in."""
        ordered = tuple(self.shape[axis] for axis in self._axes)
        return unpack(packed, *self.row_shape, self.mode).reshape(ordered)

    def kernel(self, packed: Packed) -> jax.Array:
        """Returns the kernel, float32, in the layer's shape."""
        back = sorted(range(len(self.shape)), key=self._axes.__getitem__)
        return jnp.transpose(self.rows(packed), back)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def packed_product(form: PackedForm, inputs: jax.Array, packed: Packed) -> jax.Array:
    """Returns what the layer makes of `inputs`, less bias and activation, in their dtype.

    Args:
        form: of the kernel.
        inputs: as the layer's equation has them.
        packed: the kernel's arrays; no gradient goes to them.
    """
    packed, inputs = _together(packed, inputs)
    given, _, made, rows = form.subscripts
    kernel = form.rows(packed).astype(inputs.dtype)
    return jnp.einsum(f"{given},{rows}->{made}", inputs, kernel)


def _forward(form: PackedForm, inputs: jax.Array, packed: Packed) -> tuple[jax.Array, Packed]:
    return packed_product(form, inputs, packed), packed


def _backward(form: PackedForm, packed: Packed, cotangent: jax.Array) -> tuple[jax.Array, None]:
    packed, cotangent = _together(packed, cotangent)
    given, _, made, rows = form.subscripts
    kernel = form.rows(packed).astype(cotangent.dtype)
    return jnp.einsum(f"{made},{rows}->{given}", cotangent, kernel), None


packed_product.defvjp(_forward, _backward)


def _together(packed: Packed, array: jax.Array) -> tuple[Packed, jax.Array]:
    """The same values, none of which can be used before all are there.

    Else XLA sees that both passes unpack the same kernel, does it once, and keeps the result; or
    unpacks every layer's kernel before the first layer runs.
    """
    packed, array = jax.lax.optimization_barrier((packed, array))
    # XLA's CPU compiler drops the barrier too early, but cannot tell that this changes nothing.
    codes = packed["codes"]
    return {**packed, "codes": codes ^ _zero(array).astype(codes.dtype)}, array


@jax.custom_batching.custom_vmap
def _zero(array: jax.Array) -> jax.Array:
    """0, on a CPU by a sum that needs `array`: one of two consecutive integers is even."""

    def computed(array: jax.Array) -> jax.Array:
        first = array[(0,) * array.ndim]
        number = jax.lax.bitcast_convert_type(first, f"uint{8 * first.dtype.itemsize}")
        return (number * (number + 1) & 1).astype("uint8")

    return jax.lax.platform_dependent(array, cpu=computed, default=lambda _: jnp.uint8(0))


@_zero.def_vmap
def _zero_of_batch(axis_size: int, batched: list[bool], array: jax.Array) -> tuple:
    """One for the whole batch: a kernel for each member would be unpacked otherwise."""
    del axis_size, batched
    return _zero(array), False
