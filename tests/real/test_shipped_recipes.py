"""Every shipped recipe: valid as it stands, and trained for a few steps when shrunk."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.contract.text_families import LENGTH, bert, llama, write_rows
from tunekit.models import bundled
from tunekit.models.hub import keras_hub, tensorflow_hidden
from tunekit.plans.builders import expand_plan
from tunekit.plans.phase import Phase
from tunekit.recipe import Recipe
from tunekit.run import run
from tunekit.shipped import shipped_recipes
from tunekit.tasks import registry

OPTIMISED = False
STEPS = 2
SIDE = 32
BLOCKS = 8
"""Of the bundled network's 16: half the time to compile, and more than any recipe names."""
NAMES = sorted(shipped_recipes())
VISION = [name for name in NAMES if name.startswith("vision/")]
TEXTS = {
    "text/classify_frozen": "classification",
    "text/classify_full": "classification",
    "text/classify_lora": "classification",
    "text/domain_adapt": "masked_lm",
    "text/embed_fewshot": "embedding_labels",
    "text/ner": "tokens",
    "text/qa": "span_qa",
    "llm/sft_full": "sft",
    "llm/sft_lora": "sft",
    "llm/sft_qlora": "sft",
}
"""The data that each recipe of texts is for, by their name in `text_families`."""


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve images in folders of two classes, and a table that gives them several labels."""
    folder = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    rows = ["image,label"]
    for index in range(12):
        label = ("cat", "dog")[index % 2]
        file = folder / label / f"{index}.png"
        file.parent.mkdir(exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)).save(file)
        rows.append(f"{label}/{index}.png,{label}{'|outdoors' if index % 3 else ''}")
    (folder / "photos.csv").write_text("\n".join(rows) + "\n")
    return folder


def twin(preset: str, folder: Path) -> Path:
    """Writes a tiny network of a preset's family: the preset itself is fetched over the network.

    Raises:
        KeyError: a recipe names a family that has no twin yet; add one.
    """
    models = keras_hub().models
    build = {
        "resnet": lambda: models.ResNetBackbone(
            input_conv_filters=[8],
            input_conv_kernel_sizes=[7],
            stackwise_num_filters=[64, 64, 64, 64],
            stackwise_num_blocks=[1, 1, 1, 2],
            stackwise_num_strides=[1, 2, 2, 2],
            block_type="bottleneck_block",
            image_shape=(SIDE, SIDE, 3),
        ),
        "vit": lambda: models.ViTBackbone(
            image_shape=(SIDE, SIDE, 3),
            patch_size=16,
            num_layers=2,
            num_heads=2,
            hidden_dim=16,
            mlp_dim=32,
        ),
    }
    body = build[preset.partition("_")[0]]()
    with tensorflow_hidden():
        body.save_to_preset(str(folder))
    return folder


@pytest.fixture(scope="module")
def readers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders of a tiny encoder and a tiny causal language model, by what recipes begin with."""
    folder = tmp_path_factory.mktemp("readers")
    return {"text": bert(folder / "bert"), "llm": llama(folder / "llama")}


def shrunk(name: str, photos: Path, folder: Path) -> Recipe:
    """The recipe on small images and few blocks, with two steps a phase; else as it is shipped."""
    shipped = Recipe.load(name)
    table = shipped.task.multi_label is True
    overrides = [
        f"data.path={photos / 'photos.csv' if table else photos}",
        f"backbone.image_size={SIDE}",
        "batch.size=4",
        "runtime.progress=none",
    ]
    if shipped.backbone.name in bundled.names():
        overrides.append(f"backbone.blocks={BLOCKS}")
    else:
        overrides.append(f"backbone.name={twin(shipped.backbone.name, folder)}")
    return Recipe.load(name, [*overrides, *short_phases(shipped)])


def short_phases(shipped: Recipe) -> list[str]:
    """Overrides for a step or two a phase, and few phases: each is a program to compile."""
    overrides = []
    for index, item in enumerate(shipped.plan):
        if isinstance(item, Phase):
            overrides += [f"plan.{index}.epochs=null", f"plan.{index}.steps={STEPS}"]
            continue
        few = {"portions": 1, "rounds": 1}
        overrides += [f"plan.{index}.{n}={v}" for n, v in few.items() if hasattr(item, n)]
        overrides.append(f"plan.{index}.epochs=0.5")
    return overrides


def shrunk_texts(name: str, readers: dict[str, Path], folder: Path) -> Recipe:
    """The recipe of texts on a tiny network, with two steps; everything else as it is shipped."""
    shipped = Recipe.load(name)
    overrides = [
        f"data.path={write_rows(TEXTS[name], folder, 10)}",
        f"backbone.name={readers[name.partition('/')[0]]}",
        "batch.size=4",
        f"batch.max_length={LENGTH}",
        "runtime.progress=none",
    ]
    if shipped.task.name == "sft":
        overrides += ["task.samples=1", "task.max_new_tokens=2"]
    return Recipe.load(name, [*overrides, *short_phases(shipped)])


# Keras' own saving converts variables in the way that NumPy 2 deprecates.
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
@pytest.mark.parametrize("name", VISION)
def test_a_shipped_recipe_trains_when_shrunk(name: str, photos: Path, tmp_path: Path) -> None:
    recipe = shrunk(name, photos, tmp_path)
    result = run(recipe)
    phases = expand_plan(recipe.plan, result.model.groups())
    assert [row["phase"] for row in result.history] == list(range(len(phases)))
    assert len(phases) <= result.history[-1]["step"] <= STEPS * len(phases)
    assert np.isfinite([row["loss"] for row in result.history]).all()
    labels = {"cat", "dog", "outdoors"} if recipe.task.multi_label is True else {"cat", "dog"}
    assert set(result.predict(photos / "cat" / "0.png")[0].probabilities) == labels


@pytest.mark.parametrize("name", sorted(set(NAMES) - set(VISION)))
def test_a_shipped_recipe_of_texts_trains_when_shrunk(
    name: str, readers: dict[str, Path], tmp_path: Path
) -> None:
    recipe = shrunk_texts(name, readers, tmp_path)
    result = run(recipe)
    few = name == "text/embed_fewshot"  # It ends with a classifier on its vectors.
    answers = "text_classification" if few else recipe.task.name
    assert type(result.task) is registry.TEXT_TASKS[answers]
    assert result.history[-1]["step"] == STEPS
    assert np.isfinite([row["loss"] for row in result.history]).all()
    if recipe.data.validation_fraction:
        assert np.isfinite(result.metrics["loss"])
    if recipe.task.name == "sft":
        assert set(result.metrics["base"]) >= {"perplexity", "bleu"}
        assert isinstance(result.generate("the soup", max_new_tokens=2), str)


@pytest.mark.parametrize("name", NAMES)
def test_a_shipped_recipe_opens_with_its_command_and_result(name: str) -> None:
    about, command, result = shipped_recipes()[name].path.read_text().splitlines()[:3]
    assert about.startswith("# ") and result.startswith("# result: ")
    assert command.startswith(f"# tunekit run {name} data.path=")


def test_recipes_are_shipped() -> None:
    assert {"vision/linear_probe", "vision/full", "vision/vit"} <= set(NAMES)
