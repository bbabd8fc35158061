"""What holds for every method on every family: the invariants of the design.

Two devices equal one is not among them: the trainer runs on one device so far.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from tests.contract.methods_families import (
    ALL,
    batch,
    examples,
    fresh,
    train,
    values,
)
from tunekit.errors import ModelError, SelectionError
from tunekit.methods.spec import (
    IA3,
    Bottleneck,
    LoRA,
    Method,
    Plain,
    PrefixTuning,
    PromptTuning,
    VeRA,
    VisualPrompt,
    is_adapter,
)
from tunekit.models.model import Model

# KerasHub's own, of masks that its attention drops.
pytestmark = pytest.mark.filterwarnings("ignore:.*Layer 'attn':UserWarning")

METHODS: dict[str, Method] = {
    "lora": LoRA(rank=2),
    "rslora": LoRA(rank=2, rslora=True),
    "dora": LoRA(rank=2, dora=True),
    "lora+": LoRA(rank=2, b_rate=16.0),
    "pissa": LoRA(rank=2, init="pissa"),
    "olora": LoRA(rank=2, init="olora"),
    "orthogonal": LoRA(rank=2, init="orthogonal"),
    "eva": LoRA(rank=2, init="eva"),
    "biased": LoRA(rank=2, bias="all", dropout=0.3),
    "vera": VeRA(rank=4),
    "ia3": IA3(),
    "houlsby": Bottleneck(kind="houlsby", reduction=4, activation="gelu"),
    "pfeiffer": Bottleneck(kind="pfeiffer", reduction=4, activation="gelu"),
    "parallel": Bottleneck(kind="parallel", reduction=4, activation="gelu"),
    "prefix": PrefixTuning(length=2),
    "prompt": PromptTuning(length=2),
    "visual_prompt": VisualPrompt(length=2),
    "bitfit": Plain("bitfit"),
    "norm": Plain("norm"),
}
IMPOSSIBLE: dict[tuple[str, str], tuple[type[Exception], str]] = {
    ("vera", "resnet"): (SelectionError, "'auto' is query.*It has convolutions"),
    ("parallel", "resnet"): (ModelError, "runs beside an MLP.*'pfeiffer'"),
    ("prefix", "resnet"): (ModelError, "no attention"),
    ("prompt", "resnet"): (ModelError, "embedding"),
    ("prompt", "vit"): (ModelError, "embedding"),
    ("visual_prompt", "resnet"): (ModelError, "tokens"),
    ("visual_prompt", "bert"): (ModelError, "PromptTuning"),
    ("visual_prompt", "llama"): (ModelError, "PromptTuning"),
    ("bitfit", "llama"): (SelectionError, "'bitfit' trains none"),
}
MOVES_THE_START = ("prefix", "prompt", "visual_prompt")
"""Positions that are attended to change what comes out, whatever they hold."""
ROUNDED = ("dora", "pissa", "olora", "orthogonal")
"""Fresh, their effect cancels to rounding and not to the bit."""
UNMERGEABLE = ("houlsby", "pfeiffer", "parallel", *MOVES_THE_START)

CASES = [(m, f) for m in METHODS for f in ALL if (m, f) not in IMPOSSIBLE]
ADAPTED = [(m, f) for m, f in CASES if is_adapter(METHODS[m])]


def every(cases: list[tuple[str, str]]) -> Any:
    return pytest.mark.parametrize(("method", "family"), cases, ids=map("-".join, cases))


@dataclass(frozen=True)
class Trained:
    """A model that a method has trained, and what was before; tests leave it as they find it."""

    model: Model
    before: dict[str, np.ndarray]
    """Every value with the fresh adapter on."""
    base: np.ndarray
    """Logits of the model as it came."""
    with_fresh: np.ndarray
    """Logits with the fresh adapter on."""


@functools.cache
def trained(method: str, family: str) -> Trained:
    model, spec, items = fresh(family), METHODS[method], examples(family)
    base = model.logits(items)
    if is_adapter(spec):
        model.add_adapter("own", spec, inputs=[batch(family)])
    before, with_fresh = values(model), model.logits(items)
    train(model, family, spec)
    return Trained(model, before, base, with_fresh)


def assert_equal(left: dict[str, np.ndarray], right: dict[str, np.ndarray]) -> None:
    assert left.keys() == right.keys()
    for name in left:
        np.testing.assert_array_equal(left[name], right[name], err_msg=name)


@every(list(IMPOSSIBLE))
def test_a_method_without_a_place_on_a_family_says_so_and_leaves_the_model_alone(method, family):
    model = fresh(family)
    before = values(model)
    error, message = IMPOSSIBLE[method, family]
    with pytest.raises(error, match=message):
        train(model, family, METHODS[method])
    assert not model.adapters.entries
    assert_equal(before, values(model))


@every(ADAPTED)
def test_a_fresh_adapter_changes_nothing(method, family):
    case = trained(method, family)
    if method in MOVES_THE_START:
        assert np.abs(case.with_fresh - case.base).max() > 0
    elif method in ROUNDED:
        np.testing.assert_allclose(case.with_fresh, case.base, rtol=1e-5, atol=1e-5)
    else:
        np.testing.assert_array_equal(case.with_fresh, case.base)


@every(CASES)
def test_only_what_the_method_may_train_moves_and_all_of_it_does(method, family):
    case = trained(method, family)
    after = values(case.model)
    assert after.keys() == case.before.keys()
    moved = {n for n in after if not np.array_equal(after[n], case.before[n])}
    trains = may_move(method, case.model)
    assert moved <= trains
    stuck = {name for name in trains - moved if not name.endswith(WITHOUT_GRADIENT)}
    assert not stuck


# Added to every key alike, a bias leaves the softmax over them as it was; and no head reads the
# pooler of KerasHub's BERT.
WITHOUT_GRADIENT = ("key/bias", "pooled_dense/bias")


def may_move(method: str, model: Model) -> set[str]:
    """Weights of adapters and heads, of a plain method its own, and statistics beside those."""
    norms, variables = model.norm_layers(), model.variables()
    weights = {
        name
        for name in model.weight_names()
        if name.startswith(("heads/", "adapters/"))
        or (method == "bitfit" and name.endswith(("/bias", "/beta")))
        or (method == "norm" and name.rpartition("/")[0] in norms)
    }
    layers = {name.rpartition("/")[0] for name in weights}
    statistics = {n for n in variables if n.endswith(("/moving_mean", "/moving_variance"))}
    return weights | {name for name in statistics if name.rpartition("/")[0] in layers}


@every(ADAPTED)
def test_disabled_the_network_is_the_one_that_came(method, family):
    case = trained(method, family)
    variables, after = case.model.variables(), values(case.model)
    head = [name for name in after if name.startswith("heads/")]
    for name in head:
        variables[name].assign(case.before[name])
    with case.model.adapters_disabled():
        disabled = case.model.logits(examples(family))
    for name in head:
        variables[name].assign(after[name])
    np.testing.assert_array_equal(disabled, case.base)
    assert np.abs(case.model.logits(examples(family)) - case.base).max() > 1e-3


@every([(m, f) for m, f in ADAPTED if m not in UNMERGEABLE])
def test_merged_the_network_does_what_the_adapter_does_and_unmerged_it_is_as_before(method, family):
    case = trained(method, family)
    before, apart = values(case.model), case.model.logits(examples(family))
    merged = case.model.merge().logits(examples(family))
    assert any(not np.array_equal(before[n], x) for n, x in values(case.model).items())
    case.model.unmerge()
    # The same sums in another order, in float32.
    np.testing.assert_allclose(merged, apart, rtol=1e-4, atol=2e-5)
    assert_equal(before, values(case.model))
    np.testing.assert_array_equal(case.model.logits(examples(family)), apart)


@every([(m, f) for m, f in ADAPTED if m in UNMERGEABLE])
def test_what_cannot_be_merged_says_so_and_changes_nothing(method, family):
    case = trained(method, family)
    before, apart = values(case.model), case.model.logits(examples(family))
    with pytest.raises(ModelError, match="cannot be merged"):
        case.model.merge()
    assert not case.model.adapters.merged
    assert_equal(before, values(case.model))
    np.testing.assert_array_equal(case.model.logits(examples(family)), apart)
