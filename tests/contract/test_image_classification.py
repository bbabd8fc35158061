"""What holds for image classification with every family and every way to train."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import numpy as np
import pytest

import tunekit
from tests.contract.families import FAMILIES, LABELS, images
from tunekit import Phase, Recipe, RuntimeSpec, finetune, run
from tunekit.models.model import Model
from tunekit.models.selection import resolve_selection
from tunekit.names import variable_roles

METHODS: dict[str, dict[str, Any]] = {
    "head": {"method": "head"},
    "full": {"train": "all"},
    "partial": {"train": ["head", "last 1"]},
    "lp_ft": {
        "plan": [
            Phase(train="head", epochs=1, learning_rate=1e-2),
            Phase(train="all", epochs=1, learning_rate=1e-3),
        ]
    },
    "norm": {"train": ["head", "norm", "!heads/.*bias"]},
}
QUICK: dict[str, Any] = {"batch_size": 8, "progress": "none", "validation": 0.0, "seed": 3}

every_family = pytest.mark.parametrize("family", FAMILIES)
every_method = pytest.mark.parametrize("method", METHODS)


def tune(model: Model, method: str, **changes: Any) -> tunekit.Result:
    keywords = {"epochs": 2, "learning_rate": 1e-2, **METHODS[method], **QUICK, **changes}
    if "plan" in keywords:
        del keywords["epochs"], keywords["learning_rate"]
    return finetune(model, images(), **keywords)


def values(model: Model) -> dict[str, np.ndarray]:
    roles = variable_roles(model.keras)
    named = model.variables().items()
    return {name: np.array(v.value) for name, v in named if roles[name] != "seed"}


def assert_equal(left: dict[str, np.ndarray], right: dict[str, np.ndarray]) -> None:
    assert left.keys() == right.keys()
    for name in left:
        np.testing.assert_array_equal(left[name], right[name], err_msg=name)


def moving(model: Model, method: str) -> set[str]:
    """Names of everything that the method may move: weights, and statistics beside them."""
    plan = METHODS[method].get("plan")
    selectors = [p.train for p in plan] if plan else [METHODS[method].get("train", "head")]
    weights = set().union(*(resolve_selection(s, model) for s in selectors))
    roles = variable_roles(model.keras)
    layers = {name.rpartition("/")[0] for name in weights}
    return weights | {
        name
        for name, role in roles.items()
        if role == "statistic" and name.rpartition("/")[0] in layers
    }


@every_family
@every_method
def test_what_is_frozen_is_bit_identical_and_what_trains_moves(family, method):
    model = FAMILIES[family]()
    before, may_move = values(model), moving(model, method)
    tune(model, method)
    after = values(model)
    for name in before.keys() - may_move:
        np.testing.assert_array_equal(before[name], after[name], err_msg=name)
    stuck = [n for n in may_move if np.array_equal(before[n], after[n]) and _gets_gradient(n)]
    assert not stuck


def _gets_gradient(name: str) -> bool:
    """All but what cannot: a bias before a norm or a softmax, and DINOv2's uninterpolated table."""
    unmoved = ("key/bias", "key_dense/bias", "conv2d/bias", "embeddings/position_embeddings")
    return not name.endswith(unmoved)


@every_family
def test_training_learns_what_the_images_show(family):
    history = tune(FAMILIES[family](), "full", epochs=6).history
    assert history[-1]["loss"] < history[0]["loss"]


@every_family
def test_two_runs_with_one_seed_are_bitwise_equal_and_another_seed_is_not(family):
    models = [FAMILIES[family]() for _ in range(3)]
    for model, seed in zip(models, (3, 3, 4), strict=True):
        tune(model, "full", epochs=1, seed=seed)
    assert_equal(values(models[0]), values(models[1]))
    assert any(
        not np.array_equal(value, values(models[2])[name])
        for name, value in values(models[0]).items()
    )


@pytest.mark.parametrize("family", ["dinov2", "plain_cnn"])
def test_micro_batches_equal_one_batch(family):
    """Without dropout and batch statistics, whose values rightly depend on the micro-batch."""
    results = []
    for accumulate in (1, 4):
        model = FAMILIES[family]()
        plan = [Phase(train="head", epochs=2, learning_rate=1e-2)]
        recipe = Recipe(
            plan=plan,
            optimizer=tunekit.OptimizerSpec(name="sgd"),
            batch=tunekit.BatchSpec(size=8, accumulate=accumulate),
            runtime=RuntimeSpec(progress="none"),
        )
        run(recipe, model=model, data={"train": images()})
        results.append(values(model))
    for name in results[0]:
        # The gradients are summed in another order.
        np.testing.assert_allclose(results[0][name], results[1][name], atol=1e-6, err_msg=name)


@every_family
def test_a_saved_result_predicts_the_same_bits_after_loading(family, tmp_path):
    result = tune(FAMILIES[family](), "full", epochs=1)
    result.save(tmp_path / "out")
    loaded = tunekit.load(tmp_path / "out")
    pixels, _ = images(5, seed=9)
    np.testing.assert_array_equal(result.model.logits(pixels), loaded.model.logits(pixels))
    assert_equal(values(result.model), values(loaded.model))
    assert result.predict(pixels) == loaded.predict(pixels)


@pytest.mark.parametrize("family", ["resnet", "vit"])
def test_a_new_process_predicts_the_same_bits_without_tensorflow(family, tmp_path):
    result = tune(FAMILIES[family](), "head", epochs=1)
    result.save(tmp_path / "out")
    pixels, _ = images(5, seed=9)
    np.save(tmp_path / "pixels.npy", pixels)
    script = (
        "import sys, numpy as np, tunekit;"
        f"model = tunekit.load({str(tmp_path / 'out')!r}).model;"
        f"logits = model.logits(np.load({str(tmp_path / 'pixels.npy')!r}));"
        f"np.save({str(tmp_path / 'logits.npy')!r}, logits);"
        "sys.exit('TensorFlow was imported' if 'tensorflow' in sys.modules else 0)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    np.testing.assert_array_equal(np.load(tmp_path / "logits.npy"), result.model.logits(pixels))


@every_family
def test_an_error_in_training_leaves_the_model_and_its_head_as_they_were(family, monkeypatch):
    model = FAMILIES[family]()
    before = values(model)
    pixels, _ = images()
    names = ["cat", "dog"] * (len(pixels) // 2)
    from tunekit.data.pipeline import Batches

    whole = Batches.epoch

    def breaks(self, epoch, start_step=0):
        for number, batch in enumerate(whole(self, epoch, start_step)):
            if self.shuffle and number == 1:
                raise OSError("the disk is gone")
            yield batch

    monkeypatch.setattr(Batches, "epoch", breaks)
    with pytest.raises(OSError, match="the disk is gone"):
        finetune(model, (pixels, names), epochs=1, **QUICK)
    assert model.labels == LABELS
    assert_equal(before, values(model))
    assert np.isfinite(model.logits(pixels)).all()


@every_family
def test_resuming_equals_the_uninterrupted_run(family, tmp_path, monkeypatch):
    keywords = {"epochs": 3, "validation": 0.3, "ema": 0.5}
    whole = tune(FAMILIES[family](), "full", out=tmp_path / "whole", **keywords)

    from tunekit.training.trainer import Trainer

    end_pass = Trainer.end_pass

    def killed(self, state, epoch, *rest):
        end_pass(self, state, epoch, *rest)
        if epoch == 1:
            raise OSError("killed")

    monkeypatch.setattr(Trainer, "end_pass", killed)
    with pytest.raises(OSError, match="killed"):
        tune(FAMILIES[family](), "full", out=tmp_path / "killed", **keywords)
    monkeypatch.undo()
    resumed = tune(FAMILIES[family](), "full", out=tmp_path / "killed", resume=True, **keywords)
    assert_equal(values(whole.model), values(resumed.model))
    assert whole.metrics == resumed.metrics


def test_the_call_the_recipe_and_its_yaml_give_the_same_bits(tmp_path):
    data = images()
    model = FAMILIES["resnet"]()
    called = finetune(model, data, train=["head", "last 1"], epochs=2, **QUICK)
    written = tmp_path / "recipe.yaml"
    called.recipe.save(written)
    again = FAMILIES["resnet"]()
    run(Recipe.load(written), model=again, data=data)
    assert_equal(values(model), values(again))
