"""Small text networks for tests of methods that learn positions, and generation with them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import jax.numpy as jnp
import keras
import numpy as np

from tests.unit.methods import small
from tunekit.methods.intercept import intercept
from tunekit.methods.part import LayerRole, Part, Places
from tunekit.models.hub import keras_hub
from tunekit.models.initialisation import without_values
from tunekit.models.layer_roles import layer_roles
from tunekit.names import layer_names

VOCABULARY = 13
_SIZES = {
    "vocabulary_size": VOCABULARY,
    "num_layers": 2,
    "hidden_dim": 8,
    "intermediate_dim": 12,
}
_LONG = {"num_heads": 2, "max_sequence_length": 12}
_GROUPED = {"num_query_heads": 2, "num_key_value_heads": 1}


def _hub(name: str, **options: Any) -> Callable[[], keras.Model]:
    def build() -> keras.Model:
        with without_values():
            model = getattr(keras_hub().models, f"{name}Backbone")(**_SIZES, **options)
        return small.filled(model)

    return build


NETWORKS: dict[str, Callable[[], keras.Model]] = {
    "llama": _hub("Llama", **_GROUPED),
    "gpt2": _hub("GPT2", **_LONG, dropout=0.0),
    "mistral": _hub("Mistral", **_GROUPED, sliding_window=20),
    "qwen2": _hub("Qwen2", **_GROUPED),
    "gemma": _hub("Gemma", **_GROUPED, head_dim=4),
    "bert": _hub("Bert", **_LONG, dropout=0.0),
    "roberta": _hub("Roberta", **_LONG, dropout=0.0),
    "distilbert": _hub("DistilBert", **_LONG, dropout=0.0),
}
CAUSAL = ("llama", "gpt2", "mistral", "qwen2", "gemma")
ENCODERS = ("bert", "roberta", "distilbert")


def places_in(model: keras.Model, *roles: LayerRole, blocks: Sequence[str] = ()) -> Places:
    """The network's places, its targets the layers of these roles, below one of `blocks`."""
    found = layer_roles(model)
    return Places(
        layers={"": model, **layer_names(model)},
        targets=tuple(
            name
            for name, role in found.items()
            if role in roles and (not blocks or name.startswith(tuple(blocks)))
        ),
        roles=found,
        blocks=(),
        takes="tokens",
        weights=small.weights_of(model),
    )


def texts(model: keras.Model, length: int, padding: int = 0, seed: int = 3) -> dict[str, Any]:
    """A batch of two texts of which the second ends in padding."""
    ids = np.random.default_rng(seed).integers(1, VOCABULARY, (2, length)).astype(np.int32)
    mask = np.ones((2, length), np.int32)
    mask[1, length - padding :] = 0
    arrays = {"token_ids": ids, "padding_mask": mask, "segment_ids": np.zeros_like(ids)}
    return {name: arrays[name] for name in model.input}


def after(inputs: Mapping[str, Any], start: int) -> dict[str, Any]:
    """The texts from a position on."""
    return {name: x[:, start:] for name, x in inputs.items()}


def nested(
    model: keras.Model, inputs: Any, parts: Sequence[Part], values: Sequence[small.PartValues]
) -> Any:
    """What the network returns with one part of each of several adapters on it."""
    layers = {"": model, **layer_names(model)}
    with ExitStack() as stack:
        for part, own in zip(parts, values, strict=True):
            given = {leaf: jnp.asarray(v) for leaf, v in own[part.name].items()}
            wraps = part.wraps(layers, given, training=False, per_example=False)
            stack.enter_context(intercept(wraps))
        return model(inputs)
