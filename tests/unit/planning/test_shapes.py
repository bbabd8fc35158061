"""A recipe in shapes only: the program of a real run, of nothing but shapes."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from tests.contract import families, text_families
from tests.contract.text_families import LENGTH, write_rows
from tests.unit.models import tiny_folders
from tunekit.methods.spec import LoRA
from tunekit.models.initialisation import has_shape_only
from tunekit.planning.shapes import Planned, planned
from tunekit.recipe import Recipe
from tunekit.session import session
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
    "all of an encoder": ("bert", "tokens", {"task": "token_classification"}),
    "LoRA of an encoder": ("bert", "masked_lm", {"task": "masked_lm", "method": "lora"}),
    "all of a decoder": ("llama", "sft", {"task": {"name": "sft", "samples": 0}}),
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
    assert steps_of(plan.programs()) == of_a_run(recipe)
    with session(recipe) as ready:
        assert plan.steps_per_epoch == tuple(f.steps_per_epoch for f in ready.trainer().feeds)
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
    "LoftQ": ("vit", {"backbone": {"quantize": "nf4"}, "method": {"name": "lora", "init": "loftq"}}),
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
