"""What holds for every method on every family: the invariants of the design.

Two devices equal one is not among them: the trainer runs on one device so far.
"""

from __future__ import annotations

import functools
import gc
import resource
from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np
import pytest

import tunekit
from tests.contract import families
from tests.contract.methods_cases import (
    ADAPTED,
    CASES,
    IMPOSSIBLE,
    METHODS,
    MOVES_THE_START,
    ROUNDED,
    UNMERGEABLE,
    assert_equal,
    every,
)
from tests.contract.methods_families import (
    ALL,
    IMAGES,
    TEXTS,
    batch,
    examples,
    fresh,
    train,
    values,
)
from tunekit.errors import ModelError
from tunekit.methods.spec import (
    is_adapter,
)
from tunekit.models.model import Model

# KerasHub's own, of masks that its attention drops.
pytestmark = pytest.mark.filterwarnings("ignore:.*Layer 'attn':UserWarning")


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


@every(ADAPTED)
def test_a_saved_adapter_does_the_same_after_loading(method, family, tmp_path):
    model, items = trained(method, family).model, examples(family)
    expected, before = model.logits(items), values(model)
    model.save_adapter(tmp_path / "again")
    model.load_adapter(tmp_path / "again")
    try:
        assert dict(model.adapters.active) == {"again": 1.0}
        np.testing.assert_allclose(model.logits(items), expected, rtol=0, atol=file_error(method))
    finally:
        model.remove_adapter("again").set_adapter("own")
    assert_equal(values(model), before)


def file_error(method: str) -> float:
    """PEFT's files hold whole biases, not what was added: subtracting rounds."""
    return 1e-5 if method == "biased" else 0


@every([(m, f) for m in ("lora", "dora", "biased") for f in ALL])
def test_on_a_new_model_a_loaded_adapter_gives_the_same_logits(method, family, tmp_path):
    case = trained(method, family)
    case.model.save_adapter(tmp_path / "own")
    other = fresh(family).load_adapter(tmp_path / "own")
    items = examples(family)
    expected = case.model.logits(items)
    np.testing.assert_allclose(other.logits(items), expected, rtol=0, atol=file_error(method))


@every([(m, f) for m, f in ADAPTED if f in IMAGES and m in ("lora", "ia3", "pfeiffer", "prefix")])
def test_a_saved_result_predicts_the_same_bits_after_loading(method, family, tmp_path):
    result = tunekit.finetune(
        fresh(family),
        families.images(),
        method=METHODS[method],
        epochs=1,
        validation=0.0,
        progress="none",
    )
    result.save(tmp_path / "out")
    loaded, items = tunekit.load(tmp_path / "out"), examples(family)
    np.testing.assert_array_equal(loaded.model.logits(items), result.model.logits(items))
    assert_equal(values(loaded.model), values(result.model))


def one_family_of_each_kind(method: str) -> list[tuple[str, str]]:
    """Images and texts, where the method is possible."""
    found = []
    for kinds in (IMAGES, tuple(reversed(TEXTS))):
        found += [(method, f) for f in kinds if (method, f) in ADAPTED][:1]
    return found


EACH_ITS_OWN = ("lora", "dora", "pissa", "biased", "vera", "ia3", "houlsby", "parallel")


@every([c for m in (*EACH_ITS_OWN, *MOVES_THE_START) for c in one_family_of_each_kind(m)])
def test_an_adapter_an_example_in_one_batch_equals_one_at_a_time(method, family):
    model, items = trained(method, family).model, examples(family, 4)
    before = values(model)
    model.add_adapter("other", METHODS[method], seed=1)
    rng = np.random.default_rng(0)
    for name in model.weight_names():
        if name.startswith("adapters/other/"):
            variable = model.variables()[name]
            variable.assign(variable + 0.3 * rng.normal(size=variable.shape))
    try:
        alone = {"other": model.logits(items), "own": model.set_adapter("own").logits(items)}
        names: list[str | None] = ["other", "own", "own", "other"]
        if method not in MOVES_THE_START:  # They act whole or not at all.
            names[1] = None
            with model.adapters_disabled():
                alone[None] = model.logits(items)
        together = model.logits(items, adapters=names)
    finally:
        model.remove_adapter("other").set_adapter("own")
    assert np.abs(alone["other"] - alone["own"]).max() > 1e-2
    for row, name in enumerate(names):
        np.testing.assert_allclose(together[row], alone[name][row], rtol=1e-4, atol=2e-5)
    assert_equal(before, values(model))


def test_a_thousand_swaps_of_two_adapters_compile_nothing_and_hold_no_memory():
    model, pixels = fresh("resnet"), batch("resnet")
    outputs = {}
    for seed, name in enumerate(("calm", "loud")):
        model.add_adapter(name, METHODS["biased"], seed=seed)
        for variable in model.adapters[name].adapter.variables.values():
            if variable.trainable:
                variable.assign(variable + 0.1 * (seed + 1))
        outputs[name] = model.apply(pixels)
    assert np.abs(outputs["calm"] - outputs["loud"]).max() > 1e-2

    def swap(count: int) -> tuple[int, int, int]:
        for _ in range(count):
            for name in outputs:
                given = model.set_adapter(name).apply(pixels)
                np.testing.assert_array_equal(given, outputs[name])
        gc.collect()
        live = sum(array.nbytes for array in jax.live_arrays())
        return model._inference.compiled(), live, resident_bytes()

    compiled, live, resident = swap(100)
    after = swap(400)
    assert after[:2] == (compiled, live)
    # An adapter is 100 kB, and what a pass computes ten times that: kept, either would show.
    assert after[2] - resident < 20e6


def resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()
