"""Bottleneck adapters: small networks of two layers, beside or behind the network's own.

``h + s (f(x D + d) U + u)``: behind attention and MLP x is h itself, what the layer puts out,
before the residual connection (Houlsby et al. 2019, arXiv 1902.00751, fig. 2; behind the MLP alone,
Pfeiffer et al. 2020, arXiv 2005.00247); in parallel x is what the MLP takes and h what it puts out
(He et al. 2022, arXiv 2110.04366, eq. 8). D is drawn as in He et al., U begins at zero, so a fresh
adapter changes nothing. Dropout of the network's own, where a block has any, comes after.

A convolutional network has neither attention nor MLP: there the adapter works on the channels
behind each block's last convolution.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import jax
import keras
import numpy as np

from tunekit.errors import ModelError
from tunekit.methods.intercept import Call, Wrap
from tunekit.methods.linear import linear_form
from tunekit.methods.part import LayerRole, Layers, Leaf, Placed, Places, Values
from tunekit.methods.spec import Bottleneck


@dataclass(frozen=True)
class BottleneckPart:
    """A small network whose output is added to that of one layer."""

    name: str
    source: str | None
    """The layer whose inputs it takes; `None`: it takes the outputs that it adds to."""
    features: tuple[int, int]
    """Taken and added to."""
    width: int
    activation: str

    @property
    def layers(self) -> tuple[str, ...]:
        """The one that it adds to."""
        return (self.name,)

    @property
    def leaves(self) -> tuple[Leaf, ...]:
        """The two layers, and the strength of the whole."""
        taken, added = self.features
        return (
            Leaf("down", (taken, self.width)),
            Leaf("down_bias", (self.width,)),
            Leaf("up", (self.width, added)),
            Leaf("up_bias", (added,)),
            Leaf("scaling", (), "constant"),
        )

    def wraps(
        self, layers: Layers, values: Values, *, training: bool, per_example: bool
    ) -> dict[keras.Layer, Wrap]:
        """Returns the interception of the layer, and with a source of that."""
        del training, per_example  # A leading axis [B] shows in the values.
        taken: list[Any] = []

        def behind(call: Call) -> Call:
            def adapted(*args: Any, **kwargs: Any) -> Any:
                outputs = call(*args, **kwargs)
                inputs = outputs if self.source is None else taken.pop()
                return outputs + self._change(inputs, values).reshape(outputs.shape)

            return adapted

        def taking(call: Call) -> Call:
            def watched(inputs: Any, *args: Any, **kwargs: Any) -> Any:
                taken[:] = [inputs]
                return call(inputs, *args, **kwargs)

            return watched

        wraps: dict[keras.Layer, Wrap] = {layers[self.name]: behind}
        return wraps if self.source is None else {layers[self.source]: taking, **wraps}

    def _change(self, inputs: Any, values: Values) -> Any:
        """``s (f(x D + d) U + u)``, with one matrix an example where D has a leading axis [B]."""
        down, down_bias, up, up_bias, scaling = (
            values[leaf.name].astype(inputs.dtype) for leaf in self.leaves
        )
        # One product over all positions, or one an example.
        x = inputs.reshape(*down.shape[:-2], -1, self.features[0])
        hidden: Any = keras.activations.get(self.activation)(x @ down + down_bias[..., None, :])
        return scaling[..., None, None] * (hidden @ up + up_bias[..., None, :])

    def merged(self, layers: Layers, weights: Values, values: Values) -> dict[str, jax.Array]:
        """Has nothing to return.

        Raises:
            ModelError: always; there is an activation inside.
        """
        raise ModelError(
            f"the bottleneck adapter at '{self.name}' cannot be merged: no weights of the network "
            f"do what it does, with {self.activation} inside. Keep it apart, or train a LoRA."
        )


def place(spec: Bottleneck, places: Places, rng: np.random.Generator) -> list[Placed]:
    """Returns the parts of each block that the targets reach into.

    Raises:
        ModelError: there is no place for such an adapter.
    """
    blocks = [tuple(_targets_in(block, places)) for block in places.blocks]
    if not any(_having(("attention_output", "mlp_down"), block, places) for block in blocks):
        parts = _behind_blocks(spec, places, blocks)
    elif spec.kind == "parallel":
        parts = [_part(spec, places, *pair) for b in blocks for pair in _mlps(b, places)]
    else:
        roles = ("attention_output", "mlp_down") if spec.kind == "houlsby" else ("mlp_down",)
        parts = [_part(spec, places, None, n) for b in blocks for n in _having(roles, b, places)]
    if not parts:
        raise ModelError(
            f"there is no place for a bottleneck adapter of kind '{spec.kind}': none of the "
            f"{len(blocks)} blocks has a fitting layer among {list(places.targets)}. Widen within, "
            "or use LoRA."
        )
    if places.shapes_only:
        return [Placed(part, {}) for part in parts]
    return [_placed(spec, part, rng) for part in parts]


def _behind_blocks(
    spec: Bottleneck, places: Places, targets: Iterable[tuple[str, ...]]
) -> list[BottleneckPart]:
    if spec.kind == "parallel":
        raise ModelError(
            "a parallel bottleneck adapter runs beside an MLP, and this network's blocks have "
            "none that is a target. Set kind to 'pfeiffer', which follows the last convolution."
        )
    return [
        _part(spec, places, None, _last(own, block, places.layers))
        for block, own in zip(places.blocks, targets, strict=True)
        if own
    ]


def _last(targets: tuple[str, ...], block: tuple[str, ...], layers: Layers) -> str:
    """The target that ends the block's longest path: a shortcut may run last of all.

    Reads the private ``Operation._inbound_nodes`` of Keras 3.15.
    """
    inside = [layers[name] for name in block]
    steps: dict[int, int] = {}

    def distance(operation: Any) -> int:
        """From the block's inputs; 0 before them."""
        if isinstance(operation, keras.Layer) and operation not in inside:
            return 0
        if id(operation) not in steps:
            parents = [p for node in operation._inbound_nodes[:1] for p in node.parent_nodes]
            steps[id(operation)] = 1 + max((distance(p.operation) for p in parents), default=0)
        return steps[id(operation)]

    def place_of(target: str) -> tuple[int, int]:
        outermost = next(name for name in block if f"{target}/".startswith(f"{name}/"))
        return distance(layers[outermost]), targets.index(target)

    return max(targets, key=place_of)


def _mlps(block: tuple[str, ...], places: Places) -> list[tuple[str, str]]:
    """The first and last layers of a block's MLPs."""
    first, last = (_having((role,), block, places) for role in ("mlp_up", "mlp_down"))
    if len(first) != len(last):
        raise ModelError(
            f"a parallel bottleneck adapter takes what an MLP takes, and here {first} would belong "
            f"to {last}. Set kind to 'pfeiffer'."
        )
    return list(zip(first, last, strict=True))


def _having(roles: tuple[LayerRole, ...], block: tuple[str, ...], places: Places) -> list[str]:
    return [name for name in block if places.roles[name] in roles]


def _targets_in(block: tuple[str, ...], places: Places) -> list[str]:
    return [
        target
        for target in places.targets
        if places.roles.get(target, "embedding") != "embedding"
        and any(f"{target}/".startswith(f"{layer}/") for layer in block)
    ]


def _part(spec: Bottleneck, places: Places, source: str | None, name: str) -> BottleneckPart:
    added = linear_form(name, places.layers[name]).out_features
    taken = added if source is None else linear_form(source, places.layers[source]).in_features
    width = max(1, int(taken / spec.reduction))
    return BottleneckPart(name, source, (taken, added), width, spec.activation)


def _placed(spec: Bottleneck, part: BottleneckPart, rng: np.random.Generator) -> Placed:
    taken, added = part.features
    bound = taken**-0.5
    values = {
        "down": rng.uniform(-bound, bound, (taken, part.width)).astype(np.float32),
        "down_bias": np.zeros(part.width, np.float32),
        "up": np.zeros((part.width, added), np.float32),
        "up_bias": np.zeros(added, np.float32),
        "scaling": np.array(spec.scaling, np.float32),
    }
    return Placed(part, values)
