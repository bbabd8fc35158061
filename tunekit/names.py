"""Structural names: one unique, stable name for every variable and sublayer of a Keras model.

``Variable.path`` repeats (layers built eagerly, attention projections that share a scope) and
automatic layer names such as ``dropout_32`` count up for the life of the process. A structural
name is the walk from the model to the variable instead: layer names joined by ``/``, automatic
names reset, repeats numbered within their parent. Rules, checkpoints, adapters and selections
key on these names alone.

Reads the private lists ``_layers``, ``_trainable_variables``, ``_non_trainable_variables`` and
``_seed_generators`` of ``keras.Layer`` and its naming of layers, as of Keras 3.15.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Literal

import keras
from keras.src.utils.naming import to_snake_case

Role = Literal["weight", "statistic", "seed", "constant"]
"""Moved by an optimizer; by a forward pass; the state of a random seed generator; or by nothing."""

# Their forward pass changes nothing: what of them is no weight is a packed kernel.
_UNMOVED = (keras.layers.Dense, keras.layers.EinsumDense, keras.layers.Embedding)


def structural_names(root: keras.Layer) -> dict[str, keras.Variable]:
    """Returns every variable of `root` under its structural name, in the order of the walk.

    A variable reached on two ways (tied weights) has the name of the first. Seed generators'
    states are included; metrics' are not.

    Example:
        >>> model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2, name="logits")])
        >>> list(structural_names(model))
        ['logits/kernel', 'logits/bias']
    """
    names: dict[str, keras.Variable] = {}
    named: set[int] = set()
    for prefix, layer in _walk(root, "", set()):
        taken: set[str] = set()
        for variable in _own_variables(layer):
            if id(variable) in named:
                continue
            named.add(id(variable))
            leaf = _numbered(variable.name, taken)
            names[f"{prefix}/{leaf}" if prefix else leaf] = variable
    missed = [v.path for v in root.variables if id(v) not in named]
    assert not missed, f"the walk over {root.name!r} missed the variables {missed}"
    return names


def variable_roles(root: keras.Layer) -> dict[str, Role]:
    """Returns the role of every variable of `root` by structural name.

    The role is what the layer made the variable for; ``trainable`` flags do not change it.
    """
    roles: dict[int, Role] = {}
    for _, layer in _walk(root, "", set()):
        roles.update((id(v), "weight") for v in layer._trainable_variables)
        other: Role = "constant" if isinstance(layer, _UNMOVED) else "statistic"
        roles.update((id(v), other) for v in layer._non_trainable_variables)
        roles.update((id(g.state), "seed") for g in layer._seed_generators)
    return {name: roles[id(variable)] for name, variable in structural_names(root).items()}


def layer_names(root: keras.Layer) -> dict[str, keras.Layer]:
    """Returns every sublayer of `root` under its structural name, parents before children.

    `root` itself is left out; a shared layer has the name of the first way that leads to it.
    """
    return {name: layer for name, layer in _walk(root, "", set()) if name}


def _walk(layer: keras.Layer, name: str, seen: set[int]) -> Iterator[tuple[str, keras.Layer]]:
    if id(layer) in seen:
        return
    seen.add(id(layer))
    yield name, layer
    taken: set[str] = set()
    for child in layer._layers:
        leaf = _numbered(canonical_name(child), taken)
        yield from _walk(child, f"{name}/{leaf}" if name else leaf, seen)


def _own_variables(layer: keras.Layer) -> Iterator[keras.Variable]:
    yield from layer._trainable_variables
    yield from layer._non_trainable_variables
    for generator in layer._seed_generators:
        yield generator.state


def canonical_name(layer: keras.Layer) -> str:
    """Returns the layer's name, less the counter of an automatic one."""
    automatic = to_snake_case(type(layer).__name__)
    if re.fullmatch(rf"{re.escape(automatic)}_\d+", layer.name):
        return automatic
    return layer.name


def _numbered(name: str, taken: set[str]) -> str:
    unique = name
    count = 0
    while unique in taken:
        count += 1
        unique = f"{name}_{count}"
    taken.add(unique)
    return unique
