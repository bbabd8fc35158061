"""The step against NumPy: one normalisation, decoupled decay, clipping, averages."""

from __future__ import annotations

import numpy as np
import pytest

from tests.unit.training.small import Rows, small_model, small_trainer, weights
from tunekit.plans.optimizer import OptimizerSpec
from tunekit.plans.phase import Phase

RATE = 0.01
KERNEL, BIAS = "head/kernel", "head/bias"


def plan(steps: int) -> list[Phase]:
    return [
        Phase(train="head/.*", steps=steps, learning_rate=RATE, warmup="0%", schedule="constant")
    ]


def head_gradients(
    before: dict[str, np.ndarray], values: dict[str, np.ndarray], batch: dict[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """Closed form of the head's gradient: features.T @ (softmax - onehot) / weight.

    The blocks are frozen, so their features are those of inference: BatchNorm by its initial
    statistics (mean 0, variance 1, epsilon 1e-3), dropout off.
    """
    x = batch["x"].astype(np.float64)
    for block in ("block1", "block2"):
        x = x @ before[f"{block}/dense/kernel"] + before[f"{block}/dense/bias"]
        x = x / np.sqrt(1 + 1e-3)
    logits = x @ values[KERNEL] + values[BIAS]
    p = np.exp(logits - logits.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    p[np.arange(len(p)), batch["label"]] -= 1
    p *= batch["weight"][:, None] / batch["weight"].sum()
    return {KERNEL: x.T @ p, BIAS: p.sum(0)}


def trained(optimizer: OptimizerSpec, steps: int, **changes):
    model = small_model()
    before = weights(model)
    small_trainer(model, plan(steps), optimizer=optimizer, **changes).fit()
    return before, weights(model)


def test_three_adamw_steps_equal_loshchilov_and_hutters_algorithm_2():
    optimizer = OptimizerSpec(weight_decay=0.1)
    before, after = trained(optimizer, 3)
    values = {name: before[name].astype(np.float64) for name in (KERNEL, BIAS)}
    moments = {name: (0.0, 0.0) for name in values}
    for t, batch in enumerate(Rows().epoch(0), start=1):
        gradients = head_gradients(before, values, batch)
        for name, gradient in gradients.items():
            m, v = moments[name]
            m, v = 0.9 * m + 0.1 * gradient, 0.999 * v + 0.001 * gradient**2
            moments[name] = m, v
            step = (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)
            decay = 0.1 * values[name] if name == KERNEL else 0.0
            values[name] = values[name] - RATE * (step + decay)
    # Three float32 steps of a well-conditioned problem against float64.
    np.testing.assert_allclose(after[KERNEL], values[KERNEL], rtol=2e-5, atol=2e-6)
    np.testing.assert_allclose(after[BIAS], values[BIAS], rtol=2e-5, atol=2e-6)


def test_clipping_scales_the_whole_gradient_to_the_norm():
    optimizer = OptimizerSpec(name="sgd", momentum=0.0, weight_decay=0.0, clip_norm=0.05)
    before, after = trained(optimizer, 1)
    gradients = head_gradients(before, before, next(Rows().epoch(0)))
    norm = np.sqrt(sum((g**2).sum() for g in gradients.values()))
    assert norm > 0.05, "or nothing is clipped"
    for name, gradient in gradients.items():
        expected = before[name] - RATE * gradient * 0.05 / norm
        np.testing.assert_allclose(after[name], expected, rtol=1e-5, atol=1e-7)


def test_padded_rows_weigh_nothing_in_the_step():
    class Garbage(Rows):
        def epoch(self, epoch, start_step=0):
            for batch in super().epoch(epoch, start_step):
                padded = batch["weight"] == 0
                yield {**batch, "x": np.where(padded[:, None], 1e3, batch["x"]).astype(np.float32)}

    optimizer = OptimizerSpec(name="sgd", weight_decay=0.0)
    _, clean = trained(optimizer, 3)
    _, garbage = trained(optimizer, 3, batches=Garbage())
    np.testing.assert_array_equal(clean[KERNEL], garbage[KERNEL])


@pytest.mark.parametrize("accumulate", [2, 4])
def test_micro_batches_equal_one_batch_though_the_last_has_padding(accumulate):
    optimizer = OptimizerSpec(name="sgd")
    _, whole = trained(optimizer, 3)
    _, parts = trained(optimizer, 3, accumulate=accumulate)
    # The sums run in another order; float32 addition is not associative.
    np.testing.assert_allclose(parts[KERNEL], whole[KERNEL], rtol=1e-5, atol=1e-7)


def test_the_average_of_the_weights_is_what_the_model_ends_with():
    decay = 0.5
    before, averaged = trained(OptimizerSpec(name="sgd", ema=decay), 3)
    average = before[KERNEL]
    for steps in (1, 2, 3):
        _, after = trained(OptimizerSpec(name="sgd"), steps)
        average = decay * average + (1 - decay) * after[KERNEL]
    np.testing.assert_allclose(averaged[KERNEL], average, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("name", ["adamw", "adam", "sgd", "lion", "muon"])
def test_every_optimizer_lowers_the_loss(name):
    rate = {"sgd": 0.1, "lion": 0.01, "muon": 0.02}.get(name, 0.05)
    phases = [Phase(train=".*", epochs=4, learning_rate=rate, warmup="0%")]
    trainer = small_trainer(small_model(dropout=0.0), phases, optimizer=OptimizerSpec(name=name))
    history = trainer.fit().history
    assert history[-1]["loss"] < 0.8 * history[0]["loss"]
