"""Training in float16: small gradients are not lost, and steps that are too large left out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import keras
import numpy as np
import pytest

from tests.unit.training.small import Rows, small_model, small_trainer, weights
from tunekit.errors import TrainingError
from tunekit.models.forward import Forward
from tunekit.plans.optimizer import OptimizerSpec
from tunekit.plans.phase import Phase
from tunekit.training.checkpoints import Checkpoints
from tunekit.training.loss_scale import (
    FIRST_FACTOR,
    GOOD_STEPS,
    LARGEST_FACTOR,
    first_scale,
    needs_scaling,
    next_scale,
)
from tunekit.training.optimizers import initial_states
from tunekit.training.spec import RuntimeSpec
from tunekit.training.step import Carried, Step

ALL = Phase(train=".*", epochs=3, learning_rate=0.02, warmup="0%")
SGD = OptimizerSpec(name="sgd", momentum=0.0, weight_decay=0.0)
TINY = 1e-9
"""Below the smallest number of float16, 6e-8."""


def wide(model: keras.Model, factor: float = 1.0) -> Any:
    """A step of one weight in float16, and what it is called with: the loss is `factor` w."""

    class Scaled:
        def augment_batch(self, key: jax.Array, batch: Any) -> Any:
            return batch

        def inputs(self, batch: Any) -> jax.Array:
            return batch["x"]

        def loss(self, outputs: Any, batch: Any) -> tuple[jax.Array, jax.Array]:
            return jnp.sum(outputs.astype(jnp.float32)) * factor, jnp.float32(1.0)

    forward = Forward.of(model)
    (name,) = forward.variables
    trainable = {name: jnp.ones((1, 1), jnp.float32)}
    step = Step(forward, Scaled(), SGD, frozenset(trainable), {})
    states = initial_states(SGD, trainable)

    def run(scale: Any) -> Any:
        carried = Carried(trainable, {}, states, {}, scale)
        batch = {"x": jnp.ones((1, 1), jnp.float16)}
        return step(carried, {}, {}, batch, jnp.ones(1), jax.random.key(0))

    return name, jax.jit(run)


def one_weight() -> keras.Model:
    inputs = keras.Input((1,), dtype="float16")
    return keras.Model(
        inputs, keras.layers.Dense(1, use_bias=False, dtype="float16", name="d")(inputs)
    )


def test_a_gradient_below_float16_is_0_without_scaling_and_exact_with_it():
    name, run = wide(one_weight(), TINY)
    without, measured = run({})
    # d(TINY w)/dw = TINY, which float16 rounds to 0.
    assert float(measured.gradient_norm) == 0.0
    np.testing.assert_array_equal(without.trainable[name], 1.0)

    scaled, measured = run(first_scale())
    # TINY * 2^15 is 3.3e-5, which float16 holds to 11 bits.
    assert float(measured.gradient_norm) == pytest.approx(TINY, rel=2**-10)
    assert not measured.skipped and float(measured.loss) == pytest.approx(TINY)
    assert int(scaled.loss_scale["good"]) == 1


def test_a_step_whose_gradients_are_infinite_changes_nothing_but_the_factor():
    name, run = wide(one_weight(), 4.0)
    # 4 * 2^15 is beyond 65,504.
    after, measured = run(first_scale())
    assert measured.skipped and float(measured.loss) == 4.0
    np.testing.assert_array_equal(after.trainable[name], 1.0)
    assert float(after.loss_scale["factor"]) == FIRST_FACTOR / 2
    assert not np.any(jax.tree.leaves(after.optimizer))
    again, measured = run({**after.loss_scale, "factor": jnp.float32(2.0**13)})
    assert not measured.skipped
    np.testing.assert_allclose(again.trainable[name], 1.0 - 4.0, rtol=2**-10)


def test_the_factor_doubles_after_so_many_good_steps_and_halves_after_a_bad_one():
    scale = {"factor": jnp.float32(8.0), "good": jnp.int32(GOOD_STEPS - 2)}
    scale = next_scale(scale, jnp.bool_(True))
    assert (float(scale["factor"]), int(scale["good"])) == (8.0, GOOD_STEPS - 1)
    scale = next_scale(scale, jnp.bool_(True))
    assert (float(scale["factor"]), int(scale["good"])) == (16.0, 0)
    scale = next_scale({**scale, "good": jnp.int32(7)}, jnp.bool_(False))
    assert (float(scale["factor"]), int(scale["good"])) == (8.0, 0)
    most = {"factor": jnp.float32(LARGEST_FACTOR), "good": jnp.int32(GOOD_STEPS - 1)}
    assert float(next_scale(most, jnp.bool_(True))["factor"]) == LARGEST_FACTOR


@pytest.mark.parametrize(
    ("dtype", "scales"),
    [("float16", True), ("mixed_float16", True), ("bfloat16", False), ("float32", False)],
)
def test_the_loss_is_scaled_where_a_layer_computes_in_float16(dtype, scales):
    assert needs_scaling(Forward.of(small_model(dtype=dtype))) is scales


def test_updates_too_small_for_float16_are_not_lost():
    model = small_model(dropout=0.0, dtype="float16")
    name = "block1/norm/gamma"
    trainer = small_trainer(
        model, [Phase(train=".*", epochs=8, learning_rate=1e-4, schedule="constant", warmup="0%")]
    )
    states = []
    end_pass = trainer.end_pass

    def kept(state: Any, *rest: Any) -> None:
        states.append(np.array(state.carried.trainable[name]))
        end_pass(state, *rest)

    trainer.end_pass = kept
    trainer.fit()
    assert states[-1].dtype == np.float32
    # 24 steps of Adam at 1e-4 move by up to 2.4e-3; each alone is lost where 1 - 1e-4 is 1.
    assert np.all(states[0] != 1.0) and np.abs(states[-1] - 1.0).max() > 5e-4


class Killed(Exception):
    """Ends a run after one of its checkpoints."""


def run_in_float16(folder: Path, *, kill_at: int | None = None, resume: bool = False) -> Any:
    """What a run with a factor far too large at first has recorded, its weights and its scale."""
    model = small_model(dtype="float16")
    checkpoints = Checkpoints(folder, identity={}, keep=1)
    runtime = RuntimeSpec(out="o", restore_best=False, resume=resume)
    trainer = small_trainer(model, [ALL], checkpoints=checkpoints, runtime=runtime)
    entered, save = trainer._entered, trainer._save

    def entered_with_much(*given: Any, **options: Any) -> Any:
        state = entered(*given, **options)
        state.carried.loss_scale["factor"] = jnp.float32(2.0**21)
        return state

    def saved(state: Any) -> None:
        save(state)
        if state.progress.step == kill_at:
            raise Killed

    trainer._entered, trainer._save = entered_with_much, saved
    try:
        trained = trainer.fit()
    finally:
        checkpoints.close()
    assert trainer._state is not None
    return trained, weights(model), trainer._state.carried.loss_scale


def test_a_killed_run_in_float16_resumes_with_its_scale_to_the_same_bits(tmp_path):
    whole, expected, scale = run_in_float16(tmp_path / "whole")
    # The first steps, of which the killed run does some and the resumed one the rest.
    assert whole.phases[0]["skipped_steps"] > 3
    with pytest.raises(Killed):
        run_in_float16(tmp_path / "killed", kill_at=3)
    resumed, found, same_scale = run_in_float16(tmp_path / "killed", resume=True)
    assert resumed.phases == whole.phases and same_scale == scale
    for name in expected:
        np.testing.assert_array_equal(found[name], expected[name], err_msg=name)


def test_training_that_diverges_in_float16_is_an_error():
    class Huge(Rows):
        def epoch(self, epoch: int, start_step: int = 0) -> Any:
            for batch in super().epoch(epoch, start_step):
                yield {**batch, "x": batch["x"] * 1e30}

    trainer = small_trainer(small_model(dropout=0.0, dtype="float16"), [ALL], batches=Huge())
    with pytest.raises(TrainingError, match="the loss is nan at step"):
        trainer.fit()


def test_gradients_that_no_factor_makes_finite_are_an_error():
    model = small_model(dropout=0.0, dtype="float16")
    plan = [Phase(train=".*", epochs=20, learning_rate=0.02, warmup="0%")]
    trainer = small_trainer(model, plan)
    objective = trainer.feeds[0].objective
    loss = objective.loss
    # Finite, and its derivative at 0 is not.
    objective.loss = lambda outputs, batch: (
        loss(outputs, batch)[0] + jnp.sum(jnp.sqrt(jnp.sum(outputs * 0.0))),
        loss(outputs, batch)[1],
    )
    before = weights(model)
    with pytest.raises(TrainingError, match="steps in a row, up to step 32, are not finite"):
        trainer.fit()
    after = weights(model)
    assert all(np.array_equal(before[name], after[name]) for name in before)
