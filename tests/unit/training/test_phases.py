"""What a phase can ask for: rates by part, an optimizer, statistics, pulls, its best handed on."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.unit.training.small import Rows, small_forward, small_model, small_trainer, weights
from tunekit.plans.optimizer import OptimizerSpec
from tunekit.plans.phase import Phase
from tunekit.training.forgetting import anchor_names, mixed_out
from tunekit.training.programs import Programs
from tunekit.training.spec import RuntimeSpec

SGD = OptimizerSpec(name="sgd", momentum=0.0, weight_decay=0.0)
NORM = "block1/norm"


def phase(train: str = ".*", **changes: Any) -> Phase:
    defaults = {"steps": 3, "learning_rate": 0.05, "warmup": "0%", "schedule": "constant"}
    return Phase(train=train, **(defaults | changes))


def moved(before: dict[str, np.ndarray], after: dict[str, np.ndarray], name: str) -> np.ndarray:
    return after[name] - before[name]


def trained(plan: list[Phase], **changes: Any):
    model = small_model()
    before = weights(model)
    result = small_trainer(model, plan, **changes).fit()
    return before, weights(model), result


def test_a_multiplier_scales_the_step_of_its_variables_alone():
    before, plain, _ = trained([phase(steps=1, optimizer=SGD)])
    plan = [phase(steps=1, optimizer=SGD, multipliers={"block1/dense/.*": 0.25})]
    _, scaled, _ = trained(plan)
    for name in ("block1/dense/kernel", "block1/dense/bias"):
        expected = 0.25 * moved(before, plain, name)
        # One rounding of w - rate * g each; the gradients are the same bits.
        np.testing.assert_allclose(moved(before, scaled, name), expected, atol=2e-7)
    np.testing.assert_array_equal(scaled["block2/dense/kernel"], plain["block2/dense/kernel"])


def test_rates_by_part_need_no_program_of_their_own():
    plan = [phase(), phase(multipliers={"block1/.*": 0.1}), phase(learning_rate=0.01)]
    assert trained(plan)[2].compiles == 1


def test_four_phases_of_three_partitions_compile_three_steps():
    plan = [phase("head/.*"), phase(".*"), phase("head/.*"), phase("block2/.*")]
    _, _, result = trained(plan)
    assert result.compiles == 3
    assert [row["phase"] for row in result.history] == [0, 1, 2, 3]
    assert [record["label"] for record in result.phases] == [
        "head/.*",
        ".*",
        "head/.*",
        "block2/.*",
    ]
    assert [record["steps"] for record in result.phases] == [3, 3, 3, 3]


def test_the_next_step_is_compiled_while_the_present_phase_runs():
    trainer = small_trainer(small_model(), [phase("head/.*"), phase(".*")])
    seen = []

    def note(*args: Any, **kwargs: Any) -> None:
        seen.append((trainer._state.progress.phase, len(trainer.programs)))

    trainer.reporter.step = note
    assert trainer.fit().compiles == 2
    assert (0, 2) in seen, "both programs were begun in the first phase"


def test_a_step_lowered_from_shapes_is_the_step_lowered_from_values():
    ahead = small_trainer(small_model(), [phase("head/.*"), phase(".*", l2_sp=0.1)])
    ahead.fit()
    alone = small_trainer(small_model(), [phase("head/.*"), phase(".*", l2_sp=0.1)])
    alone.programs.prepare = lambda index: None
    alone.fit()
    left, right = weights(ahead.forward.model), weights(alone.forward.model)
    for name, value in left.items():
        np.testing.assert_array_equal(value, right[name], err_msg=name)


def test_moments_survive_a_rate_or_decay_of_the_phases_own_but_not_another_rule():
    adam = OptimizerSpec(name="adamw", weight_decay=0.3)
    for optimizer, survives in ((adam, True), (SGD, False)):
        trainer = small_trainer(small_model(), [phase(), phase(optimizer=optimizer)])
        states = []
        entered = trainer.next_phase

        def next_phase(state, entered=entered, states=states):
            states.append(jax.tree.map(np.array, state.carried.optimizer))
            state = entered(state)
            states.append(jax.tree.map(np.array, state.carried.optimizer))
            return state

        trainer.next_phase = next_phase
        trainer.fit()
        before, after = (jax.tree.leaves(state) for state in states)
        same = len(before) == len(after) and all(map(np.array_equal, before, after))
        assert same is survives


def test_l2_sp_adds_its_closed_form_to_the_gradient():
    plan = [phase("block.*", steps=1, optimizer=SGD, learning_rate=0.1)]
    start = [phase("block.*", steps=2, optimizer=SGD)]
    model = small_model()
    anchor = weights(model)
    small_trainer(model, start).fit()
    # Away from the anchor the first step pulls; a fresh trainer's anchor would be the model itself.
    before = weights(model)
    plain, pulled = (one_step(before, anchor, plan, strength) for strength in (0.0, 0.5))
    for name in ("block1/dense/kernel", "block2/dense/kernel"):
        expected = plain[name] - 0.1 * 0.5 * (before[name] - anchor[name])
        np.testing.assert_allclose(pulled[name], expected, atol=1e-6)


def one_step(before, anchor, plan, strength):
    model = small_model()
    forward = small_forward(model)
    forward.assign({name: jnp.asarray(value) for name, value in before.items()})
    trainer = small_trainer(model, [phase(**{**vars(plan[0]), "l2_sp": strength})])
    values = {name: jnp.asarray(value) for name, value in anchor.items()}
    trainer.programs.__dict__["anchors"] = forward.values() | values
    trainer.fit()
    return weights(model)


def test_mixout_keeps_the_mean_and_takes_the_anchor_as_often_as_asked():
    w, w0 = jnp.full((200, 200), 3.0), jnp.full((200, 200), 1.0)
    mixed = np.asarray(mixed_out(jax.random.key(0), {"w": w}, {"w": w0}, 0.25)["w"])
    # Lee et al. 2020, eq. 5: the anchor, or stretched about it: 1 + (3 - 1) / 0.75.
    values, counts = np.unique(mixed, return_counts=True)
    np.testing.assert_allclose(values, [1.0, 1 + 2 / 0.75], rtol=1e-6)
    # Binomial of 40,000: a standard deviation of 0.0022.
    assert abs(counts[0] / mixed.size - 0.25) < 0.011
    assert abs(mixed.mean() - 3.0) < 0.03


def test_mixout_trains_and_leaves_no_anchor_in_the_weights():
    before, after, result = trained([phase(mixout=0.5, steps=6)])
    _, plain, _ = trained([phase(steps=6)])
    name = "block1/dense/kernel"
    assert np.isfinite(result.history[-1]["loss"])
    assert np.all(after[name] != before[name])
    assert not np.array_equal(after[name], plain[name])


def test_the_head_has_no_anchor():
    names = frozenset({"heads/label/logits/kernel", "backbone/conv/kernel"})
    assert anchor_names(names) == ["backbone/conv/kernel"]


@pytest.mark.parametrize(
    ("policy", "train", "moves"),
    [
        ("follow", "head/.*", False),
        ("follow", ".*", True),
        ("frozen", ".*", False),
        ("running", "head/.*", True),
    ],
)
def test_statistics_move_as_the_policy_says(policy, train, moves):
    before, after, _ = trained([phase(train, batch_norm=policy)])
    assert np.any(moved(before, after, f"{NORM}/moving_mean")) == moves
    assert np.any(moved(before, after, f"{NORM}/moving_variance")) == moves


def test_reestimated_statistics_are_those_of_the_training_data():
    model = small_model()
    before = weights(model)
    plan = [phase("block1/norm/.*|head/.*", steps=1, learning_rate=1e-9, batch_norm="reestimated")]
    trainer = small_trainer(model, plan)
    seen = {}
    trainer.feeds[0].__dict__["open"] = opened(trainer, seen)
    trainer.fit()
    rows = Rows()
    x = np.concatenate([batch["x"] for batch in rows.epoch(0)]).astype(np.float64)
    size = np.concatenate([np.full(8, b["weight"].sum()) for b in rows.epoch(0)])
    # The last batch has padded rows, which its statistics see: batches weigh by their examples.
    y = x @ before["block1/dense/kernel"] + before["block1/dense/bias"]
    mean = np.average(y, axis=0, weights=size)
    variance = np.average(y**2, axis=0, weights=size) - mean**2
    # float32 moments of 24 rows.
    np.testing.assert_allclose(seen["block1/norm/moving_mean"], mean, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(seen["block1/norm/moving_variance"], variance, rtol=1e-5)
    np.testing.assert_array_equal(
        seen["block2/norm/moving_mean"], before["block2/norm/moving_mean"]
    )


def opened(trainer, seen):
    """Notes the values with which a phase opens its data the last time: those it begins with."""
    original = trainer.feeds[0].open

    def open_(values):
        seen.update({name: np.array(value) for name, value in values.items()})
        return original(values)

    return open_


def test_frozen_dropout_acts_where_nothing_trains_if_asked():
    quiet = trained([phase("head/.*", learning_rate=1e-9)])[2].history
    noisy = trained([phase("head/.*", learning_rate=1e-9, frozen_dropout=True)])[2].history
    assert quiet[0]["loss"] != noisy[0]["loss"]


def test_a_phase_that_waits_for_a_plateau_hands_its_best_weights_on():
    scores = iter([0.5, 0.9, 0.8, 0.7, 0.1, 0.1])
    seen = []

    def evaluate(values):
        seen.append({name: np.array(value) for name, value in values.items()})
        return {"accuracy": next(scores), "loss": 1.0}

    plan = [
        phase(steps=None, epochs=6, early_stopping=2),
        phase("head/.*", steps=None, epochs=1, learning_rate=1e-9),
    ]
    _, after, result = trained(plan, evaluate=evaluate, runtime=RuntimeSpec(restore_best=False))
    assert result.phases[0]["stopped_early"]
    assert result.phases[0]["best_score"] == 0.9
    for name in ("block1/dense/kernel", "block1/norm/moving_mean"):
        np.testing.assert_array_equal(after[name], seen[1][name])


def testprograms_of_one_partition_differ_where_what_is_traced_does():
    plan = [phase(), phase(batch_norm="frozen"), phase(mixout=0.1), phase(optimizer=SGD), phase()]
    trainer = small_trainer(small_model(), plan)
    programs: Programs = trainer.programs
    assert len(set(programs.keys)) == 4
