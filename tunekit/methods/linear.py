"""Layers as linear maps: what goes in, what comes out, and the kernel as one matrix.

The low-rank methods are written once, over this form: a dense layer, one over several axes
(``EinsumDense``), a convolution (patches in, channels out), an embedding (a row a token).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import keras

from tunekit.errors import ModelError
from tunekit.methods.intercept import Call, with_attributes


class LinearForm(Protocol):
    """A layer's kernel [in, out] as a map; hashable, of the layer's shape alone."""

    @property
    def in_features(self) -> int:
        """Rows of the matrix: what one output is a sum over."""
        ...

    @property
    def out_features(self) -> int:
        """Columns of the matrix."""
        ...

    @property
    def groups(self) -> int:
        """Parts that inputs and outputs fall into; 1 but for grouped convolutions."""
        ...

    @property
    def kernel_name(self) -> str:
        """Name of the variable that holds the kernel."""
        ...

    def product(self, inputs: jax.Array, matrix: jax.Array, *, per_example: bool) -> jax.Array:
        """Returns ``inputs @ matrix``, the inputs as the layer takes them: [..., R].

        Args:
            inputs: what the layer is called with.
            matrix: [in, R], or [B, in, R] where `per_example`.
            per_example: whether every example has a matrix of its own.
        """
        ...

    def outputs(self, hidden: jax.Array, matrix: jax.Array, *, per_example: bool) -> jax.Array:
        """Returns ``hidden @ matrix`` in the shape of the layer's outputs.

        Args:
            hidden: from `product`.
            matrix: [R, out], or [B, R, out] where `per_example`.
            per_example: whether every example has a matrix of its own.
        """
        ...

    def vector(self, values: jax.Array, outputs: jax.Array, *, per_example: bool) -> jax.Array:
        """Returns `values` [out], or [B, out], in a shape that broadcasts over `outputs`."""
        ...

    def matrix(self, kernel: jax.Array) -> jax.Array:
        """Returns the kernel as [in, out]."""
        ...

    def kernel(self, matrix: jax.Array) -> jax.Array:
        """Returns the matrix in the shape of the kernel."""
        ...


@dataclass(frozen=True)
class DenseForm:
    """A dense layer over trailing axes: inputs [..., *in], outputs [..., *out]."""

    in_shape: tuple[int, ...]
    out_shape: tuple[int, ...]
    kernel_axes: tuple[int, ...]
    """The axes of the kernel in the order in, out."""
    groups: int = 1
    kernel_name: str = "kernel"

    @property
    def in_features(self) -> int:
        """Numbers that an output is a sum over."""
        return math.prod(self.in_shape)

    @property
    def out_features(self) -> int:
        """Numbers in the output of one position."""
        return math.prod(self.out_shape)

    def product(self, inputs: Any, matrix: Any, *, per_example: bool) -> Any:
        """Returns [..., R]: one matrix product over all positions, which XLA compiles best."""
        lead = inputs.shape[: inputs.ndim - len(self.in_shape)]
        return _flat_product(inputs.reshape(*lead, self.in_features), matrix, per_example)

    def outputs(self, hidden: Any, matrix: Any, *, per_example: bool) -> Any:
        """Returns [..., *out]."""
        flat = _flat_product(hidden, matrix, per_example)
        return flat.reshape(*hidden.shape[:-1], *self.out_shape)

    def vector(self, values: Any, outputs: Any, *, per_example: bool) -> Any:
        """Returns the values over the output axes, behind those of the positions."""
        if not per_example:
            return values.reshape(self.out_shape)
        positions = outputs.ndim - 1 - len(self.out_shape)
        return values.reshape(values.shape[0], *(1,) * positions, *self.out_shape)

    def matrix(self, kernel: Any) -> Any:
        """Returns the kernel as [in, out]."""
        return jnp.transpose(kernel, self.kernel_axes).reshape(self.in_features, self.out_features)

    def kernel(self, matrix: Any) -> Any:
        """Returns the matrix in the shape of the kernel."""
        shaped = matrix.reshape(*self.in_shape, *self.out_shape)
        back = sorted(range(len(self.kernel_axes)), key=self.kernel_axes.__getitem__)
        return jnp.transpose(shaped, back)


@dataclass(frozen=True)
class ConvForm:
    """A convolution, channels last: kernel [*size, in / groups, out], a patch in, a pixel out."""

    shape: tuple[int, ...]
    """Of the kernel."""
    strides: tuple[int, ...]
    padding: str
    dilation: tuple[int, ...]
    groups: int
    kernel_name: str = "kernel"

    @property
    def in_features(self) -> int:
        """Numbers in the patch that an output is a sum over, of one group."""
        return math.prod(self.shape[:-1])

    @property
    def out_features(self) -> int:
        """Channels out."""
        return self.shape[-1]

    def product(self, inputs: Any, matrix: Any, *, per_example: bool) -> Any:
        """Returns [B, *pixels, R], a convolution like the layer's own with R channels."""
        kernel = matrix.reshape(*matrix.shape[:-2], *self.shape[:-1], matrix.shape[-1])
        if per_example:
            return jax.vmap(lambda x, k: self._convolved(x[None], k)[0])(inputs, kernel)
        return self._convolved(inputs, kernel)

    def _convolved(self, inputs: Any, kernel: Any) -> Any:
        if self.groups == 1 and math.prod(self.shape[:-2]) == 1 and self.padding != "causal":
            # XLA's weight gradient of a pointwise convolution is several times slower on a CPU.
            steps = tuple(slice(None, None, stride) for stride in self.strides)
            pixels = inputs[(slice(None), *steps)]
            return _flat_product(pixels, kernel.reshape(-1, kernel.shape[-1]), False)
        conv: Any = keras.ops.conv  # Keras annotates one number; one an axis works too.
        return conv(
            inputs,
            kernel,
            strides=self.strides,
            padding=self.padding,
            dilation_rate=self.dilation,
            data_format="channels_last",
        )

    def outputs(self, hidden: Any, matrix: Any, *, per_example: bool) -> Any:
        """Returns [B, *pixels, out]; each group's outputs are of its own share of R."""
        if self.groups == 1:
            return _flat_product(hidden, matrix, per_example)
        parts = hidden.reshape(*hidden.shape[:-1], self.groups, -1)
        shares = matrix.reshape(*matrix.shape[:-1], self.groups, -1)
        equation = "b...gr,brgo->b...go" if per_example else "...gr,rgo->...go"
        mixed = jnp.einsum(equation, parts, shares)
        return mixed.reshape(*hidden.shape[:-1], self.out_features)

    def vector(self, values: Any, outputs: Any, *, per_example: bool) -> Any:
        """Returns the values over the channels."""
        if not per_example:
            return values
        return values.reshape(values.shape[0], *(1,) * (outputs.ndim - 2), values.shape[-1])

    def matrix(self, kernel: Any) -> Any:
        """Returns the kernel as [in, out]."""
        return kernel.reshape(self.in_features, self.out_features)

    def kernel(self, matrix: Any) -> Any:
        """Returns the matrix in the shape of the kernel."""
        return matrix.reshape(self.shape)


@dataclass(frozen=True)
class EmbeddingForm:
    """A table [V, D]: a token picks a row. Where it is used in reverse, D in and V out."""

    in_features: int
    out_features: int
    groups: int = 1
    kernel_name: str = "embeddings"

    def product(self, inputs: Any, matrix: Any, *, per_example: bool) -> Any:
        """Returns [B, T, R]: the rows of the matrix that the tokens pick."""
        tokens = jnp.asarray(inputs).astype("int32")
        if per_example:
            return jax.vmap(lambda table, row: jnp.take(table, row, axis=0))(matrix, tokens)
        return jnp.take(matrix, tokens, axis=0)

    def outputs(self, hidden: Any, matrix: Any, *, per_example: bool) -> Any:
        """Returns [B, T, D]."""
        return _flat_product(hidden, matrix, per_example)

    def vector(self, values: Any, outputs: Any, *, per_example: bool) -> Any:
        """Returns the values over the last axis."""
        return values[:, None] if per_example else values

    def matrix(self, kernel: Any) -> Any:
        """Returns the table itself."""
        return kernel

    def kernel(self, matrix: Any) -> Any:
        """Returns the table itself."""
        return matrix


def linear_form(name: str, layer: keras.Layer) -> LinearForm:
    """Returns the layer as a linear map.

    Args:
        name: structural name of the layer, for the error.
        layer: built.

    Raises:
        ModelError: it is no linear map that low-rank factors fit; the message says why.
    """
    if isinstance(layer, keras.layers.DepthwiseConv1D | keras.layers.DepthwiseConv2D):
        raise _impossible(
            name,
            layer,
            "each channel has its own few weights, which two factors would only make more of",
        )
    if isinstance(layer, keras.layers.Embedding):  # ReversibleEmbedding is one
        return EmbeddingForm(layer.input_dim, layer.output_dim)
    if isinstance(layer, keras.layers.EinsumDense):
        return _einsum_form(name, layer)
    if isinstance(layer, keras.layers.Dense):
        return DenseForm(*((int(n),) for n in _kernel_shape(layer)), kernel_axes=(0, 1))
    if isinstance(layer, keras.layers.Conv1D | keras.layers.Conv2D | keras.layers.Conv3D):
        if layer.data_format != "channels_last":
            raise _impossible(name, layer, "its channels come first; tunekit's come last")
        return ConvForm(
            _kernel_shape(layer),
            tuple(layer.strides),
            layer.padding,
            tuple(layer.dilation_rate),
            layer.groups,
        )
    raise _impossible(name, layer, "it has no kernel that inputs are multiplied with")


def _einsum_form(name: str, layer: keras.layers.EinsumDense) -> DenseForm:
    """Every dense layer over several axes of KerasHub contracts the last axes of its inputs."""
    inputs, _, rest = layer.equation.replace("...", "").partition(",")
    weights, _, outputs = rest.partition("->")
    summed = "".join(label for label in inputs if label in weights and label not in outputs)
    made = "".join(label for label in outputs if label in weights)
    shared = [label for label in weights if label in inputs and label in outputs]
    kept = inputs.removesuffix(summed)
    if shared or not inputs.endswith(summed) or outputs != kept + made:
        raise _impossible(
            name,
            layer,
            f"its equation {layer.equation!r} does not sum over the last axes of its inputs and "
            "put the new ones last",
        )
    size = dict(zip(weights, _kernel_shape(layer), strict=True))
    return DenseForm(
        tuple(size[label] for label in summed),
        tuple(size[label] for label in made),
        tuple(weights.index(label) for label in summed + made),
    )


def _kernel_shape(layer: Any) -> tuple[int, ...]:
    """Shape of the kernel as it was before any quantisation."""
    shape = getattr(layer, "original_kernel_shape", None) or layer.kernel.shape
    return tuple(int(size) for size in shape)


def before_activation(layer: keras.Layer, call: Call, change: Callable[[Any, Any], Any]) -> Call:
    """Returns `call` with ``change(inputs, outputs)`` before the layer's fused activation."""

    def changed_call(inputs: Any, *args: Any, **kwargs: Any) -> Any:
        activation = layer.__dict__.get("activation")
        if activation is None:
            return change(inputs, call(inputs, *args, **kwargs))
        plain = with_attributes(layer, call, activation=None)
        return activation(change(inputs, plain(inputs, *args, **kwargs)))

    return changed_call


def _flat_product(x: Any, matrix: Any, per_example: bool) -> Any:
    """``x @ matrix`` [..., in] x [in, out] as one product of two matrices (a batch an example)."""
    lead = (x.shape[0], -1) if per_example else (-1,)
    y = x.reshape(*lead, x.shape[-1]) @ matrix.astype(x.dtype)
    return y.reshape(*x.shape[:-1], matrix.shape[-1])


def _impossible(name: str, layer: keras.Layer, why: str) -> ModelError:
    return ModelError(
        f"'{name}' is a {type(layer).__name__}, on which low-rank factors are impossible: {why}. "
        f"Leave it out of the targets: '!{name}'."
    )
