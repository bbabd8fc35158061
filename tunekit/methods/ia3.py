"""IA3: learned vectors that scale a layer's inputs or outputs, feature by feature."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
import keras
import numpy as np

from tunekit.errors import ModelError
from tunekit.methods.intercept import Call, Wrap
from tunekit.methods.linear import ConvForm, LinearForm, before_activation, linear_form
from tunekit.methods.part import Layers, Leaf, Placed, Places, Values
from tunekit.methods.spec import IA3


@dataclass(frozen=True)
class IA3Part:
    """Scales the outputs, bias included, or the inputs of a layer: ``l * y`` or ``W (l * x) + b``.

    Liu et al. 2022, arXiv 2205.05638, eq. 1-2. With the leaf "scaling" the factor is
    ``1 + scaling * (l - 1)``; l begins at 1, and a fresh part changes no bit.
    """

    name: str
    form: LinearForm
    side: Literal["inputs", "outputs"]

    @property
    def features(self) -> int:
        """Numbers that are scaled: of a convolution, its channels in or out."""
        if self.side == "outputs":
            return self.form.out_features
        if isinstance(self.form, ConvForm):
            return self.form.shape[-2] * self.form.groups
        return self.form.in_features

    @property
    def layers(self) -> tuple[str, ...]:
        """The one layer."""
        return (self.name,)

    @property
    def leaves(self) -> tuple[Leaf, ...]:
        """The vector l, and the strength of the whole."""
        return Leaf("scale", (self.features,)), Leaf("scaling", (), "constant")

    def wraps(
        self, layers: Layers, values: Values, *, training: bool, per_example: bool
    ) -> dict[keras.Layer, Wrap]:
        """Returns the interception of the one layer."""
        del training, per_example  # A leading axis [B] shows in the factor.
        layer = layers[self.name]
        factor = _factor(values)

        def wrap(call: Call) -> Call:
            if self.side == "outputs":
                return before_activation(layer, call, lambda _, outputs: scaled(outputs, factor))
            return lambda inputs, *args, **kwargs: call(scaled(inputs, factor), *args, **kwargs)

        return {layer: wrap}

    def merged(self, layers: Layers, weights: Values, values: Values) -> dict[str, jax.Array]:
        """Returns the kernel, and with scaled outputs the bias, multiplied by the factor.

        Raises:
            ModelError: the kernel is of integers, or outputs share a bias.
        """
        factor = _factor(values)
        kernel_name = f"{self.name}/{self.form.kernel_name}"
        bias_name = f"{self.name}/bias"
        matrix = self.form.matrix(float_kernel(layers[self.name], kernel_name, weights))
        if self.side == "inputs":
            return {kernel_name: self.form.kernel(matrix * self._rows(factor))}
        merged = {kernel_name: self.form.kernel(matrix * factor)}
        if bias_name in weights:
            bias = jnp.asarray(weights[bias_name]).astype("float32")
            if bias.size != self.features:
                raise ModelError(
                    f"IA3 at '{self.name}' cannot be merged: its {self.features} outputs share a "
                    f"bias of shape {tuple(bias.shape)}, and each is scaled by itself. Keep the "
                    "adapter apart."
                )
            merged[bias_name] = (bias.reshape(-1) * factor).reshape(bias.shape)
        return merged

    def _rows(self, factor: jax.Array) -> jax.Array:
        """What multiplies the kernel's matrix [in, out], or [in, 1], when inputs are scaled.

        Rows of a convolution are pixels x channels of one group, columns the outputs of all.
        """
        groups = self.form.groups
        channels = factor.reshape(groups, -1).T
        rows = jnp.tile(channels, (self.form.in_features // channels.shape[0], 1))
        return jnp.repeat(rows, self.form.out_features // groups, axis=1) if groups > 1 else rows


def scaled(x: Any, factor: Any) -> Any:
    """Returns x [B, ..., *features] times a factor [F], or [B, F] for one an example.

    The product is float32, as PEFT's: in bfloat16 a factor of 1.003 would be 1.
    """
    flat = x.reshape(*factor.shape[:-1], -1, factor.shape[-1])
    product = flat.astype("float32") * factor[..., None, :]
    return product.astype(x.dtype).reshape(x.shape)


def float_kernel(layer: Any, name: str, weights: Values) -> jax.Array:
    """Returns the layer's kernel in float32: from `weights` under `name`, or as it stands.

    Raises:
        ModelError: it is of integers.
    """
    kernel = weights.get(name)
    kernel = jnp.asarray(getattr(layer, name.rpartition("/")[2]) if kernel is None else kernel)
    if not jnp.issubdtype(kernel.dtype, jnp.floating):
        raise ModelError(
            f"an adapter cannot be merged into '{name}', which is {kernel.dtype}. Keep the adapter "
            "apart, or merge it into a base that is not quantised."
        )
    return kernel.astype("float32")


def place(spec: IA3, places: Places, rng: np.random.Generator) -> list[Placed]:
    """Returns a part for each target: an MLP's last layer scaled at its inputs, others at outputs.

    Raises:
        ModelError: a target is an embedding, or no layer with a kernel.
    """
    del spec, rng
    return [_placed(name, places) for name in places.targets]


def _placed(name: str, places: Places) -> Placed:
    layer = places.layers[name]
    if isinstance(layer, keras.layers.Embedding):
        raise ModelError(
            f"IA3 is impossible on '{name}' ({type(layer).__name__}): it scales what layers "
            f"compute, not what they look up. Leave it out of the targets: '!{name}'."
        )
    side = "inputs" if places.roles.get(name) == "mlp_down" else "outputs"
    part = IA3Part(name, linear_form(name, layer), side)
    return Placed(
        part, {"scale": np.ones(part.features, np.float32), "scaling": np.ones((), np.float32)}
    )


def _factor(values: Values) -> jax.Array:
    """``1 + scaling * (l - 1)``, exactly l at a scaling of 1, and exactly 1 where l is."""
    scale = values["scale"]
    return scale + (values["scaling"][..., None] - 1) * (scale - 1)
