"""The recipe as a tree: one to one with YAML, with `finetune`'s keywords, and with a schema."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from tunekit import plans
from tunekit.data.spec import (
    AugmentSpec,
    BatchSpec,
    CacheSpec,
    DataSpec,
    MixedSpec,
    RandAugmentSpec,
)
from tunekit.errors import RecipeError
from tunekit.methods.spec import LoRA, Plain
from tunekit.models.spec import BackboneSpec, HeadSpec
from tunekit.plans.optimizer import OptimizerSpec
from tunekit.plans.phase import Phase
from tunekit.recipe import Recipe
from tunekit.recipe_keywords import AUGMENTS, IN_MEMORY
from tunekit.shipped import shipped_recipes
from tunekit.tasks.spec import ClassificationSpec, LanguageModellingSpec
from tunekit.training.spec import RuntimeSpec

SHIPPED = list(shipped_recipes())

# A value other than the default in every section.
RICH = Recipe(
    seed=7,
    backbone=BackboneSpec(name="resnet_50_imagenet", image_size=(96, 128), dtype="mixed_bfloat16"),
    data=DataSpec(path="photos", labels=("no", "1e-4", "null", "é: x"), max_examples=9),
    task=ClassificationSpec(multi_label=True, class_weights=(1.0, 2.0, 0.5, 1e-5)),
    head=HeadSpec(kind="mlp", hidden=(64, 32), dropout=0.1),
    augment=AugmentSpec(randaugment=RandAugmentSpec(3, 5.5), random_resized_crop=(0.25, 1.0)),
    plan=(
        Phase("head", epochs=0.5, learning_rate=1e-3),
        Phase(("head", "last 2"), steps=10, warmup="3 steps", early_stopping=2),
    ),
    optimizer=OptimizerSpec("sgd", clip_norm=1.0, ema=0.999),
    batch=BatchSpec(size=8, accumulate=2),
    runtime=RuntimeSpec(out="out dir", checkpoint_every=None),
)


def test_a_recipe_survives_yaml(tmp_path: Path) -> None:
    RICH.save(tmp_path / "rich.yaml")
    assert Recipe.load(tmp_path / "rich.yaml") == RICH
    assert Recipe.load(tmp_path / "rich.yaml").to_yaml() == RICH.to_yaml()


def test_a_recipe_cannot_be_changed() -> None:
    with pytest.raises(ValueError, match="frozen"):
        RICH.seed = 1  # pyright: ignore[reportAttributeAccessIssue]


def test_equal_recipes_hash_equal() -> None:
    assert hash(Recipe(plan=(Phase(epochs=1),))) == hash(Recipe(plan=(Phase(epochs=1.0),)))


def test_values_given_in_python_are_checked_as_those_of_a_file() -> None:
    with pytest.raises(
        RecipeError, match=r"2 mistakes:\n  seed: .*\n  plan\[0\].epochs: "
    ) as error:
        Recipe(seed="x", plan=(Phase(epochs="3"),))  # pyright: ignore[reportArgumentType]
    assert error.value.issues[1].path == "plan[0].epochs"


def test_values_that_yaml_has_no_word_for_are_refused() -> None:
    with pytest.raises(RecipeError, match="data.path: expected a plain value, .*got a object"):
        Recipe(data=DataSpec(path=object()), plan=(Phase(epochs=1),))  # pyright: ignore


def test_numpy_numbers_and_paths_are_plain_values() -> None:
    recipe = Recipe(
        seed=np.int64(3),  # pyright: ignore[reportArgumentType]
        data=DataSpec(path=Path("photos")),  # pyright: ignore[reportArgumentType]
        plan=(Phase(epochs=1, learning_rate=np.float64(0.5)),),
    )
    assert (recipe.seed, recipe.data.path, recipe.plan[0].learning_rate) == (3, "photos", 0.5)


def test_a_backbone_in_one_word_is_its_name(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text("plan: [{epochs: 1}]\nbackbone: resnet_50")
    assert Recipe.load(path).backbone == BackboneSpec(name="resnet_50")
    path.write_text("plan: [{epochs: 1}]\nbackbone: {name: resnet_50, dtype: bfloat16}")
    other = Recipe.load(path, ["backbone=llama3_8b", "backbone.blocks=2"])
    assert other.backbone == BackboneSpec(name="llama3_8b", dtype="bfloat16", blocks=2)
    with pytest.raises(RecipeError, match="backbone: expected a mapping of fields; got 3"):
        Recipe.load(path, ["backbone=3"])


def test_overrides_are_values_of_yaml_at_a_path() -> None:
    changes = ["plan.0.learning_rate=1e-4", "data.path=my photos", "augment.randaugment.num_ops=3"]
    recipe = Recipe.load("vision/full", changes)
    assert recipe.plan[0].learning_rate == 1e-4
    assert recipe.data.path == "my photos"
    assert recipe.augment.randaugment == RandAugmentSpec(num_ops=3)
    assert recipe.batch == Recipe.load("vision/full").batch


@pytest.mark.parametrize("name", SHIPPED)
def test_every_shipped_recipe_is_right_and_opens_with_its_command(name: str) -> None:
    shipped = shipped_recipes()[name]
    assert Recipe.load(name) == Recipe.load(shipped.path)
    lines = shipped.path.read_text(encoding="utf-8").splitlines()
    assert lines[0] == f"# {shipped.about}" and shipped.about.endswith(".")
    assert lines[1].startswith(f"# tunekit run {name} data.path=")
    assert lines[2] == f"# result: {shipped.result}"


def test_the_recipes_of_the_first_road_are_shipped() -> None:
    wanted = {"linear_probe", "partial", "lp_ft", "full", "from_scratch", "multi_label"}
    assert {f"vision/{name}" for name in wanted} <= set(SHIPPED)


def test_a_recipe_for_every_way_to_freeze_is_shipped() -> None:
    shipped = [Recipe.load(name) for name in SHIPPED if name.startswith("vision/freezing/")]
    items = [item for recipe in shipped for item in recipe.plan]
    built = {item.build for item in items if not isinstance(item, Phase)}
    # The other two have recipes that are phases: vision/linear_probe and vision/lp_ft.
    assert built == set(plans.__all__) - {"head_only", "lp_ft"}
    phases = [item for item in items if isinstance(item, Phase)]
    assert any(phase.l2_sp for phase in phases) and any(phase.mixout for phase in phases)


def test_the_schema_describes_every_field() -> None:
    schema = Recipe.json_schema()
    assert schema["properties"].keys() == Recipe.model_fields.keys()
    parts = {"Recipe": schema, **schema["$defs"]}
    undescribed = [
        f"{name}.{field}"
        for name, part in parts.items()
        for field, value in part["properties"].items()
        # pydantic leaves out a description that is word for word the section's own.
        if "description" not in value and "$ref" not in value
    ]
    assert undescribed == []
    assert all(part["additionalProperties"] is False for part in parts.values())


PLAIN = Recipe.from_keywords(model="m", data="d")


def test_keywords_say_the_same_as_a_recipe() -> None:
    recipe = Recipe.from_keywords(
        model="m",
        data=Path("d"),
        method="head",
        epochs=3,
        batch_size=8,
        label_smoothing=0.1,
        validation=0.3,
        image_size=96,
        seed=5,
    )
    assert recipe == Recipe(
        seed=5,
        backbone=BackboneSpec("m", image_size=96),
        data=DataSpec("d", validation_fraction=0.3),
        task=ClassificationSpec(label_smoothing=0.1),
        method="head",
        plan=(Phase(epochs=3, learning_rate=1e-3),),
        batch=BatchSpec(size=8),
    )


@pytest.mark.parametrize(
    ("keywords", "section", "expected"),
    [
        ({"task": "image_classification"}, "task", ClassificationSpec(name="image_classification")),
        ({"task": "sft", "template": "Q: {prompt}"}, "task",
         LanguageModellingSpec(template="Q: {prompt}")),
        ({"mix": [MixedSpec("old.txt", 0.2)]}, "data",
         DataSpec("d", mix=(MixedSpec("old.txt", 0.2),))),
        ({"text": "body", "label": "stars"}, "data",
         DataSpec("d", text_column="body", label_column="stars")),
        ({"task": ClassificationSpec(top_k=2)}, "task", ClassificationSpec(top_k=2)),
        ({"labels": ["a", "b"]}, "data", DataSpec("d", labels=("a", "b"))),
        ({"method": "head"}, "method", Plain("head")),
        ({"method": "dora"}, "method", LoRA(dora=True)),
        ({"method": LoRA(rank=2)}, "method", LoRA(rank=2)),
        ({"remat": "blocks"}, "runtime", RuntimeSpec(remat="blocks")),
        ({"head": "cosine"}, "head", HeadSpec("cosine")),
        ({"head": HeadSpec("mlp", hidden=(8,))}, "head", HeadSpec("mlp", hidden=(8,))),
        ({"optimizer": "lion"}, "optimizer", OptimizerSpec("lion")),
        ({"optimizer": OptimizerSpec("sgd", momentum=0.5)}, "optimizer",
         OptimizerSpec("sgd", momentum=0.5)),
        ({"weight_decay": 0}, "optimizer", OptimizerSpec(weight_decay=0.0)),
        ({"clip_norm": 1, "ema": 0.9}, "optimizer", OptimizerSpec(clip_norm=1.0, ema=0.9)),
        ({"batch_size": 4, "accumulate": 2, "balanced": True}, "batch",
         BatchSpec(4, accumulate=2, balanced=True)),
        ({"augment": "light"}, "augment", AUGMENTS["light"]),
        ({"augment": AugmentSpec(mixup=0.2)}, "augment", AugmentSpec(mixup=0.2)),
        ({"augment": {"mixup": 0.2}}, "augment", AugmentSpec(mixup=0.2)),
        ({"class_weights": np.array([1.0, 2.0])}, "task",
         ClassificationSpec(class_weights=(1.0, 2.0))),
        ({"precision": "mixed_bfloat16"}, "backbone", BackboneSpec("m", dtype="mixed_bfloat16")),
        ({"model": object()}, "backbone", BackboneSpec(IN_MEMORY)),
        ({"data": (np.zeros(3), [1])}, "data", DataSpec()),
        ({"cache": "disk"}, "cache", CacheSpec("disk")),
        ({"cache": CacheSpec("ram", dtype="float16")}, "cache", CacheSpec("ram", dtype="float16")),
        ({"validation": "held_out"}, "data", DataSpec("d", validation="held_out")),
        ({"out": "o", "resume": True, "progress": "none"}, "runtime",
         RuntimeSpec("o", resume=True, progress="none")),
        ({"train": ["head", "last 2"], "learning_rate": 1e-4}, "plan",
         (Phase(("head", "last 2"), epochs=5, learning_rate=1e-4),)),
        ({"train": "head"}, "plan", (Phase("head", epochs=5, learning_rate=1e-3),)),
        ({"schedule": "linear", "warmup": "2 steps", "early_stopping": 3}, "plan",
         (replace(PLAIN.plan[0], schedule="linear", warmup="2 steps", early_stopping=3),)),
        ({"plan": Phase(steps=3)}, "plan", (Phase(steps=3),)),
        ({"plan": [Phase(steps=3), {"epochs": 1}]}, "plan", (Phase(steps=3), Phase(epochs=1))),
        # What `finetune` passes where the caller says nothing.
        ({"plan": Phase(steps=3), "schedule": "cosine", "warmup": "5%", "epochs": None}, "plan",
         (Phase(steps=3),)),
        ({"task": ClassificationSpec(label_smoothing=0.1), "label_smoothing": 0}, "task",
         ClassificationSpec(label_smoothing=0.1)),
    ],
)  # fmt: skip
def test_each_keyword_is_one_field_of_the_recipe(
    keywords: dict[str, Any], section: str, expected: object
) -> None:
    recipe = Recipe.from_keywords(**{"model": "m", "data": "d", **keywords})
    assert getattr(recipe, section) == expected
    changed = {
        name for name in Recipe.model_fields if getattr(recipe, name) != getattr(PLAIN, name)
    }
    assert changed <= {section, "plan"}


@pytest.mark.parametrize(
    ("keywords", "expected"),
    [
        ({"epoch": 1}, "epoch: finetune has no such keyword. Did you mean 'epochs'?"),
        ({"batch_size": "8"}, 'batch_size: expected a whole number; got "8".'),
        ({"accumulate": 5}, "accumulate: size 32 does not divide into 5"),
        ({"learning_rate": -1}, "learning_rate: expected a number above 0; got -1."),
        ({"train": "hed"}, "train: 'hed' is no selector. Did you mean 'head'?"),
        ({"head": "lin"}, "Did you mean 'linear'?"),
        ({"augment": "ligth"}, "augment: expected 'light', or an AugmentSpec; got 'ligth'."),
        ({"resume": True}, "resume: there is no folder to resume from"),
        ({"cache": "dsk"}, "cache: expected 'auto', 'ram', 'disk' or 'off'; got \"dsk\"."),
        (
            {"learning_rate": slice(None)},
            "learning_rate: expected a number, slice(lo, hi) or slice",
        ),
        ({"learning_rate": slice(1e-5, 1e-3, 2)}, "got slice(1e-05, 0.001, 2)."),
        ({"learning_rate": slice(1, 0.1)}, "learning_rate: expected at most hi, 0.1, got 1; swap"),
        ({"learning_rate": slice(0.0)}, "learning_rate: expected a number above 0; got 0.0."),
        ({"learning_rate": slice(0.1), "schedule": "continue"}, "schedule: expected 'constant', "),
        ({"plan": None, "epochs": -1}, "epochs: expected a number above 0; got -1."),
        ({"plan": plans.ulmfit(), "epochs": 2}, "epochs: belongs to a phase, and plan gives"),
        (
            {"plan": plans.ulmfit(factor=0)},
            "plan[0].factor: expected a number of at least 1; got 0.",
        ),
        ({"plan": [Phase(epochs=1)], "epochs": 2}, "epochs: belongs to a phase, and plan gives"),
        ({"plan": [Phase(epochs=-1)]}, "plan[0].epochs: expected a number above 0; got -1."),
        (
            {"optimizer": OptimizerSpec("sgd"), "weight_decay": 0.5},
            "weight_decay: optimizer is a whole OptimizerSpec; say weight_decay in it.",
        ),
    ],
)
def test_a_mistaken_keyword_is_reported_by_its_own_name(
    keywords: dict[str, Any], expected: str
) -> None:
    with pytest.raises(RecipeError, match="1 mistake") as caught:
        Recipe.from_keywords(model="m", data="d", **keywords)
    assert expected in str(caught.value)


def test_every_mistaken_keyword_is_reported_at_once() -> None:
    with pytest.raises(RecipeError, match="3 mistakes"):
        Recipe.from_keywords(model="m", data="d", epoch=1, batch_size=0, learning_rate="fast")


BUILT = [
    plans.gradual_unfreeze(6, direction="bottom_up", portions=None),
    plans.chain_thaw(early_stopping=2),
    plans.lp_ft(epochs=8, head_epochs=2),
    plans.surgical(-1),
    plans.ulmfit(factor=2.0),
    plans.layer_decay(0.6, train=("all", "!norm"), warmup="1 epoch"),
    plans.discriminative(1e-5, 1e-3),
    plans.alternating(rounds=4),
    plans.bit_fit(),
    plans.norm_only(),
    plans.head_only(3),
]


def test_builders_and_phases_survive_yaml_side_by_side(tmp_path: Path) -> None:
    last = Phase("all", epochs=1, multipliers={"stem": 0.1, "blocks[0]": 0.5}, mixout=0.1)
    recipe = Recipe(plan=(*BUILT, last), cache=CacheSpec("off", views=2))
    recipe.save(tmp_path / "built.yaml")
    assert Recipe.load(tmp_path / "built.yaml") == recipe
    assert "  - build: gradual_unfreeze\n    epochs: 6.0\n" in recipe.to_yaml()


@pytest.mark.parametrize("builder", BUILT, ids=lambda builder: builder.build)
def test_a_builder_is_a_plan_by_itself(builder: Any) -> None:
    assert Recipe.from_keywords(model="m", data="d", plan=builder).plan == (builder,)


def test_a_builder_in_yaml_has_defaults_of_its_own(tmp_path: Path) -> None:
    path = tmp_path / "short.yaml"
    path.write_text("plan: [{build: gradual_unfreeze, epochs: 6}]")
    assert Recipe.load(path).plan == (plans.gradual_unfreeze(epochs=6),)
    changed = Recipe.load(path, ["plan.0.portions=2"])
    assert changed.plan == (plans.gradual_unfreeze(epochs=6, portions=2),)


@pytest.mark.parametrize("word", ["auto", "ram", "disk", "off"])
def test_a_word_alone_is_where_the_cache_is(tmp_path: Path, word: str) -> None:
    path = tmp_path / "cached.yaml"
    path.write_text(f"plan: [{{epochs: 1}}]\ncache: {word}")
    recipe = Recipe.load(path)
    assert recipe.cache == CacheSpec(word)  # pyright: ignore[reportArgumentType]
    recipe.save(path)
    assert Recipe.load(path) == recipe
    overrides = [f"cache={word}", "augment.horizontal_flip=false"]
    assert Recipe.load("vision/full", overrides).cache == recipe.cache


@pytest.mark.parametrize(
    ("rate", "expected"),
    [
        (slice(1e-5, 1e-3), plans.discriminative(1e-5, 1e-3, epochs=5)),
        (slice(1e-3), plans.discriminative(None, 1e-3, epochs=5)),
    ],
)
def test_a_slice_of_rates_is_a_discriminative_plan(rate: slice, expected: Any) -> None:
    assert Recipe.from_keywords(model="m", data="d", learning_rate=rate).plan == (expected,)


def test_a_slice_of_rates_goes_with_the_other_keywords_of_a_phase() -> None:
    recipe = Recipe.from_keywords(
        model="m",
        data="d",
        learning_rate=slice(1e-4, 1e-2),
        train=["head", "last 2"],
        epochs=3,
        schedule="one_cycle",
        warmup="2 steps",
        early_stopping=2,
    )
    assert recipe.plan == (
        plans.discriminative(
            1e-4,
            1e-2,
            epochs=3,
            train=("head", "last 2"),
            schedule="one_cycle",
            warmup="2 steps",
            early_stopping=2,
        ),
    )


def test_the_schema_takes_a_builder_by_its_name_and_a_word_for_the_cache() -> None:
    schema = Recipe.json_schema()
    items = {
        option["$ref"].rpartition("/")[2]
        for option in schema["properties"]["plan"]["items"]["oneOf"]
    }
    assert items == {"Phase", *(type(builder).__name__ for builder in BUILT)}
    assert {"enum": ["auto", "ram", "disk", "off"]} in schema["properties"]["cache"]["anyOf"]


def test_a_method_is_written_by_name_where_it_has_one_and_reads_back():
    for method, written in ((LoRA(dora=True), "method: dora"), (LoRA(rank=3), "rank: 3")):
        recipe = Recipe.from_keywords(model="m", data="d", method=method, quantize="nf4")
        assert written in recipe.to_yaml()
        assert Recipe._from_tree(yaml.safe_load(recipe.to_yaml()), []) == recipe
