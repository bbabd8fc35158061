"""Small networks for tests of methods, and what runs adapter parts on them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from typing import Any

import jax
import keras
import numpy as np

from tunekit.methods.intercept import intercept
from tunekit.methods.part import LayerRole, Part, Placed, Places
from tunekit.models.hub import keras_hub
from tunekit.models.initialisation import without_values
from tunekit.names import layer_names, structural_names

BATCH = 3
PartValues = Mapping[str, Mapping[str, Any]]
"""The arrays of several parts by the part's name and the leaf's."""

_TEXT = {"vocabulary_size": 11, "num_layers": 2, "hidden_dim": 8, "intermediate_dim": 12}


def one_layer(layer: keras.Layer, *shape: int) -> keras.Model:
    """A network of the layer alone, that takes inputs of this shape without the batch."""
    inputs = keras.Input(shape)
    with without_values():
        return filled(keras.Model(inputs, layer(inputs)))


_LAYERS = keras.layers
_KINDS: dict[str, tuple[Callable[..., keras.Layer], dict[str, Any], tuple[int, ...]]] = {
    "dense": (_LAYERS.Dense, {"units": 6}, (5, 4)),
    "activated": (_LAYERS.Dense, {"units": 6, "activation": "tanh"}, (4,)),
    "heads_out": (
        _LAYERS.EinsumDense,
        {"equation": "abc,cde->abde", "output_shape": (5, 2, 3), "bias_axes": "de"},
        (5, 4),
    ),
    "heads_first": (
        _LAYERS.EinsumDense,
        {"equation": "btd,ndh->btnh", "output_shape": (5, 2, 3)},
        (5, 4),
    ),
    "heads_in": (
        _LAYERS.EinsumDense,
        {
            "equation": "abcd,cde->abe",
            "output_shape": (5, 6),
            "bias_axes": "e",
            "activation": "gelu",
        },
        (5, 2, 2),
    ),
    "convolution": (
        _LAYERS.Conv2D,
        {
            "filters": 6,
            "kernel_size": 3,
            "strides": 2,
            "padding": "same",
            "activation": "relu",
        },
        (5, 5, 4),
    ),
    "grouped": (
        _LAYERS.Conv2D,
        {"filters": 6, "kernel_size": 3, "groups": 2, "use_bias": False},
        (5, 5, 4),
    ),
}
KINDS = tuple(_KINDS)
"""Layers with a kernel: fused activations, grouped dims, strides, groups; dense ones first."""
DENSE_KINDS = KINDS[:5]


def network_of(kind: str, dtype: str = "float32") -> tuple[keras.Model, np.ndarray]:
    """A network of one layer of a kind, "target", that puts out 6 features; and inputs for it."""
    make, options, shape = _KINDS[kind]
    return one_layer(make(**options, dtype=dtype, name="target"), *shape), normal(BATCH, *shape)


def bert(**options: Any) -> keras.Model:
    """Two encoder blocks after BERT, with dropout."""
    return _hub("Bert", **_TEXT, num_heads=2, max_sequence_length=8, **options)


def llama(**options: Any) -> keras.Model:
    """Two decoder blocks after Llama, with fewer keys than queries and no biases."""
    return _hub("Llama", **_TEXT, num_query_heads=2, num_key_value_heads=1, **options)


def vit(**options: Any) -> keras.Model:
    """Two encoder blocks on images of 32 pixels in four patches and a class token."""
    sizes = {"patch_size": 16, "num_layers": 2, "num_heads": 2, "hidden_dim": 8, "mlp_dim": 12}
    return _hub("ViT", image_shape=(32, 32, 3), **sizes, **options)


def resnet(**options: Any) -> keras.Model:
    """Two stages of one basic block, the second strided, on images of 16 pixels."""
    return _hub(
        "ResNet",
        input_conv_filters=[64],
        input_conv_kernel_sizes=[3],
        stackwise_num_filters=[64, 64],
        stackwise_num_blocks=[1, 1],
        stackwise_num_strides=[1, 2],
        block_type="basic_block",
        image_shape=(16, 16, 3),
        **options,
    )


NETWORKS: dict[str, Callable[..., keras.Model]] = {
    "bert": bert,
    "llama": llama,
    "vit": vit,
    "resnet": resnet,
}


def inputs_of(model: keras.Model, seed: int = 0) -> Any:
    """A batch that the network takes: images, or tokens of which the last two are padding."""
    rng = np.random.default_rng(seed)
    if not isinstance(model.input, dict):
        return rng.normal(size=(BATCH, *model.input.shape[1:])).astype(np.float32)
    arrays = {
        "token_ids": rng.integers(1, 11, size=(BATCH, 6)),
        "padding_mask": np.arange(6)[None].repeat(BATCH, 0) < 4,
        "segment_ids": np.zeros((BATCH, 6), np.int32),
    }
    return {name: arrays[name] for name in model.input}


def filled(model: keras.Model, seed: int = 0) -> keras.Model:
    """The network with drawn values in every variable that trains; no bias is zero."""
    rng = np.random.default_rng(seed)
    for variable in model.trainable_variables:
        width = math.sqrt(np.prod(variable.shape[:-1]))
        drawn = rng.normal(size=variable.shape) / max(width, 3)
        variable.assign(drawn + 1 if variable.name in ("gamma", "scale") else drawn)
    return model


def _hub(name: str, **options: Any) -> keras.Model:
    # Keras compiles a program for every shape that it draws values of.
    with without_values():
        return filled(getattr(keras_hub().models, f"{name}Backbone")(**options))


_ROLES: dict[str, LayerRole] = {
    "query": "query",
    "key": "key",
    "value": "value",
    "attention_output": "attention_output",
    "feedforward_intermediate_dense": "mlp_up",
    "feedforward_gate_dense": "mlp_gate",
    "feedforward_output_dense": "mlp_down",
    "mlp/dense": "mlp_up",
    "mlp/dense_1": "mlp_down",
}


def places_in(model: keras.Model, *targets: str) -> Places:
    """The network's places by what its layers are called; `targets` are roles."""
    layers = layer_names(model)
    roles: dict[str, LayerRole] = {}
    for name, layer in layers.items():
        if isinstance(layer, keras.layers.Conv2D):
            roles[name] = "convolution"
        for ending, role in _ROLES.items():
            if name.endswith(f"/{ending}"):
                roles[name] = role
    starts = dict.fromkeys(start for name in roles if (start := _block_of(name)))
    return Places(
        layers={"": model, **layers},
        targets=tuple(name for name in roles if roles[name] in targets),
        roles=roles,
        blocks=tuple(tuple(n for n in layers if _block_of(n) == start) for start in starts),
        takes="tokens" if isinstance(model.input, dict) else "images",
        weights=weights_of(model),
    )


def _block_of(name: str) -> str | None:
    pieces = name.split("/")
    for piece in pieces:
        if piece.startswith(("transformer_layer_", "transformer_block_")):
            return piece
    return pieces[0][: len("stack0_block0")] if name.startswith("stack") else None


def weights_of(model: keras.Model) -> dict[str, jax.Array]:
    """The network's own values by structural name."""
    return {name: variable.value for name, variable in structural_names(model).items()}


def outputs(
    model: keras.Model,
    inputs: Any,
    parts: Iterable[Part] = (),
    values: PartValues | None = None,
    *,
    weights: Mapping[str, Any] | None = None,
    training: bool = False,
    per_example: bool = False,
) -> jax.Array:
    """What the network returns with the parts on it, the first innermost.

    Args:
        model: the network.
        inputs: of it.
        parts: of adapters.
        values: of the parts.
        weights: values of the network's own variables that take the place of its own.
        training: whether the parts are in training; the network is not.
        per_example: whether the values have one row an example.
    """
    layers = {"": model, **layer_names(model)}
    own = structural_names(model)
    held = {**weights_of(model), **(weights or {})}
    mapping = [(own[name], value.astype(own[name].dtype)) for name, value in held.items()]
    with ExitStack() as stack:
        stack.enter_context(keras.StatelessScope(state_mapping=mapping))
        for part in parts:
            given = {leaf: jax.numpy.asarray(v) for leaf, v in (values or {})[part.name].items()}
            wraps = part.wraps(layers, given, training=training, per_example=per_example)
            stack.enter_context(intercept(wraps))
        result = model(inputs, training=False)
    return result["sequence_output"] if isinstance(result, dict) else result


def begun(placed: Iterable[Placed]) -> dict[str, dict[str, np.ndarray]]:
    """The values that the parts begin with, seeds included."""
    seed = np.arange(2, dtype=np.uint32)
    return {
        p.part.name: {leaf.name: p.values.get(leaf.name, seed) for leaf in p.part.leaves}
        for p in placed
    }


def drawn(placed: Iterable[Placed], seed: int = 0) -> dict[str, dict[str, np.ndarray]]:
    """Values of the parts in which every weight has moved from where it began."""
    rng = np.random.default_rng(seed)
    values = begun(placed)
    for p in placed:
        for leaf in p.part.leaves:
            if leaf.role == "weight":
                moved = values[p.part.name][leaf.name] + 0.5 * rng.normal(size=leaf.shape)
                values[p.part.name][leaf.name] = moved.astype(np.float32)
    return values


def merged(model: keras.Model, placed: Iterable[Placed], values: PartValues) -> dict[str, Any]:
    """The network's own values with every part merged."""
    layers = {"": model, **layer_names(model)}
    weights: dict[str, Any] = weights_of(model)
    for p in placed:
        given = {leaf: jax.numpy.asarray(v) for leaf, v in values[p.part.name].items()}
        weights.update(p.part.merged(layers, weights, given))
    return weights


def rows(values: list[PartValues]) -> dict[str, dict[str, np.ndarray]]:
    """The values of as many adapters as there are examples, one row of every array an adapter."""
    return {
        part: {leaf: np.stack([one[part][leaf] for one in values]) for leaf in leaves}
        for part, leaves in values[0].items()
    }


def normal(*shape: int, seed: int = 1) -> np.ndarray:
    """Standard normal numbers, the same for the same seed."""
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def check_fresh(model: keras.Model, placed: list[Placed]) -> None:
    """A fresh adapter changes no bit of what the network returns."""
    inputs = inputs_of(model)
    fresh = outputs(model, inputs, parts_of(placed), begun(placed))
    np.testing.assert_array_equal(fresh, outputs(model, inputs))


def check_merged(model: keras.Model, inputs: Any, placed: list[Placed]) -> None:
    """The network with the adapter in its weights returns what it returns with it beside them."""
    values = drawn(placed)
    beside = outputs(model, inputs, parts_of(placed), values)
    within = outputs(model, inputs, weights=merged(model, placed, values))
    # The same sums in another order, in float32.
    np.testing.assert_allclose(within, beside, rtol=1e-4, atol=1e-5)
    assert np.abs(beside - outputs(model, inputs)).max() > 1e-2


def check_rows(model: keras.Model, inputs: Any, placed: list[Placed]) -> None:
    """An adapter an example in one batch does what each does on its example alone."""
    adapters = [drawn(placed, seed) for seed in range(BATCH)]
    together = outputs(model, inputs, parts_of(placed), rows(adapters), per_example=True)
    for row, values in enumerate(adapters):
        one = jax.tree.map(lambda array, row=row: array[row : row + 1], inputs)
        alone = outputs(model, one, parts_of(placed), values)
        np.testing.assert_allclose(together[row], alone[0], rtol=1e-4, atol=1e-5)


def parts_of(placed: Iterable[Placed]) -> list[Part]:
    """The parts without their values."""
    return [p.part for p in placed]
