"""Where a LoRA is put and what its factors begin with."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, cast, get_args

import numpy as np

from tunekit.errors import ModelError, did_you_mean
from tunekit.methods.eva import eva_factors
from tunekit.methods.factors import (
    InitialFactors,
    RandomInit,
    WeightInit,
    loftq_factors,
    random_factors,
    weight_factors,
)
from tunekit.methods.linear import EmbeddingForm, LinearForm, linear_form
from tunekit.methods.lora import LoRAPart
from tunekit.methods.part import Placed, Places
from tunekit.methods.spec import LoRA

LayerInputs = Callable[[Sequence[str]], Iterable[Mapping[str, np.ndarray]]]
"""From layers' names to batches of what goes into them: float [N, in] by name."""
Quantise = Callable[[np.ndarray], np.ndarray]
"""From a matrix [in, out] to what its quantised form stands for."""
_OF_WEIGHTS = get_args(WeightInit)
"""The starts that are subtracted again."""


def place_lora(
    spec: LoRA,
    places: Places,
    rng: np.random.Generator,
    *,
    layer_inputs: LayerInputs | None = None,
    quantise: Quantise | None = None,
) -> list[Placed]:
    """Returns the parts of a LoRA and their first values.

    Args:
        spec: what to put.
        places: where.
        rng: what random values are drawn from.
        layer_inputs: for init "eva": examples on their way through the network.
        quantise: for init "loftq": how the network will be quantised.

    Raises:
        ModelError: a layer has no low-rank form, a pattern names no layer, or the initialisation
            lacks what it starts from.
    """
    forms = {name: linear_form(name, places.layers[name]) for name in places.targets}
    ranks = _by_pattern("rank_pattern", spec.rank_pattern, spec.rank, forms)
    alphas = _by_pattern("alpha_pattern", spec.alpha_pattern, spec.alpha, forms)
    by_data = spec.init == "eva" and not places.shapes_only
    directions = _directions(spec, forms, ranks, layer_inputs) if by_data else {}
    ranks |= {name: a.shape[1] for name, a in directions.items()}
    placed = []
    for name, form in forms.items():
        rank = int(ranks[name])
        if not rank:
            continue  # "eva" gave its share to other layers.
        _check_groups(name, form, rank, spec)
        if places.shapes_only:
            starts = spec.init in _OF_WEIGHTS and not isinstance(form, EmbeddingForm)
            placed.append(Placed(LoRAPart(name, form, rank, spec.dropout, spec.dora, starts), {}))
            continue
        # Ranks that "eva" spreads leave the scale as it was, as in PEFT.
        scaled = spec.rank if directions else rank
        scaling = alphas[name] / (math.sqrt(scaled) if spec.rslora else scaled)
        first = _first(spec, name, form, rank, scaling, places, rng, directions, quantise)
        part = LoRAPart(name, form, rank, spec.dropout, spec.dora, first.start is not None)
        placed.append(Placed(part, _values(part, first, scaling, places)))
    return placed


def _by_pattern(
    field: str, patterns: Mapping[str, float], default: float, names: Iterable[str]
) -> dict[str, float]:
    """The value of each layer: of the first pattern that its name ends with, as in PEFT."""
    names = list(names)
    values: dict[str, float] = dict.fromkeys(names, default)
    for pattern, value in reversed(list(patterns.items())):
        found = [name for name in names if re.fullmatch(rf"(.*/)?({pattern})", name)]
        if not found:
            raise ModelError(
                f"{field}: {pattern!r} matches no adapted layer.{did_you_mean(pattern, names)} "
                f"The first of {len(names)} is {names[0]!r}."
            )
        values.update(dict.fromkeys(found, value))
    return values


def _check_groups(name: str, form: LinearForm, rank: int, spec: LoRA) -> None:
    if form.groups == 1:
        return
    if rank % form.groups:
        raise ModelError(
            f"'{name}' has {form.groups} groups, which cannot share a rank of {rank}: set a "
            f"multiple of {form.groups} by rank_pattern, or leave it out by targets: '!{name}'."
        )
    if spec.init not in ("default", "gaussian") or spec.dora:
        option = "dora" if spec.dora else f"init '{spec.init}'"
        raise ModelError(
            f"{option} is not defined on the grouped convolution '{name}'; leave it out by "
            f"targets: '!{name}', or use a LoRA of init 'default'."
        )


def _first(
    spec: LoRA,
    name: str,
    form: LinearForm,
    rank: int,
    scaling: float,
    places: Places,
    rng: np.random.Generator,
    directions: Mapping[str, np.ndarray],
    quantise: Quantise | None,
) -> InitialFactors:
    embedding = isinstance(form, EmbeddingForm)
    shape = (form.in_features, form.out_features)
    if spec.init in _OF_WEIGHTS and not embedding:
        matrix = _matrix(name, form, places)
        return weight_factors(cast(WeightInit, spec.init), matrix, rank, scaling)
    if spec.init == "loftq":
        if quantise is None:
            raise ModelError(
                "init 'loftq' begins with what quantisation takes away: set quantize to 'nf4', "
                "'int4' or 'int8', or init to 'default'."
            )
        matrix = _matrix(name, form, places)
        return loftq_factors(matrix, quantise(matrix), rank, scaling)
    if name in directions:
        zeros = np.zeros((rank, form.out_features), np.float32)
        return InitialFactors(directions[name], zeros)
    init = spec.init if spec.init in ("gaussian", "orthogonal") else "default"
    first = random_factors(cast(RandomInit, init), shape, rank, rng, embedding=embedding)
    return replace(first, b=first.b[: rank // form.groups])


def _directions(
    spec: LoRA,
    forms: Mapping[str, LinearForm],
    ranks: Mapping[str, float],
    layer_inputs: LayerInputs | None,
) -> dict[str, np.ndarray]:
    """EVA's factors A of the layers that have dense inputs; convolutions begin at random."""
    if layer_inputs is None:
        raise ModelError(
            "init 'eva' begins with directions of the data: give add_adapter(..., inputs=) "
            "examples, or use finetune, which has them."
        )
    if spec.rank_pattern:
        raise ModelError("init 'eva' finds the ranks itself; leave rank_pattern out.")
    dense = [
        name for name, form in forms.items() if form.kernel_name == "kernel" and form.groups == 1
    ]
    return eva_factors(layer_inputs(dense), spec.rank, spec.rank_spread)


def _matrix(name: str, form: LinearForm, places: Places) -> np.ndarray:
    kernel = places.weights.get(f"{name}/{form.kernel_name}")
    if kernel is None:
        raise ModelError(
            f"the kernel of '{name}' is quantised already, and the initialisation needs it whole: "
            "add the adapter first, or use init 'default'."
        )
    return np.asarray(form.matrix(kernel), np.float32)


def _values(
    part: LoRAPart, first: InitialFactors, scaling: float, places: Places
) -> dict[str, np.ndarray]:
    names = part.factor_names
    values = {names[0]: first.a, names[1]: first.b, "scaling": np.float32(scaling)}
    if first.start is not None:
        values |= dict(zip(("start_a", "start_b"), first.start, strict=True))
    if part.dora:
        layer = places.layers[part.name]
        start: Any = {name: np.asarray(value) for name, value in values.items()}
        values["magnitude"] = np.asarray(part.norms(layer, start))
    return {name: np.asarray(value) for name, value in values.items()}
