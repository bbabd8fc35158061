"""A plan written out before training: the phases, the YAML that runs, the picture."""

from __future__ import annotations

from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

import tunekit
from tunekit import plans
from tunekit.data.spec import AugmentSpec, BatchSpec, DataSpec
from tunekit.errors import DataError, RecipeError, SelectionError
from tunekit.models.depth import Group
from tunekit.models.spec import BackboneSpec, HeadSpec
from tunekit.plans.optimizer import OptimizerSpec
from tunekit.plans.phase import Phase
from tunekit.preview import Preview, _count, _percent, plan_preview, trained_groups
from tunekit.recipe import Recipe
from tunekit.training.spec import RuntimeSpec

BACKBONE = BackboneSpec(image_size=32)
BUILDERS = (
    plans.head_only(),
    plans.lp_ft(),
    plans.gradual_unfreeze(portions=None),
    plans.gradual_unfreeze(direction="bottom_up"),
    plans.chain_thaw(),
    plans.surgical(2),
    plans.ulmfit(),
    plans.layer_decay(0.75),
    plans.discriminative(1e-5, 1e-3),
    plans.alternating(),
    plans.bit_fit(),
    plans.norm_only(),
)


@pytest.fixture(scope="module")
def every_builder() -> Preview:
    return plan_preview(Recipe(backbone=BACKBONE, plan=BUILDERS), examples=100)


def reloaded(preview: Preview, folder: Path) -> Recipe:
    (folder / "plan.yaml").write_text(preview.to_yaml(), encoding="utf-8")
    return Recipe.load(folder / "plan.yaml")


def test_the_yaml_is_a_recipe_of_phases_alone_that_says_the_same(every_builder, tmp_path):
    recipe = reloaded(every_builder, tmp_path)
    assert recipe == every_builder.recipe
    assert all(isinstance(phase, Phase) for phase in recipe.plan)
    again = plan_preview(recipe, examples=100)
    for ours, theirs in zip(every_builder.phases, again.phases, strict=True):
        assert ours.trainable == theirs.trainable and ours.multipliers == theirs.multipliers
        assert np.array_equal(ours.learning_rates, theirs.learning_rates)
    assert again.to_yaml() == every_builder.to_yaml()


def test_whatever_a_recipe_says_is_in_its_yaml(tmp_path):
    recipe = Recipe(
        seed=3,
        backbone=BACKBONE,
        data=DataSpec(labels=("a", "b", "c"), max_examples=7),
        head=HeadSpec(kind="mlp", hidden=(8,)),
        augment=AugmentSpec(horizontal_flip=True),
        optimizer=OptimizerSpec("sgd", clip_norm=1.0),
        batch=BatchSpec(size=8),
        runtime=RuntimeSpec(out="runs/x", restore_best=False),
        plan=(
            Phase("head", steps=7, warmup="2 steps", early_stopping=2, batch_norm="frozen"),
            Phase(
                "all",
                epochs=1,
                optimizer=OptimizerSpec("lion"),
                batch=BatchSpec(size=4),
                frozen_dropout=True,
                l2_sp=0.1,
            ),
        ),
    )
    preview = plan_preview(recipe, examples=20)
    assert preview.recipe == recipe == reloaded(preview, tmp_path)


EXPLAINED = """\
# efficientnet_lite0: 2 phases, 3 epochs, 100 training examples

backbone:
  name: efficientnet_lite0
  image_size: 32

data:
  path: null

plan:
  # phase 1: head, 2.6 k parameters, 0.07 %; 1 epoch, 4 steps
  - train: head
    epochs: 1.0
    learning_rate: 0.01
    schedule: cosine
  # phase 2: all, 3.5 M parameters, 100 %; 2 epochs, 8 steps
  - train: all
    steps: 8
    learning_rate: 0.001
    schedule: constant
    early_stopping: 2
"""


def test_the_yaml_explains_each_phase_and_leaves_defaults_out():
    plan = (
        Phase("head", epochs=1, learning_rate=0.01),
        Phase(steps=8, schedule="constant", early_stopping=2),
    )
    recipe = Recipe(backbone=BACKBONE, plan=plan)
    assert plan_preview(recipe, examples=100).to_yaml() == EXPLAINED


def test_the_table_has_one_line_a_phase():
    plan = (
        Phase("head", epochs=1),
        Phase(("last 2", "!norm"), steps=6, learning_rate=1e-4, multipliers={"top": 0.5}),
    )
    table = plan_preview(Recipe(backbone=BACKBONE, plan=plan), examples=100).table()
    head, rows = table.splitlines()[0], [line.split("  ") for line in table.splitlines()[1:]]
    assert head.split()[:4] == ["phase", "trains", "parameters", "share"]
    told = [[cell.strip() for cell in row if cell] for row in rows]
    assert told[0] == ["1", "head", "2.6 k", "0.07 %", "1 epoch, 4 steps", "0.001", "cosine"]
    assert told[1][1] == "parts of blocks[14:], top"
    assert told[1][4:] == ["1.5 epochs, 6 steps", "5e-05 to 0.0001", "cosine"]


def test_a_phase_with_a_batch_of_its_own_has_other_epochs():
    plan = (Phase(steps=5), Phase(steps=5, batch=BatchSpec(size=50)))
    preview = plan_preview(Recipe(backbone=BACKBONE, plan=plan), examples=100)
    assert preview.epochs == (1.25, 2.5)


def test_without_a_number_of_examples_lengths_are_in_epochs():
    preview = plan_preview(Recipe(backbone=BACKBONE, plan=(Phase(epochs=2.5),)))
    assert preview.epochs == (2.5,)
    assert "steps" not in preview.table() + preview.to_yaml()


def test_steps_without_a_number_of_examples_are_refused_all_at_once():
    plan = (Phase(steps=9), Phase(epochs=1), Phase(epochs=9, warmup="3 steps"))
    with pytest.raises(RecipeError, match="how many make an epoch") as caught:
        plan_preview(Recipe(backbone=BACKBONE, plan=plan))
    assert [issue.path for issue in caught.value.issues] == ["plan[0].steps", "plan[2].warmup"]


def test_data_that_the_recipe_names_says_how_many_examples_and_labels(tmp_path):
    rng = np.random.default_rng(0)
    for label in ("ash", "elm", "oak"):
        (tmp_path / label).mkdir()
        for index in range(4):
            pixels = rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / label / f"{index}.png")
    data = DataSpec(path=str(tmp_path), validation_fraction=0.25)
    recipe = Recipe(backbone=BACKBONE, data=data, batch=BatchSpec(size=3), plan=(Phase(steps=6),))
    preview = plan_preview(recipe)
    assert (preview.examples, preview.epochs) == (9, (2.0,))
    assert preview.model.labels == ("ash", "elm", "oak")


def test_the_picture_is_written_where_it_is_asked_for(tmp_path):
    path = tmp_path / "plots" / "plan.png"
    plan_preview(Recipe(backbone=BACKBONE, plan=(plans.lp_ft(),)), path=path)
    with Image.open(path) as image:
        assert image.format == "PNG"


def test_no_pretrained_weights_are_read():
    preview = tunekit.plan_preview("vision/linear_probe")
    assert preview.model.backbone.pretrained_head is None
    assert preview.trained == {"heads/label/logits/kernel", "heads/label/logits/bias"}


@pytest.mark.parametrize(
    ("recipe", "keywords", "error", "message"),
    [
        (Recipe(plan=(Phase(epochs=1),)), {"examples": 0}, RecipeError, "at least 1, got 0"),
        (
            Recipe.from_keywords(model=object(), data=None, epochs=1),
            {},
            RecipeError,
            "backbone.name: the recipe was made for a model in memory",
        ),
        (
            Recipe(backbone=BACKBONE, plan=(Phase("head", epochs=1), Phase("last 99", epochs=1))),
            {},
            SelectionError,
            r"plan\[1\].train: 'last 99' asks for more blocks",
        ),
        (
            Recipe(backbone=BACKBONE, plan=(plans.surgical(99),)),
            {},
            SelectionError,
            r"plan\[0\].block.*99",
        ),
        (Recipe(data=DataSpec(path="nowhere"), plan=(Phase(epochs=1),)), {}, DataError, "no such"),
        ("vision/lp_fd", {}, RecipeError, "Did you mean 'vision/lp_ft'"),
    ],
    ids=["no examples", "in memory", "selector", "builder", "data", "name"],
)
def test_what_cannot_be_previewed_says_why(recipe, keywords, error, message):
    with pytest.raises(error, match=message):
        plan_preview(recipe, **keywords)


GROUPS = tuple(
    Group(name, kind, (f"{name}/kernel", f"{name}/bias"), (), None, 2, weights)
    for name, kind in [
        ("stem", "stem"),
        *((f"blocks[{i}]", "block") for i in range(4)),
        ("top", "top"),
        ("heads/label", "head"),
    ]
    for weights in [(f"{name}/kernel", f"{name}/bias") if name != "blocks[2]" else ()]
)


@pytest.mark.parametrize(
    ("whole", "text"),
    [
        ("", "nothing"),
        ("heads/label", "head"),
        ("stem blocks[0] blocks[1] blocks[3] top", "backbone"),
        ("stem blocks[0] blocks[1] blocks[3] top heads/label", "all"),
        ("blocks[0] blocks[1] blocks[3]", "blocks"),
        ("blocks[1] blocks[3] top heads/label", "blocks[1:] + top + head"),
        ("stem blocks[0] blocks[1]", "stem + blocks[:2]"),
        ("blocks[0] blocks[3]", "blocks[0] + blocks[3]"),
    ],
)
def test_what_trains_is_said_in_the_fewest_selectors(whole, text):
    names = {f"{group}/{leaf}" for group in whole.split() for leaf in ("kernel", "bias")}
    assert trained_groups(names, GROUPS) == text


def test_groups_of_which_a_part_trains_are_told_apart():
    biases = {f"{group.name}/bias" for group in GROUPS if group.weights}
    assert trained_groups(biases, GROUPS) == "parts of all"
    assert trained_groups({*biases, "heads/label/kernel"}, GROUPS) == "head + parts of backbone"
    some = {"blocks[1]/bias", "blocks[3]/bias", "stem/bias"}
    assert trained_groups(some, GROUPS) == "parts of stem, blocks[1:]"


@pytest.mark.parametrize(
    ("number", "text"),
    [(0, "0"), (999, "999"), (1000, "1.0 k"), (23_640, "23.6 k"), (999_960, "1.0 M")]
    + [(5_300_000, "5.3 M"), (137_000_000, "137 M"), (7_200_000_000, "7.2 G")],
)
def test_parameters_are_counted_in_three_digits(number, text):
    assert _count(number) == text


@pytest.mark.parametrize(
    ("share", "text"),
    [(0, "0 %"), (0.0007, "0.07 %"), (0.096, "10 %"), (0.41, "41 %"), (1, "100 %")]
    + [(0.9991, "over 99 %")],
)
def test_only_all_of_a_model_is_a_hundred_percent(share, text):
    assert _percent(share) == text


def test_a_model_that_no_memory_holds_is_previewed() -> None:
    recipe = Recipe(backbone="llama3_70b", method="lora", plan=[{"epochs": 1}])
    preview = plan_preview(recipe, examples=320)
    values = [variable.value for variable in preview.model.variables().values()]
    assert all(isinstance(value, jax.ShapeDtypeStruct) for value in values)
    # Of 80 blocks query and value, 8192 to 8192 and to 1024, by rank 8; and a head of two labels.
    lora = 80 * 8 * (8192 + 8192 + 8192 + 1024)
    assert sum(group.added for group in preview.groups) == lora
    assert "1 epoch, 10 steps" in preview.table()
