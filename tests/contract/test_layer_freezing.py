"""Layer freezing with every family: computing the frozen part once changes nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tunekit
from tests.contract.families import FAMILIES, LABELS, images
from tunekit import AugmentSpec, CacheSpec, Phase, finetune, plans
from tunekit.errors import RecipeError
from tunekit.models.model import Model
from tunekit.training.trainer import Trainer

THAW_AND_REFREEZE = [
    Phase(train="head", epochs=2, learning_rate=1e-2),
    Phase(train=("head", "last 1"), epochs=2, learning_rate=1e-3),
    Phase(train="head", epochs=2, learning_rate=1e-3),
]
WAYS: dict[str, dict[str, Any]] = {
    "head": {"train": "head", "epochs": 3, "learning_rate": 1e-2},
    "last block": {"train": ["head", "last 1"], "epochs": 2, "learning_rate": 1e-3},
    "thaw and refreeze": {"plan": THAW_AND_REFREEZE},
    "one block": {"plan": plans.surgical(-1, epochs=2)},
}
every_family = pytest.mark.parametrize("family", FAMILIES)


def tune(family_or_model: str | Model, **changes: Any) -> tunekit.Result:
    model = family_or_model
    if isinstance(model, str):
        model = FAMILIES[model]()
    quick = {"batch_size": 8, "progress": "none", "validation": 0.25, "seed": 3}
    return finetune(model, images(24), **(quick | changes))


def starts(result: tunekit.Result) -> list[str | None]:
    """The layer after which each phase starts from the cache."""
    return [phase["start"] for phase in result.report["phases"]]


def assert_same_run(left: tunekit.Result, right: tunekit.Result) -> None:
    assert len(left.history) == len(right.history)
    for row, other in zip(left.history, right.history, strict=True):
        for key in ("loss", "val_loss"):
            # XLA fuses the two halves otherwise than the whole: float32 rounding, Adam's memory.
            np.testing.assert_allclose(row[key], other[key], rtol=2e-4, err_msg=str(row))


@every_family
@pytest.mark.parametrize("way", WAYS)
def test_cached_losses_equal_uncached_ones(family, way):
    plain = tune(family, cache="off", **WAYS[way])
    cached = tune(family, cache="ram", **WAYS[way])
    assert starts(plain) == [None] * len(starts(plain))
    assert None not in starts(cached)
    assert_same_run(plain, cached)
    assert cached.report["compiles"] == plain.report["compiles"]
    assert cached.report["audit"]["frozen"]["moved"] == []


def files(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_ino for path in folder.rglob("*.npy")}


def test_a_second_run_and_another_head_start_from_the_files_of_the_first(tmp_path):
    disk = CacheSpec("disk", folder=str(tmp_path))
    first = tune("vit", cache=disk, **WAYS["head"])
    written = files(tmp_path)
    assert len(written) == 2, "the training images' features and the validation images'"
    again = tune("vit", cache=disk, **WAYS["head"])
    tune("vit", cache=disk, head="mlp", **WAYS["head"])
    assert files(tmp_path) == written
    assert_same_run(first, again)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"validation": 0.5}, "other images"),
        ({"train": ["head", "last 1"]}, "another cut"),
        ({"cache": "float16"}, "another precision"),
    ],
)
def test_what_changes_the_features_is_not_taken_for_the_old_ones(tmp_path, change, why):
    spec = CacheSpec("disk", folder=str(tmp_path))
    tune("vit", cache=spec, **WAYS["head"])
    if change.get("cache") == "float16":
        change = {"cache": CacheSpec("disk", folder=str(tmp_path), dtype="float16")}
    tune("vit", **({"cache": spec} | WAYS["head"] | change))
    assert len(files(tmp_path)) == 4, why


def test_changed_weights_are_not_taken_for_the_old_ones(tmp_path):
    spec = CacheSpec("disk", folder=str(tmp_path))
    model = FAMILIES["vit"]()
    tune(model, cache=spec, **WAYS["head"])
    name = next(name for name in model.weight_names() if name.startswith("backbone/"))
    variable = model.variables()[name]
    variable.assign(variable.value + 1e-3)
    changed = tune(model, cache=spec, **WAYS["head"])
    assert len(files(tmp_path)) == 4
    assert starts(changed) == ["heads/label/pooling"]


def test_augmented_images_are_kept_in_as_many_views_as_asked():
    flips = AugmentSpec(horizontal_flip=True)
    way = {**WAYS["head"], "epochs": 4, "augment": flips}
    cached = tune("vit", cache=CacheSpec("ram", views=2), **way)
    plain = tune("vit", cache="off", **way)
    assert starts(cached) == ["heads/label/pooling"]
    # The first two passes see the same versions with the cache and without, the next two not.
    np.testing.assert_allclose(
        [row["loss"] for row in cached.history[:2]],
        [row["loss"] for row in plain.history[:2]],
        rtol=2e-4,
    )
    assert cached.history[2]["loss"] != plain.history[2]["loss"]


def test_why_nothing_is_cached_is_said():
    augmented = tune("vit", augment=AugmentSpec(horizontal_flip=True), **WAYS["head"])
    everything = tune("vit", train="all", epochs=2, learning_rate=1e-3)
    reasons = [result.report["phases"][0]["reason"] for result in (augmented, everything)]
    assert "cache.views" in reasons[0]
    assert reasons[1] == "the first layers train"


def test_a_cache_that_cannot_keep_anything_is_refused():
    with pytest.raises(RecipeError, match="keeps nothing: images are augmented anew"):
        tune("vit", augment=AugmentSpec(horizontal_flip=True), cache="ram", **WAYS["head"])


def test_four_phases_of_two_partitions_compile_two_steps():
    phase = {"epochs": 1, "learning_rate": 1e-3}
    plan = [Phase(train=train, **phase) for train in ("head", ("head", "last 1")) * 2]
    assert tune("resnet", plan=plan, cache="off").report["compiles"] == 2


def test_a_resumed_run_from_the_cache_equals_an_uninterrupted_one(tmp_path, monkeypatch):
    way = {"plan": THAW_AND_REFREEZE, "cache": "ram"}
    whole = tune("resnet", out=tmp_path / "whole", **way)
    end_pass = Trainer.end_pass

    def killed(self, state, epoch, *rest):
        end_pass(self, state, epoch, *rest)
        if epoch == 2:
            raise OSError("killed")

    monkeypatch.setattr(Trainer, "end_pass", killed)
    with pytest.raises(OSError, match="killed"):
        tune("resnet", out=tmp_path / "killed", **way)
    monkeypatch.undo()
    again = tune("resnet", out=tmp_path / "killed", resume=True, **way)
    assert [row["loss"] for row in again.history] == [row["loss"] for row in whole.history]
    assert [p["label"] for p in again.report["phases"]] == ["head", "head, last 1", "head"]


def test_a_new_head_on_a_model_in_hand_starts_from_the_features_in_memory():
    model = FAMILIES["resnet"]()
    tune(model, cache="ram", **WAYS["head"])
    kept = dict(model.features._kept)
    model.replace_head([*LABELS, "black"])
    again = tune(model, cache="ram", **WAYS["head"])
    assert again.report["phases"][0]["start"] == "heads/label/pooling"
    assert len(kept) == 2
    assert all(model.features._kept[key] is array for key, array in kept.items())


def test_a_model_that_the_run_loaded_gives_the_memory_back():
    result = finetune(
        "efficientnet_lite0",
        images(24),
        image_size=32,
        train="head",
        epochs=2,
        batch_size=8,
        progress="none",
    )
    assert result.report["phases"][0]["start"] is not None
    assert result.model.features is None
