"""A recipe in shapes only: the program of a real run, of nothing but shapes."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.contract import families, text_families
from tests.contract.text_families import LENGTH, write_rows
from tests.unit.models import tiny_folders
from tunekit.errors import ModelError, RecipeError
from tunekit.methods.spec import LoRA
from tunekit.models import catalogue
from tunekit.models.initialisation import has_shape_only, shapes_only
from tunekit.models.spec import BackboneSpec
from tunekit.planning.shapes import planned
from tunekit.ready_model import model_on
from tunekit.recipe import Recipe
from tunekit.recipe_keywords import IN_MEMORY
from tunekit.session import session
from tunekit.shipped import shipped_recipes
from tunekit.tasks.masked_lm import MaskedLM
from tunekit.training.programs import Programs

BATCH: dict[str, Any] = {"size": 4, "max_length": LENGTH}
PLAN = [{"epochs": 2, "learning_rate": 0.1}]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Small models of each family on disk, with their weights."""
    root = tmp_path_factory.mktemp("models")
    found = {name: write(root / name) for name, write in text_families.FAMILIES.items()}
    for name, config, tensors in (
        ("vit", tiny_folders.VIT, tiny_folders.vit_tensors()),
        ("resnet", tiny_folders.RESNET, tiny_folders.resnet_tensors()),
    ):
        (root / name).mkdir()
        found[name] = tiny_folders.write(root / name, config, tensors)
    return found


def steps_of(programs: Programs) -> list[str]:
    """The step of each phase as it goes to the compiler."""
    return [programs.lowered(index).as_text() for index in range(len(programs.phases))]


def of_a_run(recipe: Recipe, data: Any = None) -> list[str]:
    with session(recipe, data=data) as ready:
        trainer = ready.trainer()
        feeds, forward = trainer.feeds, ready.feeder.forward
        return steps_of(Programs(forward, ready.phases, feeds, recipe.optimizer))


def recipe_of(folder: Path, **fields: Any) -> Recipe:
    fields = {"plan": PLAN, "batch": BATCH, **fields}
    return Recipe(backbone={"name": str(folder), **fields.pop("backbone", {})}, **fields)


TEXTS = {
    "a head": ("bert", "classification", {"task": "text_classification", "method": "head"}),
    "LoRA of an encoder": ("bert", "masked_lm", {"task": "masked_lm", "method": "lora"}),
    "LoRA of packed rows": (
        "llama",
        "sft",
        {
            "task": {"name": "sft", "samples": 0},
            "method": LoRA(rank=2, targets="linear", dropout=0.1),
            "batch": {**BATCH, "packing": True, "accumulate": 2},
        },
    ),
    "QLoRA": (
        "llama",
        "causal_lm",
        {
            "task": {"name": "causal_lm", "samples": 0},
            "backbone": {"quantize": "nf4", "dtype": "bfloat16"},
            "method": "lora",
            "runtime": {"remat": "blocks"},
        },
    ),
}


@pytest.mark.parametrize("case", TEXTS)
def test_a_plan_lowers_to_the_program_of_a_run_on_texts(
    case: str, folders: dict[str, Path], tmp_path: Path
) -> None:
    family, data, fields = TEXTS[case]
    rows = {"path": str(write_rows(data, tmp_path))}
    recipe = recipe_of(folders[family], data=rows, **fields)
    plan = planned(recipe)
    assert all(has_shape_only(v) for v in plan.model.backbone.keras.variables)
    assert steps_of(plan.programs()) == of_a_run(recipe)
    with session(recipe) as ready:
        assert [p.steps for p in plan.phases] == [p.steps for p in ready.phases]


IMAGES = {
    "a head on kept features": ("vit", {"method": "head"}),
    "a head, then all of it": ("resnet", {"plan": [{**PLAN[0], "train": "head"}, *PLAN]}),
    "LoRA with remat": ("vit", {"method": "lora", "runtime": {"remat": "blocks"}}),
    "DoRA": ("vit", {"method": "dora"}),
    "PiSSA": ("vit", {"method": {"name": "pissa", "rank": 2}}),
    "EVA": ("vit", {"method": {"name": "eva", "rank": 2}}),
    "VeRA": ("vit", {"method": {"name": "vera", "rank": 4}}),
    "QLoRA": ("vit", {"backbone": {"quantize": "int8"}, "method": "lora"}),
    "LoftQ": (
        "vit",
        {"backbone": {"quantize": "nf4"}, "method": {"name": "lora", "init": "loftq"}},
    ),
}


@pytest.mark.parametrize("case", IMAGES)
def test_a_plan_lowers_to_the_program_of_a_run_on_images(
    case: str, folders: dict[str, Path]
) -> None:
    family, fields = IMAGES[case]
    recipe = recipe_of(folders[family], batch={"size": 6}, **fields)
    pixels, labels = families.images(18)
    splits = {"train": (pixels, labels), "validation": (pixels[:6] // 2, labels[:6])}
    plan = planned(recipe, examples=18, labels=families.LABELS)
    assert steps_of(plan.programs()) == of_a_run(recipe, splits)


DATA = {
    "classification": "text_classification",
    "multi_label": {"name": "text_classification", "multi_label": True},
    "regression": "text_regression",
    "tokens": "token_classification",
    "span_qa": "span_qa",
    "embedding": "embedding",
    "embedding_labels": {"name": "embedding", "contrast": "labels", "pairs_per_text": 2},
    "masked_lm": "masked_lm",
}


@pytest.mark.parametrize("data", DATA)
def test_stand_ins_for_data_give_the_columns_and_steps_that_data_give(
    data: str, folders: dict[str, Path], tmp_path: Path
) -> None:
    named = {"path": str(write_rows(data, tmp_path)), "validation_fraction": 0}
    fields: dict[str, Any] = {"task": DATA[data], "method": "lora"}
    real = planned(recipe_of(folders["bert"], data=named, **fields))
    bare = tmp_path / "bare"
    bare.mkdir()
    shutil.copy(folders["bert"] / "config.json", bare)
    labels = real.task.label_names if data in ("classification", "multi_label", "tokens") else None
    plan = planned(recipe_of(bare, **fields), examples=real.examples, labels=labels)
    assert any("tokenizer stands in" in note for note in plan.notes)
    assert plan.feeds[0].columns == real.feeds[0].columns
    assert plan.steps_per_epoch == real.steps_per_epoch
    of_data = planned(recipe_of(bare, data=named, **fields))
    assert of_data.feeds[0].columns == real.feeds[0].columns
    assert of_data.steps_per_epoch == real.steps_per_epoch


def test_a_template_has_its_own_columns_of_the_data_stood_in_for(folders: dict[str, Path]) -> None:
    task = {"name": "sft", "template": "{system} {context}: {prompt} = ", "samples": 0}
    plan = planned(recipe_of(folders["llama"], task=task, data={}), examples=10)
    assert plan.feeds[0].columns["targets"].shape == (4, LENGTH)
    assert plan.steps_per_epoch == (3,)


SHIPPED = sorted(shipped_recipes())


@pytest.mark.parametrize("name", SHIPPED)
def test_every_shipped_recipe_is_planned_with_nothing_at_hand(name: str) -> None:
    plan = planned(name, examples=640, blocks=4)
    assert plan.blocks == 4
    assert len(plan.feeds) == len(plan.phases) > 0
    assert all(phase.trainable for phase in plan.phases)
    assert {feed.columns["weight"].shape[0] for feed in plan.feeds} == {plan.recipe.batch.size}


@pytest.mark.parametrize("family", ["vit", "resnet", "llama"])
def test_a_folder_with_a_config_alone_is_planned(
    family: str, folders: dict[str, Path], tmp_path: Path
) -> None:
    shutil.copy(folders[family] / "config.json", tmp_path)
    task = {"name": "sft", "samples": 0} if family == "llama" else "image_classification"
    plan = planned(recipe_of(tmp_path, task=task, batch={"size": 4}), examples=8)
    whole = planned(recipe_of(folders[family], task=task, batch={"size": 4}), examples=8)
    shapes = {name: v.shape for name, v in plan.model.variables().items()}
    image = "backbone/vit_patching_and_embedding/position_embedding/embeddings"
    assert {n for n, v in whole.model.variables().items() if shapes[n] != v.shape} <= {image}
    assert plan.steps_per_epoch == (2,)


def test_a_layer_that_computes_with_its_variables_while_it_is_built_is_planned(
    tmp_path: Path,
) -> None:
    config = {"model_type": "dinov2", "image_size": 56, "patch_size": 14, "layer_norm_eps": 1e-6}
    shape = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2}
    (tmp_path / "config.json").write_text(json.dumps({**config, **shape}))
    backbone = {"name": str(tmp_path), "image_size": 28}
    plan = planned(Recipe(backbone=backbone, method="lora", plan=PLAN), blocks=2)
    assert plan.uniform_blocks and (plan.blocks, plan.whole_blocks) == (2, 3)


def test_all_blocks_are_alike_where_each_is_trained_or_none_is() -> None:
    lora = planned("llm/sft_qlora", blocks=2)
    assert lora.uniform_blocks and (lora.blocks, lora.whole_blocks) == (2, 30)
    some = Recipe.load("llm/sft_lora", ["method.within=last 2"])
    # All of the two are the last two, and still not all of the thirty.
    assert not planned(some, blocks=2).uniform_blocks
    assert not planned("vision/resnet50", blocks=4).uniform_blocks


LARGE = """
import json, sys
from pathlib import Path
import jax
from tunekit.planning.shapes import planned
from tunekit.ready_model import model_on
from tunekit.recipe import Recipe
plans = []
for name in ("llama3_8b", "llama3_70b"):
    changes = [f"backbone={name}", "method.rank=64", "backbone.dtype=bfloat16"]
    plan = planned(Recipe.load("llm/sft_lora", changes))
    trained = sum(plan.forward.variables[n].shape[0] for n in plan.phases[0].trainable)
    plans.append([plan.blocks, len(plan.phases[0].trainable), trained])
largest = max((array.nbytes for array in jax.live_arrays()), default=0)
# What getrusage tells is, in a new process, at least what the one that started it held.
lines = Path("/proc/self/status").read_text().splitlines()
peak = 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
print(json.dumps({"plans": plans, "largest": largest, "peak": peak}))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="Linux alone tells its most memory so")
def test_a_large_model_is_planned_in_the_memory_of_a_small_process() -> None:
    told = subprocess.run([sys.executable, "-c", LARGE], capture_output=True, text=True, check=True)
    found = json.loads(told.stdout.splitlines()[-1])
    assert [plan[:2] for plan in found["plans"]] == [[32, 32 * 14], [80, 80 * 14]]
    assert found["largest"] < 2**20
    assert found["peak"] < 2 * 2**30


def test_what_is_assumed_is_told() -> None:
    plan = planned(Recipe(backbone="smollm2_135m", plan=PLAN), blocks=1)
    assert [note.split(":")[0].split(";")[0] for note in plan.notes] == [
        "a tokenizer stands in for the model's own",
        "10,000 training examples are assumed",
        "task sft is assumed",
        "every text is taken to be 512 tokens long, the longest allowed.",
    ]
    assert plan.steps_per_epoch == (-(-10_000 // 32),)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("lama3_8b", r"no KerasHub preset.* The catalogue has .*Did you mean 'llama3_8b'"),
        ("hf://nobody/nothing", "To plan, a Hugging Face folder with its config.json will do"),
    ],
)
def test_a_backbone_that_nothing_describes_is_told_of_the_catalogue(
    name: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ModelError, match=said):
        planned(Recipe(backbone=name, task="sft", plan=PLAN))


def test_a_run_on_texts_says_that_the_catalogue_has_no_tokenizers() -> None:
    recipe = Recipe(backbone="bert_base", task="masked_lm", plan=PLAN)
    with shapes_only():
        backbone = catalogue.load("bert_base", BackboneSpec(pretrained=False), seed=0, depth=1)
        with pytest.raises(ModelError, match="has no tokenizers: to train it from scratch"):
            model_on(backbone, recipe, MaskedLM())


def test_what_no_plan_can_have_is_refused() -> None:
    recipe = Recipe(backbone="resnet_18", plan=PLAN)
    with pytest.raises(RecipeError, match=r"examples: expected at least 1, got 0") as error:
        planned(recipe, examples=0, labels=1, blocks=0)
    assert [issue.path for issue in error.value.issues] == ["examples", "blocks", "labels"]
    with pytest.raises(RecipeError, match="made for a model in memory"):
        planned(Recipe(backbone=IN_MEMORY, plan=PLAN))
    for task in ("sft", "text_classification"):
        with pytest.raises(ModelError, match="takes images, and the data are texts"):
            planned(Recipe(backbone="resnet_18", task=task, plan=PLAN))
    with pytest.raises(ModelError, match="takes tokens, and the data are images"):
        planned(Recipe(backbone="bert_base", task="image_classification", plan=PLAN), blocks=1)
