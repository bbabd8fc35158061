"""Prompt tuning: learned embeddings before those of the tokens; nothing else changes."""

from __future__ import annotations

from dataclasses import dataclass

import jax
import keras
import numpy as np

from tunekit.errors import ModelError
from tunekit.methods.dummy_positions import around_network, replacing, unmergeable
from tunekit.methods.intercept import Wrap
from tunekit.methods.part import Layers, Leaf, Placed, Places, Values
from tunekit.methods.spec import PromptTuning


@dataclass(frozen=True)
class PromptPart:
    """P learned vectors before the text's: ``[P; E(x)]`` (Lester et al. 2021, arXiv 2104.08691).

    They are what the token embedding puts out, before anything is added or scaled. Fresh ones act
    too: the network reads them like words.
    """

    name: str
    prepended: int
    """Positions P that a generator puts before the text; see `with_dummies`."""
    width: int

    @property
    def layers(self) -> tuple[str, ...]:
        """The one layer."""
        return (self.name,)

    @property
    def leaves(self) -> tuple[Leaf, ...]:
        """The vectors."""
        return (Leaf("prompt", (self.prepended, self.width)),)

    def wraps(
        self, layers: Layers, values: Values, *, training: bool, per_example: bool
    ) -> dict[keras.Layer, Wrap]:
        """Returns the interceptions of the backbone and of the token embedding."""
        del training
        learned = replacing(values["prompt"], self.prepended, per_example=per_example)
        return {**around_network(layers, self.prepended), layers[self.name]: learned}

    def merged(self, layers: Layers, weights: Values, values: Values) -> dict[str, jax.Array]:
        """Has nothing to return.

        Raises:
            ModelError: always; it is more positions, not other weights.
        """
        raise unmergeable(f"the prompt at '{self.name}'", f"{self.prepended} more positions")


def place(spec: PromptTuning, places: Places, rng: np.random.Generator) -> list[Placed]:
    """Returns the prompt at the token embedding, the first where there are several.

    Raises:
        ModelError: the network has none.
    """
    name = next((name for name in places.targets if places.roles[name] == "embedding"), None)
    if name is None:
        raise ModelError(
            "prompt tuning is impossible on this network: it takes no tokens, so it has no "
            "embedding to put learned ones before. Use VisualPrompt on a vision transformer, "
            "LoRA elsewhere."
        )
    if places.shapes_only:
        width = places.weights[f"{name}/embeddings"].shape[1]
        return [Placed(PromptPart(name, spec.length, width), {})]
    table = np.asarray(places.weights[f"{name}/embeddings"], np.float32)
    if spec.init == "vocabulary":
        rows = rng.choice(len(table), spec.length, replace=spec.length > len(table))
        first = table[rows]
    else:
        first = rng.normal(scale=table.std(), size=(spec.length, table.shape[1]))
    part = PromptPart(name, spec.length, table.shape[1])
    return [Placed(part, {"prompt": first.astype(np.float32)})]
