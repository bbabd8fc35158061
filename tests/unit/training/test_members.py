"""Members trained side by side: each as if it had run alone."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from tests.unit.training.small import Rows, small_model, small_trainer, weights
from tunekit.errors import TrainingError
from tunekit.plans.optimizer import OptimizerSpec
from tunekit.plans.phase import Phase
from tunekit.training.members import Members
from tunekit.training.spec import RuntimeSpec

RATES = (0.01, 0.05, 0.1)


def plan(rate: float) -> list[Phase]:
    """The head; everything; the head again: a thaw and a freeze."""
    return [
        Phase(train="head/.*", epochs=2, learning_rate=rate),
        Phase(train=".*", epochs=1, learning_rate=rate / 10, multipliers={"block1/.*": 0.5}),
        Phase(train="head/.*", steps=4, learning_rate=rate),
    ]


def accuracy(values: Any) -> dict[str, float]:
    """A score that depends on the weights."""
    return {"accuracy": float(jnp.sum(jnp.abs(values["head/kernel"]))), "loss": 1.0}


def member(rate: float, seed: int, **changes: Any):
    model = small_model()
    rng = np.random.default_rng(seed)
    start = {"head/kernel": jnp.asarray(rng.normal(size=(8, 3)), jnp.float32)}
    changes.setdefault("runtime", RuntimeSpec())
    return small_trainer(
        model,
        plan(rate),
        seed=seed,
        start=start,
        batches=Rows(seed),
        evaluate=accuracy,
        **changes,
    )


def together(trainers):
    """The trainers over one model, as a sweep makes them."""
    first = trainers[0]
    for trainer in trainers[1:]:
        trainer.forward = trainer.programs.forward = first.forward
    return Members(trainers)


@pytest.mark.parametrize("ema", [None, 0.9])
def test_each_member_equals_its_own_run(ema):
    # A bias before a BatchNorm has no gradient but rounding, which a small epsilon would amplify.
    optimizer = OptimizerSpec(clip_norm=1.0, ema=ema, epsilon=1e-3)
    alone = []
    for seed, rate in enumerate(RATES):
        trainer = member(rate, seed, optimizer=optimizer)
        history = trainer.fit().history
        alone.append((history, weights(trainer.forward.model)))
    trainers = [member(rate, seed, optimizer=optimizer) for seed, rate in enumerate(RATES)]
    found = together(trainers).fit()
    assert len({tuple(row["loss"] for row in each.trained.history) for each in found}) == 3
    for (history, values), each in zip(alone, found, strict=True):
        assert each.failure is None
        assert each.trained.compiles == 3
        for row, own in zip(each.trained.history, history, strict=True):
            assert (row["phase"], row["step"]) == (own["phase"], own["step"])
            # A batched product sums in another order than a single one: float32, a dozen steps.
            np.testing.assert_allclose(row["loss"], own["loss"], rtol=1e-5)
        for name, value in each.values.items():
            np.testing.assert_allclose(value, values[name], rtol=1e-4, atol=1e-5, err_msg=name)


def test_the_model_itself_is_not_written_to():
    trainers = [member(rate, 0) for rate in RATES]
    model = trainers[0].forward.model
    before = weights(model)
    together(trainers).fit()
    after = weights(model)
    for name, value in before.items():
        np.testing.assert_array_equal(value, after[name])


def test_a_member_that_diverges_leaves_the_others_alone():
    rates = (0.01, float(np.finfo(np.float32).max))
    sgd = OptimizerSpec(name="sgd", weight_decay=0.0)
    with pytest.raises(TrainingError, match="the loss is"):
        member(rates[1], 0, optimizer=sgd).fit()
    healthy, diverged = together([member(rate, 0, optimizer=sgd) for rate in rates]).fit()
    alone = member(rates[0], 0, optimizer=sgd).fit()
    assert healthy.failure is None
    assert diverged.failure is not None and "the loss is" in diverged.failure
    losses = [[row["loss"] for row in each.history] for each in (healthy.trained, alone)]
    np.testing.assert_allclose(*losses, rtol=1e-4)
