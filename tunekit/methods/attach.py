"""From a spec and a network to an adapter: the one table of what each spec becomes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from tunekit.errors import ModelError
from tunekit.methods import bias, bottleneck, ia3, prefix, prompt, vera, visual_prompt
from tunekit.methods.adapter import Adapter
from tunekit.methods.part import Placed, Places
from tunekit.methods.place_lora import LayerInputs, Quantise, place_lora
from tunekit.methods.spec import (
    IA3,
    AdapterSpec,
    Bottleneck,
    LoRA,
    PrefixTuning,
    PromptTuning,
    VeRA,
    VisualPrompt,
)

_PLACES: dict[type, Callable[[Any, Places, np.random.Generator], list[Placed]]] = {
    Bottleneck: bottleneck.place,
    IA3: ia3.place,
    PrefixTuning: prefix.place,
    PromptTuning: prompt.place,
    VeRA: vera.place,
    VisualPrompt: visual_prompt.place,
}


def attach(
    spec: AdapterSpec,
    places: Places,
    *,
    seed: int = 0,
    layer_inputs: LayerInputs | None = None,
    quantise: Quantise | None = None,
) -> Adapter:
    """Returns a fresh adapter for a network; of one without values it has shapes alone.

    Args:
        spec: what to put.
        places: the network, and the layers that the spec's targets name.
        seed: of random values.
        layer_inputs: for a LoRA of init "eva": what goes into layers, from the user's examples.
        quantise: for a LoRA of init "loftq": how the network will be quantised.

    Raises:
        ModelError: the method is impossible on a layer, or lacks what it begins with.
    """
    rng = np.random.default_rng(seed)
    if isinstance(spec, LoRA):
        placed = place_lora(spec, places, rng, layer_inputs=layer_inputs, quantise=quantise)
        placed += _biases(spec, places)
    else:
        placed = _PLACES[type(spec)](spec, places, rng)
    if not placed:
        raise ModelError(f"method '{spec.name}' found no layer of this network to sit on.")
    if places.shapes_only:
        return Adapter.blank(spec, [each.part for each in placed])
    return Adapter.of(spec, placed)


def _biases(spec: LoRA, places: Places) -> list[Placed]:
    if spec.bias == "none":
        return []
    names = bias.biased(places.layers) if spec.bias == "all" else places.targets
    return bias.place(places, [name for name in names if not name.startswith("heads")])
