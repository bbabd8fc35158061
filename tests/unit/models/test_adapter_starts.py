"""A model's LoRAs by what they begin with and what is made of several, on a small ViT."""

from __future__ import annotations

import numpy as np
import pytest

from tests.unit.methods import small
from tunekit.errors import ModelError
from tunekit.methods.lora import LoRAPart
from tunekit.methods.spec import LoRA
from tunekit.models.backbone import Backbone
from tunekit.models.model import Model
from tunekit.models.preprocessing import ImagePreprocessing

INPUTS = small.normal(3, 32, 32, 3)


@pytest.fixture(scope="module")
def network() -> Backbone:
    preprocessing = ImagePreprocessing((32, 32))
    return Backbone(small.vit(), preprocessing, "tokens", "vit", "small", prefix_tokens=1)


@pytest.fixture
def model(network: Backbone) -> Model:
    return Model(network, ["cat", "dog"])


def with_adapter(model: Model, name: str, spec: LoRA, seed: int) -> np.ndarray:
    """Adds a LoRA whose factors have moved from where they began; returns the outputs with it."""
    model.add_adapter(name, spec, seed=seed)
    rng = np.random.default_rng(seed)
    for variable_name, variable in model.adapters[name].adapter.variables.items():
        if variable_name.endswith(("lora_a", "lora_b")):
            variable.assign(variable + 0.2 * rng.standard_normal(variable.shape))
    return model.apply(INPUTS)


def test_eva_begins_with_directions_of_the_examples_and_changes_nothing(model):
    base = model.apply(INPUTS)

    model.add_adapter("data", LoRA(rank=2, init="eva"), inputs=[INPUTS, INPUTS[:2]])

    np.testing.assert_array_equal(model.apply(INPUTS), base)
    factors = model.adapters["data"].adapter.values()
    first = [value for name, value in factors.items() if name.endswith("lora_a")]
    assert len(first) == 4
    for a in first:
        np.testing.assert_allclose(a.T @ a, np.eye(2), atol=1e-5)


def test_eva_spreads_ranks_over_the_model_s_layers(model):
    spec = LoRA(rank=2, init="eva", rank_spread=2.0, targets="linear")
    model.add_adapter("data", spec, inputs=[INPUTS])

    ranks = [p.rank for p in model.adapters["data"].adapter.parts if isinstance(p, LoRAPart)]

    assert sum(ranks) == 2 * 12 and max(ranks) <= 4 and len(set(ranks)) > 1


def test_eva_without_examples_is_an_error_and_adds_nothing(model):
    with pytest.raises(ModelError, match="'eva' begins with directions of the data"):
        model.add_adapter("data", LoRA(init="eva"))
    assert not model.adapters.entries


@pytest.mark.parametrize("init", ["default", "pissa", "olora"])
def test_cat_is_both_adapters_one_round_the_other(model, init):
    spec = LoRA(rank=2, init=init, targets="query, mlp.up")
    with_adapter(model, "a", spec, seed=1)
    with_adapter(model, "b", spec, seed=2)
    stacked = model.set_adapter({"a": 0.7, "b": -0.4}).apply(INPUTS)

    model.combine_adapters({"a": 0.7, "b": -0.4}, "both", "cat")

    assert dict(model.adapters.active) == {"both": 1.0}
    np.testing.assert_allclose(model.apply(INPUTS), stacked, atol=2e-5)


def test_a_lora_acts_before_a_fused_gelu_as_its_merged_kernel_does(model):
    """On a CPU such a layer has a GELU of ours, which is not to be applied twice."""
    apart = with_adapter(model, "a", LoRA(rank=2, targets="mlp.up"), seed=1)

    merged = model.merge().apply(INPUTS)

    model.unmerge()  # The network is the other tests' too.
    np.testing.assert_allclose(merged, apart, atol=2e-5)


def test_svd_of_one_adapter_alone_is_that_adapter(model):
    alone = with_adapter(model, "a", LoRA(rank=2), seed=1)

    model.combine_adapters(["a"], "again", "svd")

    np.testing.assert_allclose(model.apply(INPUTS), alone, atol=2e-5)


def test_layers_that_one_adapter_alone_has_are_in_the_combination(model):
    with_adapter(model, "query", LoRA(rank=2, targets="query"), seed=1)
    with_adapter(model, "value", LoRA(rank=3, targets="value"), seed=2)
    stacked = model.set_adapter(["query", "value"]).apply(INPUTS)

    for kind in ("linear", "cat", "svd"):
        model.combine_adapters(["query", "value"], kind, kind)
        np.testing.assert_allclose(model.apply(INPUTS), stacked, atol=2e-5)


def test_ties_and_dare_keep_to_the_rank_asked(model):
    spec = LoRA(rank=2)
    base = model.apply(INPUTS)
    with_adapter(model, "a", spec, seed=1)
    with_adapter(model, "b", spec, seed=2)

    for kind in ("ties", "dare_linear", "dare_ties"):
        model.combine_adapters(["a", "b"], kind, kind, rank=3, density=0.5)
        parts = model.adapters[kind].adapter.parts
        assert {part.rank for part in parts if isinstance(part, LoRAPart)} == {3}
        assert np.abs(model.apply(INPUTS) - base).max() > 1e-3


def test_linear_of_adapters_of_different_ranks_is_an_error_and_adds_nothing(model):
    with_adapter(model, "a", LoRA(rank=2), seed=1)
    with_adapter(model, "b", LoRA(rank=3), seed=2)

    with pytest.raises(ModelError, match="'linear' .* needs one rank.* 2, 3"):
        model.combine_adapters(["a", "b"], "both", "linear")
    assert list(model.adapters.entries) == ["a", "b"]
