"""What is added to a layer's bias while the bias itself stays as it is."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import keras
import numpy as np

from tunekit.errors import ModelError
from tunekit.methods.intercept import Call, Wrap
from tunekit.methods.linear import before_activation
from tunekit.methods.part import Layers, Leaf, Placed, Places, Values

_LINEAR = (
    keras.layers.Dense,
    keras.layers.EinsumDense,
    keras.layers.Conv1D,
    keras.layers.Conv2D,
    keras.layers.Conv3D,
    keras.layers.DepthwiseConv1D,
    keras.layers.DepthwiseConv2D,
)
_NORMS = (
    keras.layers.BatchNormalization,
    keras.layers.GroupNormalization,
    keras.layers.LayerNormalization,
)


@dataclass(frozen=True)
class BiasPart:
    """Adds a vector to what a layer's bias, or a norm's shift, is added to."""

    name: str
    shape: tuple[int, ...]
    """Of the bias; it broadcasts against the last axes of the outputs."""
    variable: str
    """Name of the layer's own bias."""

    @property
    def layers(self) -> tuple[str, ...]:
        """The one layer."""
        return (self.name,)

    @property
    def leaves(self) -> tuple[Leaf, ...]:
        """The difference from the layer's own bias, and the strength of it."""
        return Leaf("bias", self.shape), Leaf("bias_scaling", (), "constant")

    def wraps(
        self, layers: Layers, values: Values, *, training: bool, per_example: bool
    ) -> dict[keras.Layer, Wrap]:
        """Returns the interception of the one layer."""
        del training
        layer = layers[self.name]
        delta = self._delta(values)

        def shifted(inputs: Any, outputs: Any) -> Any:
            del inputs
            if not per_example:
                return outputs + delta.astype(outputs.dtype)
            between = (1,) * (outputs.ndim - delta.ndim)
            rows = delta.reshape(delta.shape[0], *between, *self.shape)
            return outputs + rows.astype(outputs.dtype)

        def wrap(call: Call) -> Call:
            return before_activation(layer, call, shifted)

        return {layer: wrap}

    def merged(self, layers: Layers, weights: Values, values: Values) -> dict[str, jax.Array]:
        """Returns the sum of the two biases."""
        name = f"{self.name}/{self.variable}"
        return {name: jnp.asarray(weights[name]).astype("float32") + self._delta(values)}

    def _delta(self, values: Values) -> jax.Array:
        scaling = values["bias_scaling"]
        return scaling.reshape(*scaling.shape, *(1,) * len(self.shape)) * values["bias"]


def biased(layers: Layers) -> list[str]:
    """Returns the names of the layers that have a bias, or a norm's shift, in their order."""
    return [name for name, layer in layers.items() if name and _own_bias(layer) is not None]


def place(places: Places, names: Iterable[str]) -> list[Placed]:
    """Returns a part of zeros for each of the named layers that has a bias.

    Raises:
        ModelError: a bias is not the last thing that its layer adds, over the last axes.
    """
    layers = places.layers
    return [_placed(n, layers[n]) for n in names if _own_bias(layers[n]) is not None]


def _placed(name: str, layer: keras.Layer) -> Placed:
    bias = _own_bias(layer)
    assert bias is not None
    if why := _obstacle(layer):
        raise ModelError(
            f"the bias of '{name}', a {type(layer).__name__}, cannot train as part of an adapter: "
            f"{why}. Set bias to 'none', or to 'lora_only' with targets that leave it out."
        )
    part = BiasPart(name, tuple(bias.shape), bias.name)
    return Placed(
        part, {"bias": np.zeros(part.shape, np.float32), "bias_scaling": np.ones((), np.float32)}
    )


def _own_bias(layer: keras.Layer) -> keras.Variable | None:
    for attribute in ("bias", "beta"):
        if isinstance(variable := getattr(layer, attribute, None), keras.Variable):
            return variable
    return None


def _obstacle(layer: Any) -> str | None:
    """Why the outputs, less a fused activation, are not something plus the bias; else `None`."""
    if not isinstance(layer, (*_LINEAR, *_NORMS)):
        return "what the layer does with it is not known"
    if getattr(layer, "data_format", "channels_last") == "channels_first":
        return "its channels come first; tunekit's come last"
    axes = layer.axis if isinstance(layer, _NORMS) else -1
    axes = list(axes) if isinstance(axes, (list, tuple)) else [axes]
    ndim = layer.input_spec.ndim if layer.input_spec else None
    last = [-1, *([] if ndim is None else [ndim - 1])]
    if len(axes) > 1 or axes[0] not in last:
        return f"it normalises over axes {axes}, and only the last is supported"
    return None
