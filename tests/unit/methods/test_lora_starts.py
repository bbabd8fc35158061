"""LoRAs of every initialisation, and of several combined, on whole small networks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import jax
import keras
import numpy as np
import pytest

from tests.unit.methods import small
from tunekit.errors import ModelError
from tunekit.methods.combine import Factors, combine
from tunekit.methods.eva import captured_inputs
from tunekit.methods.lora import LoRAPart
from tunekit.methods.part import Placed
from tunekit.methods.place_lora import place_lora
from tunekit.methods.spec import LoRA, LoRAInit
from tunekit.names import layer_names

TARGETS = {"vit": ("query", "mlp_up"), "bert": ("query", "mlp_up"), "resnet": ("convolution",)}
EXACT: tuple[LoRAInit, ...] = ("default", "gaussian", "eva")
TO_ROUNDING: tuple[LoRAInit, ...] = ("pissa", "olora", "orthogonal")


def inputs_into(model: keras.Model) -> Callable[[Sequence[str]], Iterator[Mapping[str, Any]]]:
    """What init "eva" begins with: two batches on their way through the network."""

    def batches(names: Sequence[str]) -> Iterator[Mapping[str, Any]]:
        layers = {name: layer_names(model)[name] for name in names}
        for seed in (0, 1):
            inputs = small.inputs_of(model, seed)
            mask = inputs.get("padding_mask") if isinstance(inputs, dict) else None
            with captured_inputs(layers, mask) as captured:
                model(inputs)
            yield captured

    return batches


def placed_on(kind: str, model: keras.Model, spec: LoRA, seed: int = 0) -> list[Placed]:
    places = small.places_in(model, *TARGETS[kind])
    rng = np.random.default_rng(seed)
    return place_lora(spec, places, rng, layer_inputs=inputs_into(model), quantise=halves)


def halves(matrix: np.ndarray) -> np.ndarray:
    return np.round(matrix * 2) / 2


def with_lora(model: keras.Model, placed: Sequence[Placed], values: Any) -> np.ndarray:
    parts = [one.part for one in placed]
    return np.asarray(small.outputs(model, small.inputs_of(model), parts, values))


def factors_of(values: Mapping[str, Mapping[str, np.ndarray]]) -> dict[str, Factors]:
    """The adapter as `combine` takes it; what it began with is a second one, taken away."""
    whole = {n: Factors(v["lora_a"], v["lora_b"], float(v["scaling"])) for n, v in values.items()}
    if "start_a" not in next(iter(values.values())):
        return whole
    start = {n: Factors(v["start_a"], v["start_b"], float(v["scaling"])) for n, v in values.items()}
    return combine([whole, start], [1, -1], "cat")


def as_adapter(placed: Sequence[Placed], made: Mapping[str, Factors]) -> tuple[list[Placed], Any]:
    """Parts of the combined factors' ranks, and their values."""
    parts, values = [], {}
    for one in placed:
        assert isinstance(one.part, LoRAPart)
        factors = made[one.part.name]
        part = replace(one.part, rank=factors.a.shape[1], from_start=False)
        scaling = np.float32(factors.scaling)
        values[part.name] = {"lora_a": factors.a, "lora_b": factors.b, "scaling": scaling}
        parts.append(Placed(part, values[part.name]))
    return parts, values


@pytest.fixture(scope="module", params=TARGETS)
def network(request: pytest.FixtureRequest) -> tuple[str, keras.Model]:
    return request.param, small.NETWORKS[request.param]()


@pytest.mark.parametrize("init", EXACT + TO_ROUNDING)
def test_a_fresh_lora_changes_nothing(network, init):
    kind, model = network
    base = np.asarray(small.outputs(model, small.inputs_of(model)))

    placed = placed_on(kind, model, LoRA(rank=2, init=init))

    assert len(placed) > 1
    atol = 0 if init in EXACT else 2e-6 * np.abs(base).max()
    fresh = with_lora(model, placed, small.begun(placed))
    np.testing.assert_allclose(fresh, base, rtol=0, atol=atol)
    moved = with_lora(model, placed, small.drawn(placed))
    assert np.abs(moved - base).max() > 1e-2


def test_a_fresh_loftq_brings_the_quantised_network_nearer_to_the_whole_one(network):
    kind, model = network
    places = small.places_in(model, *TARGETS[kind])
    placed = placed_on(kind, model, LoRA(rank=4, init="loftq"))
    kernels = {f"{name}/kernel": places.weights[f"{name}/kernel"] for name in places.targets}
    quantised = {name: jax.numpy.asarray(halves(np.asarray(w))) for name, w in kernels.items()}
    corrected = small.merged(model, placed, small.begun(placed))

    for name, kernel in kernels.items():
        left_over = kernel - (quantised[name] + corrected[name] - kernel)
        assert np.linalg.norm(left_over) < np.linalg.norm(kernel - quantised[name])


def test_eva_moves_ranks_between_layers_and_keeps_their_sum():
    model = small.resnet()

    def ranks(spread: float) -> list[int]:
        placed = placed_on("resnet", model, LoRA(rank=2, init="eva", rank_spread=spread))
        return [one.part.rank for one in placed if isinstance(one.part, LoRAPart)]

    even, moved = ranks(1.0), ranks(2.0)
    assert set(even) == {2}
    assert sum(moved) == sum(even) and len(set(moved)) > 1 and max(moved) <= 4


@pytest.mark.parametrize("init", ["default", "pissa"])
def test_side_by_side_adapters_do_what_both_do_one_round_the_other(network, init):
    kind, model = network
    placed = placed_on(kind, model, LoRA(rank=2, init=init))
    first, second = small.drawn(placed, seed=0), small.drawn(placed, seed=1)
    parts, values = as_adapter(
        placed, combine([factors_of(first), factors_of(second)], [1, 1], "cat")
    )

    one_adapter = with_lora(model, parts, values)

    weights = small.merged(model, placed, first)
    inputs = small.inputs_of(model)
    both = small.outputs(model, inputs, [p.part for p in placed], second, weights=weights)
    np.testing.assert_allclose(one_adapter, both, rtol=0, atol=1e-4 * np.abs(both).max())


def test_svd_at_the_sum_of_the_ranks_is_side_by_side(network):
    kind, model = network
    placed = placed_on(kind, model, LoRA(rank=2))
    adapters = [factors_of(small.drawn(placed, seed=seed)) for seed in (0, 1)]

    wide, nearest = (
        with_lora(model, *as_adapter(placed, combine(adapters, [0.5, -0.3], kind, rank=4)))
        for kind in ("cat", "svd")
    )

    np.testing.assert_allclose(nearest, wide, rtol=0, atol=1e-4 * np.abs(wide).max())


def test_eva_without_examples_is_an_error():
    places = small.places_in(small.vit(), "query")
    with pytest.raises(ModelError, match="init 'eva' begins with directions of the data"):
        place_lora(LoRA(init="eva"), places, np.random.default_rng(0))
