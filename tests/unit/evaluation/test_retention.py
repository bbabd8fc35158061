from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import log_softmax

from tests.unit.tasks.small_language import dialogue, model, tokenizer
from tunekit.data.sequences import SequenceBatches
from tunekit.errors import DataError, ModelError
from tunekit.evaluation.retention import (
    RetentionRow,
    adapter_dial,
    distances,
    pareto_front,
    weight_dial,
)
from tunekit.methods.spec import LoRA, PrefixTuning
from tunekit.names import structural_names
from tunekit.tasks.language_modelling import LanguageModelling

SOURCE = [
    {"id": "a", "text": "so it is"},
    {"id": "b", "text": "and that is all"},
    dialogue("is it?", "yes"),
]


def batches(source=SOURCE, batch_size=2):
    encode = LanguageModelling().encoder(tokenizer(), 40)
    return SequenceBatches(
        source,
        encode,
        batch_size=batch_size,
        seed=0,
        shuffle=False,
        buckets=(40,),
        pad_id=0,
        workers=0,
    ).epoch(0)


def with_adapter(spec="lora"):
    llama = model()
    adapter = llama.add_adapter("a", spec).adapters["a"].adapter
    rng = np.random.default_rng(0)
    for variable in adapter.variables.values():
        if variable.trainable:
            variable.assign(variable + 0.3 * rng.normal(size=variable.shape))
    return llama


def by_hand(llama, batch):
    """Log probabilities [N, V] and targets [N] of the tokens that count."""
    inputs = {name: jnp.asarray(batch[name]) for name in ("token_ids", "padding_mask")}
    log_p = log_softmax(np.asarray(llama.apply(inputs), np.float64), axis=-1)
    counts = batch["loss_weights"] > 0
    return log_p[counts], batch["targets"][counts]


def expected(base, tuned, source=SOURCE):
    losses, kls = [], []
    for batch in batches(source):
        (log_p, targets), (log_q, _) = by_hand(base, batch), by_hand(tuned, batch)
        losses += list(-log_q[np.arange(len(targets)), targets])
        kls += list((np.exp(log_p) * (log_p - log_q)).sum(axis=-1))
    return np.mean(losses), np.mean(kls), len(losses)


@pytest.fixture(scope="module")
def untouched():
    return model()


@pytest.fixture(scope="module")
def turned():
    """A LoRA at three places of its dial."""
    llama = with_adapter()
    scales = [0.0, 0.5, 1.0]
    return llama, distances(adapter_dial(llama, scales), scales, batches(), "retain")


def test_loss_and_divergence_are_those_of_whole_distributions(turned, untouched) -> None:
    llama, found = turned
    loss, kl, tokens = expected(untouched, llama)
    assert found[2].tokens == tokens
    assert found[2].loss == pytest.approx(loss, rel=1e-5)
    assert found[2].kl == pytest.approx(kl, rel=1e-4) and kl > 1e-3
    llama.set_adapter({"a": 0.5})
    loss, kl, _ = expected(untouched, llama)
    llama.set_adapter({"a": 1.0})
    assert found[1].loss == pytest.approx(loss, rel=1e-5)
    assert found[1].kl == pytest.approx(kl, rel=1e-4)


def test_the_dial_at_zero_is_the_base(turned, untouched) -> None:
    _, found = turned
    loss, _, _ = expected(untouched, untouched)
    assert found[0].loss == pytest.approx(loss, rel=1e-5)
    assert found[0].kl == 0


def test_turning_the_dial_changes_nothing_of_the_model(turned) -> None:
    llama, _ = turned
    assert dict(llama.adapters.active) == {"a": 1.0}
    again = with_adapter().adapters["a"].adapter.values()
    for name, value in llama.adapters["a"].adapter.values().items():
        np.testing.assert_array_equal(value, again[name])


def test_batches_of_another_size_give_the_same(turned) -> None:
    llama, found = turned
    (one,) = distances(adapter_dial(llama, [1.0]), [1.0], batches(batch_size=1), "retain")
    assert one.tokens == found[2].tokens
    assert (one.loss, one.kl) == pytest.approx((found[2].loss, found[2].kl), rel=1e-4)


def test_a_dora_at_zero_is_the_base_though_it_keeps_its_magnitudes(untouched) -> None:
    llama = with_adapter(LoRA(rank=2, dora=True))
    (found,) = distances(adapter_dial(llama, [0.0]), [0.0], batches(), "retain")
    loss, _, _ = expected(untouched, untouched)
    assert found.loss == pytest.approx(loss, rel=1e-5)


@pytest.mark.parametrize("spec", [LoRA(rank=2, dora=True), PrefixTuning(length=2)])
def test_an_adapter_without_a_scale_has_no_half_way(spec) -> None:
    llama = with_adapter(spec)
    adapter_dial(llama, [0.0, 1.0])
    with pytest.raises(ModelError, match=r"whole or not at all.*Turn the dial by scales=\(0, 1\)"):
        adapter_dial(llama, [0.0, 0.5])


def test_without_an_active_adapter_there_is_nothing_to_scale() -> None:
    with pytest.raises(ModelError, match="expected an active adapter"):
        adapter_dial(model(), [1.0])


def trained():
    """A model whose kernels have moved, and their values before."""
    llama = model()
    variables = structural_names(llama.keras)
    names = [name for name in variables if name.endswith("kernel")]
    base = {name: variables[name].value for name in names}
    for i, name in enumerate(names):
        variables[name].assign(variables[name] + 0.03 * np.sin(i))
    return llama, base


def test_weights_are_dialled_along_the_line_between_before_and_after(untouched) -> None:
    llama, base = trained()
    dial = weight_dial(llama, base)
    scales = [0.0, 0.5, 1.0]
    found = distances(dial, scales, batches(), "retain")
    loss, kl, _ = expected(untouched, llama)
    assert (found[2].loss, found[2].kl) == pytest.approx((loss, kl), rel=1e-4)
    assert found[0].loss == pytest.approx(expected(untouched, untouched)[0], rel=1e-5)
    variables = structural_names(llama.keras)
    for name, value in base.items():
        variables[name].assign((value + variables[name].value) / 2)
    loss, kl, _ = expected(untouched, llama)
    assert (found[1].loss, found[1].kl) == pytest.approx((loss, kl), rel=1e-4)


def test_both_ends_of_a_line_of_weights_are_exact() -> None:
    llama, base = trained()
    dial, variables = weight_dial(llama, base), structural_names(llama.keras)
    for name, value in base.items():
        np.testing.assert_array_equal(dial.at(0.0)[name], value)
        np.testing.assert_array_equal(dial.at(1.0)[name], variables[name].value)


def test_a_base_of_another_model_is_refused() -> None:
    llama, base = trained()
    name = next(iter(base))
    with pytest.raises(ModelError, match=r"no such variable. Give .* Did you mean 'backbone/"):
        weight_dial(llama, {name + "s": base[name]})
    with pytest.raises(ModelError, match=r"has shape \(2,\), and the tuned model has \("):
        weight_dial(llama, {name: np.zeros(2)})


def test_weights_between_whole_numbers_are_refused() -> None:
    llama = model()
    before = structural_names(llama.keras)
    llama.quantize("int8")
    packed = {n: v.value for n, v in structural_names(llama.keras).items()}
    name = next(n for n, value in packed.items() if value.dtype == jnp.int8)
    assert name not in before
    with pytest.raises(ModelError, match="int8, and between whole numbers there is no line"):
        weight_dial(llama, {name: packed[name] + 1})


def test_texts_of_which_nothing_counts_are_refused() -> None:
    llama = with_adapter()
    source = [dialogue("a long prompt " * 5, "yes")]
    with pytest.raises(DataError, match="retain: expected tokens to compare models on"):
        distances(adapter_dial(llama, [1.0]), [1.0], batches(source), "retain")


def row(scale, loss, retained):
    return RetentionRow(scale, loss, np.exp(loss), retained, np.exp(retained), 0.0)


def test_the_front_has_what_is_better_on_one_side_only_at_a_price() -> None:
    rows = [row(0, 3, 1), row(0.5, 2, 1.1), row(0.75, 2.5, 1.2), row(1, 1.5, 1.3), row(2, 1.5, 2)]
    assert [each.scale for each in pareto_front(rows)] == [0, 0.5, 1]
    assert pareto_front([row(0, 1, 1), row(1, 1, 1)]) == (row(0, 1, 1),)
