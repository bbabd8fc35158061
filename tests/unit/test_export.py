"""A result with adapters: exported for PEFT, merged, and both by the command line."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import tunekit
from tests.contract import families
from tests.unit.methods.peft_networks import FOLDER as PEFT
from tunekit import Recipe, Result, finetune
from tunekit.cli import main
from tunekit.errors import ExportError, ModelError
from tunekit.methods.spec import LoRA, Method
from tunekit.tasks.image_classification import ImageClassification

Capture = pytest.CaptureFixture[str]
IMAGES, LABELS = families.images(6)


def trained(family: str, method: Method | str) -> Result:
    """A run of one epoch."""
    return finetune(
        families.FAMILIES[family](),
        families.images(),
        method=method,
        epochs=1,
        batch_size=6,
        progress="none",
        learning_rate=0.02,
    )


def untrained(family: str, *methods: str) -> Result:
    """A result of no run, with these adapters on its model."""
    model = families.FAMILIES[family]()
    for method in methods:
        model.add_adapter(method, method)
    task = ImageClassification(families.LABELS)
    return Result(model, {"seed": 0}, [], {}, {}, task)


@pytest.fixture(scope="module")
def result() -> Result:
    return trained("vit", LoRA(rank=2, rslora=True))


@pytest.fixture(scope="module")
def saved(result: Result, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return result.save(tmp_path_factory.mktemp("saved") / "out")


# export


def test_an_exported_lora_has_pefts_files_and_comes_back_with_its_head(result, tmp_path):
    folder = result.export(tmp_path / "peft")
    config = json.loads((folder / "adapter_config.json").read_text())
    assert (config["peft_type"], config["r"], config["use_rslora"]) == ("LORA", 2, True)
    assert (folder / "adapter_model.safetensors").is_file()
    model = families.FAMILIES["vit"]().load_adapter(folder)
    # The run may have moved nothing but the adapter and the head.
    np.testing.assert_allclose(model.logits(IMAGES), result.model.logits(IMAGES), atol=1e-5)


def test_an_export_keeps_the_recipe(result, saved, tmp_path):
    for number, each in enumerate((result, tunekit.load(saved))):
        folder = each.export(tmp_path / str(number))
        recipe = json.loads((folder / "tunekit.json").read_text())["recipe"]
        assert recipe["method"]["rank"] == 2
        assert Recipe(**recipe).plan == result.recipe.plan


def test_an_unknown_format_is_answered_with_a_near_one(result, tmp_path):
    with pytest.raises(ExportError, match="expected 'peft' as format, got 'pft'. Did you mean"):
        result.export(tmp_path / "x", "pft")


def test_a_result_without_adapters_is_saved_and_not_exported(tmp_path):
    with pytest.raises(ExportError, match=r"this model has none.*result.save\(path\)"):
        untrained("vit").export(tmp_path / "x")


def test_a_method_that_peft_does_not_know_says_what_to_do_instead(tmp_path):
    result = untrained("vit", "pfeiffer")
    with pytest.raises(ExportError, match="method 'bottleneck'. .*save_adapter"):
        result.export(tmp_path / "x")


def test_a_network_that_peft_does_not_know_says_what_to_do_instead(tmp_path):
    result = untrained("efficientnet", "lora")
    with pytest.raises(ExportError, match=r"(?s)'efficientnet.*resnet.*result.model.merge\(\)"):
        result.export(tmp_path / "x")


def test_of_several_adapters_one_is_named(tmp_path):
    result = untrained("vit", "lora", "ia3")
    result.model.set_adapter(["lora", "ia3"])
    with pytest.raises(ExportError, match="one active adapter.*2 are. Name one of 'lora', 'ia3'"):
        result.export(tmp_path / "x")
    config = result.export(tmp_path / "x", adapter="ia3") / "adapter_config.json"
    assert json.loads(config.read_text())["peft_type"] == "IA3"


def test_a_merged_adapter_is_taken_out_before_it_is_exported(tmp_path):
    result = untrained("vit", "lora")
    result.merge()
    with pytest.raises(ExportError, match=r"'lora' is merged.*unmerge\(\)"):
        result.export(tmp_path / "x")
    result.model.unmerge()
    assert (result.export(tmp_path / "x") / "adapter_model.safetensors").is_file()


def test_what_cannot_be_written_for_peft_is_an_export_error_with_its_reason(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ExportError, match="adapter 'lora' cannot be written.*notes.txt"):
        untrained("vit", "lora").export(tmp_path)


# merge


def test_a_merged_result_answers_as_before_and_is_saved_without_adapters(saved, tmp_path):
    result = tunekit.load(saved)
    before = result.model.logits(IMAGES)
    assert result.merge() is None
    back = tunekit.load(result.save(tmp_path / "merged"))
    assert not back.model.adapters.entries
    np.testing.assert_allclose(back.model.logits(IMAGES), before, atol=1e-5)


def test_a_merge_into_a_quantised_backbone_gives_its_forecast(tmp_path):
    result = untrained("vit", "lora")
    result.model.quantize("int8")
    with pytest.raises(ModelError, match="the backbone is quantised"):
        result.merge()
    forecast = result.merge(IMAGES)
    assert forecast is not None and forecast.positions == len(IMAGES)


# the tree of layers


def test_the_tree_of_layers_says_what_adapters_add():
    model = untrained("vit", "lora").model
    total = sum(row.parameters for row in model.layers().rows)
    added = model.adapters["lora"].adapter.parameters
    assert sum(row.added for row in model.layers().rows) == added
    last = str(model.layers()).splitlines()[-1].split()
    assert last == ["of", "which", "adapters", f"{added:,}", f"{added / total:.1%}"]
    with model.adapters_disabled():
        assert "adapters" not in str(model.layers())


# the commands


def said(capsys: Capture, *argv: object, code: int = 0) -> str:
    """Runs a command; returns what it printed, or what it complained of where `code` is not 0."""
    assert main([str(word) for word in argv]) == code
    captured = capsys.readouterr()
    return captured.err if code else captured.out


def test_the_command_exports_a_saved_result(saved, tmp_path, capsys):
    printed = said(capsys, "export", saved, tmp_path / "peft", "--format", "peft")
    assert printed == f"written: {tmp_path / 'peft'}\n"
    assert (tmp_path / "peft" / "adapter_model.safetensors").is_file()


def test_the_command_says_which_formats_there_are(saved, tmp_path, capsys):
    complaint = said(capsys, "export", saved, tmp_path / "x", "--format", "onyx", code=2)
    assert complaint == "tunekit: expected 'peft' as format, got 'onyx'.\n"


def test_the_command_merges_a_saved_result(saved, tmp_path, capsys):
    out = tmp_path / "merged"
    assert said(capsys, "merge", saved, out) == f"saved in {out}\n"
    assert not tunekit.load(out).model.adapters.entries
    assert tunekit.load(saved).model.adapters.entries


def test_the_command_leaves_the_result_itself_alone(saved, capsys):
    assert "is the result itself" in said(capsys, "merge", saved, saved, code=2)


def test_the_command_forecasts_before_it_merges_into_a_quantised_backbone(tmp_path, capsys):
    result = untrained("vit", "lora")
    result.model.quantize("int8")
    saved = result.save(tmp_path / "saved")
    (tmp_path / "photos").mkdir()
    for number, image in enumerate(IMAGES):
        Image.fromarray(image).save(tmp_path / "photos" / f"{number}.png")
    complaint = said(capsys, "merge", saved, tmp_path / "out", code=2)
    assert "is quantised (int8)" in complaint and "--data" in complaint
    printed = said(capsys, "merge", saved, tmp_path / "out", "--data", tmp_path / "photos")
    assert printed.startswith("merged: KL ") and "of 6\n" in printed
    impossible = ["--data", tmp_path / "photos", "--least-agreement", 1.5]
    assert "was not done" in said(capsys, "merge", saved, tmp_path / "no", *impossible, code=2)
    assert not (tmp_path / "no").exists()


def test_the_command_lists_where_an_adapter_would_sit(capsys):
    lines = said(capsys, "layers", "efficientnet_lite0", "--targets", "top_conv").splitlines()
    assert lines[1].split("  ") == ["backbone/top_conv", "1 x 1 x 320 x 1280", "12,800"]
    assert lines[2] == "lora adds 12,800 parameters (0.27%) in 1 place"


def test_the_adapter_listed_is_that_of_the_method(capsys):
    method = "{name: lora, rank: 4}"
    argv = ["layers", "efficientnet_lite0", "--targets", "top_conv", "--method"]
    assert "lora adds 6,400 parameters" in said(capsys, *argv, method)
    assert "bottleneck adds" in said(capsys, *argv[:2], "--method", "pfeiffer")


def test_of_vera_every_layer_is_listed_with_its_own_vectors(capsys):
    *rows, total = said(capsys, "layers", str(PEFT / "vit"), "--method", "vera").splitlines()[1:]
    assert [row.split()[0].rpartition("/")[2] for row in rows] == ["query", "value"] * 2
    numbers = [int(row.split()[-1].replace(",", "")) for row in rows]
    assert f"vera adds {sum(numbers):,} parameters" in total and "in 4 places" in total


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--targets", "top_cnov"], "Did you mean 'top_conv'?"),
        (["--method", "lroa"], "Did you mean 'lora'"),
        (["--method", "{name: lora, rnk: 4}"], "method.rnk: .* Did you mean 'rank'?"),
        (["--method", "["], "--method.* is not YAML"),
        (["--method", "pfeiffer", "--targets", "auto"], "method.targets: method has no such field"),
        (["--method", "head"], "puts nothing on a model; mark what trains by --train"),
        (["--method", "lora", "--train", "head"], "--method is of an adapter"),
    ],
)
def test_a_mistaken_adapter_is_said_to_be(argv, message, capsys):
    assert re.search(message, said(capsys, "layers", "efficientnet_lite0", *argv, code=2))
