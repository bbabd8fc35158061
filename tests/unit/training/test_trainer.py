"""Training: what moves, what does not, and what survives a change of phase or an interruption."""

from __future__ import annotations

import numpy as np
import pytest

from tests.unit.training.small import Rows, small_forward, small_model, small_trainer, weights
from tunekit.errors import CheckpointError, TrainingError
from tunekit.plans.optimizer import OptimizerSpec
from tunekit.plans.phase import Phase
from tunekit.training.checkpoints import Checkpoints
from tunekit.training.spec import RuntimeSpec

ALL = Phase(train=".*", epochs=3, learning_rate=0.05, warmup="0%")
HEAD = Phase(train="head/.*", epochs=2, learning_rate=0.05, warmup="0%")
TOP = Phase(train=("block2/.*", "head/.*"), epochs=2, learning_rate=0.05, warmup="0%")


def assert_equal(left: dict[str, np.ndarray], right: dict[str, np.ndarray]) -> None:
    assert left.keys() == right.keys()
    for name in left:
        np.testing.assert_array_equal(left[name], right[name], err_msg=name)


def test_training_lowers_the_loss_and_writes_the_weights_back():
    model = small_model(dropout=0.0)
    before = weights(model)
    trained = small_trainer(model, [ALL]).fit()
    assert trained.history[-1]["loss"] < 0.7 * trained.history[0]["loss"]
    assert trained.compiles == 1
    after = weights(model)
    assert not np.array_equal(before["block1/dense/kernel"], after["block1/dense/kernel"])


def test_frozen_weights_and_statistics_of_frozen_layers_are_bit_identical():
    model = small_model()
    before = weights(model)
    small_trainer(model, [TOP]).fit()
    after = weights(model)
    for name in before:
        if name.startswith("block1"):
            np.testing.assert_array_equal(before[name], after[name], err_msg=name)
        else:
            assert not np.array_equal(before[name], after[name]), name


def test_a_batchnorm_with_frozen_scale_keeps_its_statistics_though_its_block_trains():
    model = small_model()
    before = weights(model)
    small_trainer(model, [Phase(train=".*/kernel", epochs=1, warmup="0%")]).fit()
    after = weights(model)
    np.testing.assert_array_equal(
        before["block2/norm/moving_mean"], after["block2/norm/moving_mean"]
    )
    assert not np.array_equal(before["block2/dense/kernel"], after["block2/dense/kernel"])


def test_trainable_flags_of_keras_do_not_decide():
    model = small_model(dropout=0.0)
    model.trainable = False
    before = weights(model)
    small_trainer(model, [ALL]).fit()
    assert not np.array_equal(before["block1/norm/gamma"], weights(model)["block1/norm/gamma"])
    assert not np.array_equal(
        before["block1/norm/moving_mean"], weights(model)["block1/norm/moving_mean"]
    )


def test_two_runs_with_one_seed_are_bitwise_equal():
    runs = []
    for _ in range(2):
        model = small_model()
        small_trainer(model, [HEAD, ALL]).fit()
        runs.append(weights(model))
    assert_equal(*runs)


def test_dropout_masks_differ_between_steps_and_seeds():
    def loss(seed: int) -> list[float]:
        model = small_model(dropout=0.9)
        plan = [Phase(train=".*", steps=1, learning_rate=1e-30, warmup="0%")] * 3
        batches = Rows(batch_size=22)
        return [
            row["loss"]
            for row in small_trainer(model, plan, seed=seed, batches=batches).fit().history
        ]

    first, other = loss(0), loss(1)
    assert len(set(first)) == 3, "three steps at a vanishing rate differ by their masks alone"
    assert first != other


class StopsAfter(Rows):
    """Raises an error after some batches in all."""

    def __init__(self, count: int, error: BaseException) -> None:
        super().__init__()
        self.left, self.error = count, error

    def epoch(self, epoch, start_step=0):
        for batch in super().epoch(epoch, start_step):
            if self.left == 0:
                raise self.error
            self.left -= 1
            yield batch


def test_an_error_leaves_the_model_as_it_was():
    model = small_model()
    before = weights(model)
    with pytest.raises(OSError, match="disk"):
        small_trainer(model, [ALL], batches=StopsAfter(4, OSError("disk on fire"))).fit()
    assert_equal(before, weights(model))


def test_ctrl_c_leaves_the_model_trained_up_to_the_last_whole_step():
    model, reference = small_model(), small_model()
    with pytest.raises(KeyboardInterrupt):
        small_trainer(model, [ALL], batches=StopsAfter(4, KeyboardInterrupt())).fit()
    plan = small_trainer(reference, [ALL])
    rates = plan.phases[0].learning_rates
    plan = [Phase(train=".*", steps=4, learning_rate=0.05, warmup="0%")]
    trainer = small_trainer(reference, plan)
    object.__setattr__(trainer.phases[0], "learning_rates", rates[:4])
    trainer.fit()
    assert_equal(weights(model), weights(reference))


def test_a_loss_that_is_not_finite_is_an_error_and_the_model_as_it_was():
    model = small_model()
    before = weights(model)
    batches = Rows()
    batches.x[3] = np.inf
    with pytest.raises(TrainingError, match="the loss is nan at step .*Lower the learning rate"):
        small_trainer(model, [ALL], batches=batches).fit()
    assert_equal(before, weights(model))


def test_early_stopping_ends_the_phase_and_the_best_weights_come_back():
    model = small_model()
    scores = iter([0.5, 0.9, 0.8, 0.7, 0.6])
    seen = []

    def evaluate(values):
        seen.append({name: np.array(value) for name, value in values.items()})
        return {"accuracy": next(scores), "loss": 1.0}

    plan = [Phase(train=".*", epochs=5, learning_rate=0.05, warmup="0%", early_stopping=2)]
    trained = small_trainer(model, plan, evaluate=evaluate, runtime=RuntimeSpec()).fit()
    assert [row["val_accuracy"] for row in trained.history] == [0.5, 0.9, 0.8, 0.7]
    best = {name: seen[1][name] for name in weights(model)}
    assert_equal(best, weights(model))


def test_moments_of_what_keeps_training_survive_a_phase_and_new_ones_start_fresh():
    trainer = small_trainer(small_model(), [HEAD, ALL])
    trainer.fit()
    state = trainer._state
    assert state is not None
    optimizer = state.carried.optimizer
    count = {
        name: int(_adam(optimizer[name]).count) for name in ("head/kernel", "block1/dense/kernel")
    }
    assert count == {"head/kernel": 6 + 9, "block1/dense/kernel": 9}


def _adam(states):
    return states[0] if isinstance(states[0], tuple) else states


def test_a_phase_with_the_same_variables_uses_the_step_compiled_before():
    trained = small_trainer(small_model(), [HEAD, ALL, HEAD]).fit()
    assert trained.compiles == 2


def checkpoints(folder, identity=None):
    return Checkpoints(folder, identity=identity or {"recipe": "a"}, keep=2)


@pytest.mark.parametrize("killed_after", [1, 4, 6, 8, 13])
def test_a_killed_run_resumes_to_the_same_bits(tmp_path, killed_after):
    """After a mid-pass checkpoint, at a phase's end, and inside the second phase."""
    plan = [HEAD, ALL]
    options = {
        "optimizer": OptimizerSpec(ema=0.9),
        "evaluate": lambda values: {"accuracy": float(np.sum(values["head/bias"])), "loss": 1.0},
    }
    whole = small_model()
    runtime = RuntimeSpec(out=str(tmp_path), checkpoint_every="2 steps")
    history = small_trainer(whole, plan, runtime=runtime, **options).fit().history

    broken = small_trainer(
        small_model(),
        plan,
        runtime=runtime,
        batches=StopsAfter(killed_after, OSError("killed")),
        checkpoints=checkpoints(tmp_path),
        **options,
    )
    with pytest.raises(OSError, match="killed"):
        broken.fit()
    resumed = small_model()
    runtime = RuntimeSpec(out=str(tmp_path), checkpoint_every="2 steps", resume=True)
    trained = small_trainer(
        resumed, plan, runtime=runtime, checkpoints=checkpoints(tmp_path), **options
    ).fit()
    assert_equal(weights(whole), weights(resumed))
    timeless = [
        [{k: v for k, v in row.items() if "second" not in k} for row in rows]
        for rows in (history, trained.history)
    ]
    assert timeless[0] == timeless[1]


def test_a_checkpoint_of_another_run_is_refused(tmp_path):
    runtime = RuntimeSpec(out=str(tmp_path))
    small_trainer(small_model(), [HEAD], runtime=runtime, checkpoints=checkpoints(tmp_path)).fit()
    runtime = RuntimeSpec(out=str(tmp_path), resume=True)
    other = checkpoints(tmp_path, {"recipe": "b"})
    trainer = small_trainer(small_model(), [HEAD], runtime=runtime, checkpoints=other)
    with pytest.raises(CheckpointError, match="belong to another run: recipe was 'a' and is 'b'"):
        trainer.fit()


def test_bfloat16_weights_train_on_float32_masters():
    """At a rate of 1e-4 a bfloat16 weight of 1 would never move: its spacing there is 2**-8."""
    model = small_model(dropout=0.0, dtype="bfloat16")
    before = weights(model)["block1/norm/gamma"].astype(np.float32)
    small_trainer(
        model,
        [Phase(train=".*", steps=100, learning_rate=1e-3, warmup="0%", schedule="constant")],
        optimizer=OptimizerSpec(name="adam"),
    ).fit()
    after = weights(model)["block1/norm/gamma"].astype(np.float32)
    assert np.abs(after - before).max() > 2**-6
    assert small_forward(model).variables["block1/norm/gamma"].dtype == "bfloat16"


def test_the_best_weights_of_an_earlier_phase_come_back_whole():
    model = small_model()
    scores = iter([0.5, 0.9, 0.8, 0.7])
    seen = []

    def evaluate(values):
        seen.append({name: np.array(value) for name, value in values.items()})
        return {"accuracy": next(scores), "loss": 1.0}

    later = Phase(train="block1/.*", epochs=2, learning_rate=0.05, warmup="0%")
    small_trainer(model, [HEAD, later], evaluate=evaluate, runtime=RuntimeSpec()).fit()
    assert_equal({name: seen[1][name] for name in weights(model)}, weights(model))


def test_the_newest_checkpoints_and_the_best_are_kept_also_after_resuming(tmp_path):
    plan = [Phase(train=".*", epochs=8, learning_rate=0.05, warmup="0%")]
    scores = [0.1, 0.9, 0.2, 0.3, 0.3, 0.2, 0.1, 0.4]

    def tune(batches, *, resume):
        runtime = RuntimeSpec(out=str(tmp_path), resume=resume)
        left = iter(scores[4:] if resume else scores)
        small_trainer(
            small_model(),
            plan,
            runtime=runtime,
            batches=batches,
            checkpoints=checkpoints(tmp_path),
            evaluate=lambda values: {"accuracy": next(left), "loss": 1.0},
        ).fit()

    with pytest.raises(OSError, match="killed"):
        tune(StopsAfter(13, OSError("killed")), resume=False)
    tune(Rows(), resume=True)
    # Three steps a pass: the best was the second, the newest are the seventh and the eighth.
    kept = sorted(int(path.name) for path in tmp_path.iterdir() if path.name.isdigit())
    assert kept == [6, 21, 24]
