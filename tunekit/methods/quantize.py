"""Frozen kernels as 8 or 4 bits: the float variable is gone, packed ones stand in its place.

Dense and einsum layers alone: embeddings keep their floats, for an int8 table used in reverse
gives gradients that mean nothing, and norms and convolutions are too small to matter. Unlike Keras'
own quantisation, activations stay as they are, and training keeps no unpacked kernel.

Reads the private ``_kernel``, ``_tracker`` and ``_untrack_variable`` of Keras' layers, as of 3.15.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from types import MethodType
from typing import Any

import jax
import jax.numpy as jnp
import keras
import numpy as np

from tunekit.errors import ModelError, did_you_mean
from tunekit.methods.intercept import replace_call
from tunekit.methods.packing import MODES, QuantizationMode
from tunekit.methods.part import Layers
from tunekit.methods.quantized_matmul import PackedForm, packed_product

_KINDS = (keras.layers.Dense, keras.layers.EinsumDense)
_PREFIX = "kernel_"


@dataclass(frozen=True)
class QuantizedLayer:
    """What packing did to one layer."""

    name: str
    bytes_before: int
    """Of its kernel."""
    bytes_after: int
    error: float
    """Norm of what was lost, as a fraction of the kernel's norm."""


@dataclass(frozen=True)
class QuantizationReport:
    """What packing did to a network's kernels; what was left as it was does not count."""

    mode: QuantizationMode
    layers: tuple[QuantizedLayer, ...]

    @property
    def bytes_before(self) -> int:
        """Of all kernels that are now packed."""
        return sum(layer.bytes_before for layer in self.layers)

    @property
    def bytes_after(self) -> int:
        """Of the same kernels, scales included."""
        return sum(layer.bytes_after for layer in self.layers)

    def __str__(self) -> str:
        """Returns one line, megabytes of 10^6 bytes."""
        before, after = self.bytes_before / 1e6, self.bytes_after / 1e6
        worst = max(self.layers, key=lambda layer: layer.error)
        return (
            f"{self.mode}: {len(self.layers)} kernels, {before:.1f} -> {after:.1f} MB, "
            f"error at most {worst.error:.1%} ({worst.name})"
        )


class PackedKernel:
    """Stands where a layer's kernel was, and reads as an array: the unpacked kernel.

    Whatever reads ``layer.kernel`` (merging, norms, Keras' own saving) therefore goes on working.
    """

    def __init__(
        self, form: PackedForm, dtype: str, variables: Mapping[str, keras.Variable]
    ) -> None:
        """Takes the packed arrays as variables by leaf name, and the dtype that the kernel had."""
        self.form, self.dtype, self.shape = form, dtype, form.shape
        self._variables = dict(variables)

    @property
    def values(self) -> dict[str, jax.Array]:
        """The packed arrays, of the present ``StatelessScope`` where there is one."""
        return {name: variable.value for name, variable in self._variables.items()}

    def __jax_array__(self) -> jax.Array:
        """Returns the unpacked kernel in the dtype that it had."""
        return self.form.kernel(self.values).astype(self.dtype)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        """Returns the same for NumPy; always a copy."""
        return np.asarray(self.__jax_array__(), dtype)


def quantize_layers(layers: Layers, mode: QuantizationMode) -> QuantizationReport:
    """Every dense and einsum layer of `layers` now holds its kernel packed; other layers are left.

    Variables that were there before, and programs compiled with them, are of no use afterwards.

    Args:
        layers: built, by structural name: those of a backbone, without heads.
        mode: "int8", "int4" or "nf4".

    Raises:
        ModelError: no layer can be packed, or one cannot; then none is.

    Example:
        >>> model = keras.Sequential([keras.Input((64,)), keras.layers.Dense(64, name="up")])
        >>> print(quantize_layers({"up": model.layers[0]}, "int8"))
        int8: 1 kernels, 0.0 -> 0.0 MB, error at most 0.9% (up)
    """
    chosen = _checked(layers, mode)
    for name, layer in chosen.items():
        if not bool(jnp.isfinite(jnp.asarray(layer.kernel)).all()):
            raise ModelError(
                f"the kernel of '{name}' holds NaN or infinity, which has no packed form; load "
                "weights that are whole, then quantise"
            )
    return QuantizationReport(mode, tuple(_quantized(n, x, mode) for n, x in chosen.items()))


def quantize_structure(layers: Layers, mode: QuantizationMode) -> None:
    """The same layers hold packed variables of the same shapes, all zeros: the values come later.

    Args:
        layers: as for `quantize_layers`.
        mode: likewise.

    Raises:
        ModelError: as there.
    """
    for layer in _checked(layers, mode).values():
        form = _form(layer, mode)
        zeros = {leaf: np.zeros(x.shape, x.dtype) for leaf, x in form.leaves().items()}
        _replace_kernel(layer, form, zeros)


def is_quantized(layer: keras.Layer) -> bool:
    """Returns whether the layer's kernel is packed by `quantize_layers`, not by Keras."""
    return isinstance(vars(layer).get("_kernel"), PackedKernel)


def dequantized_kernel(layer: keras.Layer, values: Mapping[str, Any] | None = None) -> jax.Array:
    """Returns the kernel that a packed layer computes with, float32, in the layer's shape.

    Args:
        layer: packed.
        values: its variables' values by their names ("kernel_codes"...); `None` are its own.
    """
    packed = _packed(layer)
    if values is None:
        return packed.form.kernel(packed.values)
    return packed.form.kernel({leaf: values[_PREFIX + leaf] for leaf in packed.form.leaves()})


def requantized(
    layer: keras.Layer, kernel: Any, key: jax.Array | None = None
) -> dict[str, jax.Array]:
    """Returns what a packed layer's variables hold where its kernel is `kernel`, by their names.

    Args:
        layer: packed; it does not change.
        kernel: in the layer's shape.
        key: of random numbers, to round without bias; `None` rounds to the nearest.
    """
    values = _packed(layer).form.pack(jnp.asarray(kernel), key)
    return {_PREFIX + leaf: value for leaf, value in values.items()}


def repacked(layers: Layers, weights: Mapping[str, Any], *, seed: int = 0) -> dict[str, Any]:
    """Returns `weights` with the packed form of each kernel whose layer is packed.

    Rounded at random and without bias: of an update smaller than the steps between two codes the
    nearest rounding leaves nothing, while what random errors add to a sum over many inputs cancels.

    Args:
        layers: of the network, by structural name.
        weights: new values by structural name, such as those that merging gives.
        seed: of the rounding; each layer has random numbers of its own.
    """
    values: dict[str, Any] = {}
    for name, value in weights.items():
        owner, _, leaf = name.rpartition("/")
        if leaf == "kernel" and owner in layers and is_quantized(layers[owner]):
            key = jax.random.fold_in(jax.random.key(seed), zlib.crc32(owner.encode()))
            packed = requantized(layers[owner], value, key)
            values.update({f"{owner}/{part}": array for part, array in packed.items()})
        else:
            values[name] = value
    return values


def quantization_residual(matrix: Any, mode: QuantizationMode) -> tuple[jax.Array, jax.Array]:
    """Returns Q(W) and W - Q(W), float32: what packing leaves and what it takes away.

    Args:
        matrix: W, the kernel of a layer as [in, out].
        mode: of quantisation.
    """
    matrix = jnp.asarray(matrix, jnp.float32)
    form = PackedForm(mode, "...i,io->...o", (int(matrix.shape[0]), int(matrix.shape[1])))
    quantised = form.kernel(form.pack(matrix))
    return quantised, matrix - quantised


def check_keras_quantization(layers: Layers) -> None:
    """Passes where gradients through layers that Keras itself has quantised can be trusted.

    Raises:
        ModelError: a layer is GPTQ, AWQ or float8, or an int8 embedding that is used in reverse.
    """
    for name, layer in layers.items():
        mode = layer.quantization_mode
        if mode == "int8" and isinstance(layer, keras.layers.ReversibleEmbedding):
            # Its rounding of the hidden states has no straight-through gradient (Keras 3.15).
            raise ModelError(
                f"'{name}' is an int8 embedding that is also used in reverse: no gradient passes "
                "Keras' quantised product, and what is trained below it is noise. Load the float "
                "model and pass quantize='int8' to tunekit, which keeps embeddings in float"
            )
        if mode not in (None, "int8", "int4"):
            raise ModelError(
                f"'{name}' is quantised by Keras as {mode!r}, which nothing can be trained on. "
                f"Load the float model and pass quantize= one of {', '.join(MODES)}"
            )


def _checked(layers: Layers, mode: QuantizationMode) -> dict[str, Any]:
    """The layers to pack, by name."""
    if mode not in MODES:
        raise ModelError(
            f"quantize={mode!r} is not one of {', '.join(MODES)}.{did_you_mean(mode, MODES)}"
        )
    chosen = {name: layer for name, layer in layers.items() if _is_plain_product(layer)}
    if not chosen:
        kinds = sorted({type(layer).__name__ for layer in layers.values()})
        raise ModelError(
            "quantize needs Dense or EinsumDense layers, which this network has none of; it has "
            f"{', '.join(kinds) or 'no layers'}. Leave quantize out"
        )
    for name, layer in chosen.items():
        if reason := _refusal(layer):
            raise ModelError(f"'{name}' {reason}")
    return chosen


def _is_plain_product(layer: keras.Layer) -> bool:
    """Whether it computes as a dense layer does; a subclass with its own call may not."""
    return isinstance(layer, _KINDS) and type(layer).call in [kind.call for kind in _KINDS]


def _refusal(layer: Any) -> str | None:
    if not layer.built:
        return "is not built; call the network on an example, then quantise"
    if is_quantized(layer):
        return "is quantised already; load the float model to quantise it otherwise"
    if layer.quantization_mode is not None:
        return (
            f"is quantised by Keras as {layer.quantization_mode!r} already; leave quantize out, or "
            "load the float model"
        )
    if layer.lora_enabled:
        return "has LoRA by Keras' enable_lora, merge it by saving and loading, then quantise"
    return None


def _form(layer: Any, mode: QuantizationMode) -> PackedForm:
    equation = getattr(layer, "equation", "...i,io->...o")
    return PackedForm(mode, equation, tuple(int(size) for size in layer.kernel.shape))


def _quantized(name: str, layer: Any, mode: QuantizationMode) -> QuantizedLayer:
    kernel, form = layer.kernel.value, _form(layer, mode)
    packed = form.pack(kernel)
    error = float(_relative_error(kernel, form.kernel(packed)))
    after = sum(value.nbytes for value in packed.values())
    _replace_kernel(layer, form, packed)
    return QuantizedLayer(name, kernel.nbytes, after, error)


@jax.jit
def _relative_error(kernel: jax.Array, approximation: jax.Array) -> jax.Array:
    kernel = kernel.astype(jnp.float32)
    norm = jnp.linalg.norm(kernel.ravel())
    return jnp.linalg.norm((kernel - approximation).ravel()) / jnp.where(norm > 0, norm, 1)


def _replace_kernel(layer: Any, form: PackedForm, packed: Mapping[str, Any]) -> None:
    old = layer._kernel
    # Not `del layer._kernel`: Keras then collects garbage of the whole process, for each layer.
    layer._untrack_variable(old)
    layer._tracker.unlock()
    variables = {
        leaf: layer.add_weight(
            name=_PREFIX + leaf,
            shape=spec.shape,
            dtype=str(spec.dtype),
            initializer=_holding(packed[leaf]),
            trainable=False,
            # A layer of mixed precision would read scales rounded to bfloat16.
            autocast=False,
        )
        for leaf, spec in form.leaves().items()
    }
    layer._tracker.lock()
    # Behind Keras' setter, which would track it.
    object.__setattr__(layer, "_kernel", PackedKernel(form, old.dtype, variables))
    replace_call(layer, MethodType(_packed_call, layer))


def _holding(value: Any) -> Any:
    return lambda shape, dtype: value


def _packed_call(layer: Any, inputs: Any, training: bool | None = None) -> Any:
    """Keras' ``Dense.call`` and ``EinsumDense.call``, but for the product."""
    del training
    kernel = layer._kernel
    outputs: Any = packed_product(kernel.form, jnp.asarray(inputs), kernel.values)
    if layer.bias is not None:
        outputs = outputs + jnp.asarray(layer.bias)
    return outputs if layer.activation is None else layer.activation(outputs)


def _packed(layer: keras.Layer) -> PackedKernel:
    kernel = vars(layer).get("_kernel")
    if not isinstance(kernel, PackedKernel):
        raise ModelError(f"layer {layer.name!r} is not quantised; give it to quantize_layers first")
    return kernel
