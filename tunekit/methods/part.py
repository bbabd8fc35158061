"""What an adapter is made of: parts, each on one place of the network, and their leaves.

A part says in static, hashable terms what it does; its values come from outside at every call.
Equal parts therefore run one compiled program, whichever adapter the values are of.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import jax
import keras
import numpy as np

from tunekit.methods.intercept import Wrap

Values = Mapping[str, jax.Array]
Layers = Mapping[str, keras.Layer]
"""Every layer of a network by structural name; "" is the network itself."""

LayerRole = Literal[
    "query",
    "key",
    "value",
    "qkv",
    "attention_output",
    "mlp_up",
    "mlp_gate",
    "mlp_down",
    "convolution",
    "embedding",
    "linear",
]
"""What a layer with a kernel is for; "linear" is a dense layer that is none of the others."""


@dataclass(frozen=True)
class Leaf:
    """One array of a part, without its values."""

    name: str
    """Unique within the part, such as "lora_a"."""
    shape: tuple[int, ...]
    role: Literal["weight", "constant", "seed"] = "weight"
    """Trains; never moves; or is drawn anew for every training step (uint32)."""

    @property
    def dtype(self) -> str:
        """Of the array: what trains is float32, whatever the network computes in."""
        return "uint32" if self.role == "seed" else "float32"


class Part(Protocol):
    """What an adapter does at one place. Frozen and hashable; never holds a layer or a value."""

    @property
    def name(self) -> str:
        """What its values' names begin with: of a single layer's part, that layer's name."""
        ...

    @property
    def layers(self) -> tuple[str, ...]:
        """Structural names of the layers it sits on; empty where it is on the whole network.

        Where they are several, a leaf that is one layer's is called "<layer>/...".
        """
        ...

    @property
    def leaves(self) -> tuple[Leaf, ...]:
        """The arrays it takes."""
        ...

    def wraps(
        self, layers: Layers, values: Values, *, training: bool, per_example: bool
    ) -> Mapping[keras.Layer, Wrap]:
        """Returns the interceptions that apply the part; they are traced.

        Args:
            layers: of the network.
            values: the part's arrays by leaf name; "scaling", where there is such a leaf, is what
                the adapter's effect is multiplied by, a scalar.
            training: whether dropout acts.
            per_example: whether every array has a leading axis [B], one value an example.
        """
        ...

    def merged(self, layers: Layers, weights: Values, values: Values) -> dict[str, jax.Array]:
        """Returns new values of the network's own variables that do what the part does.

        Args:
            layers: of the network.
            weights: every variable of the network by structural name.
            values: the part's arrays by leaf name.

        Raises:
            ModelError: no values of the network's own variables do that.
        """
        ...


def layer_of(part: Part, leaf: Leaf) -> str | None:
    """Returns the name of the layer that a leaf belongs to; `None` where it is for no one layer."""
    if len(part.layers) == 1:
        return part.layers[0]
    return next((layer for layer in part.layers if leaf.name.startswith(f"{layer}/")), None)


@dataclass(frozen=True, eq=False)
class Placed:
    """A part and the values that it begins with."""

    part: Part
    values: Mapping[str, np.ndarray]
    """By leaf; may be empty where the network itself has shapes only."""


@dataclass(frozen=True, eq=False)
class Places:
    """A network as an adapter sees it: where it may put its parts."""

    layers: Layers
    targets: tuple[str, ...]
    """Structural names of the layers that the user's targets name, in running order."""
    roles: Mapping[str, LayerRole]
    """Of every layer that has one, by structural name."""
    blocks: tuple[tuple[str, ...], ...]
    """Names of the layers of each depth block, in running order."""
    takes: Literal["images", "tokens"] = "images"
    prefix_tokens: int = 0
    """Class and register tokens before the patch tokens."""
    weights: Mapping[str, Any] = field(default_factory=dict, repr=False)
    """The network's own values by structural name."""

    @property
    def shapes_only(self) -> bool:
        """Whether the network has no values; what large ones begin with is then left out."""
        return any(isinstance(value, jax.ShapeDtypeStruct) for value in self.weights.values())
