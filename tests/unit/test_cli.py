"""The command line: what each command prints, and what it says when it cannot."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import tunekit
from tunekit.cli import main
from tunekit.models import bundled
from tunekit.recipe import Recipe
from tunekit.shipped import shipped_recipes

Capture = pytest.CaptureFixture[str]
PLAN = "plan: [{epochs: 1}]\n"


def said(capsys: Capture, *argv: str, code: int = 0) -> str:
    """Runs a command; returns what it printed, or what it complained of where `code` is not 0."""
    assert main(argv) == code
    captured = capsys.readouterr()
    assert "Traceback" not in captured.err
    return captured.err if code else captured.out


def test_ls_lists_every_shipped_recipe_with_its_result(capsys: Capture) -> None:
    lines = said(capsys, "ls").splitlines()[1:]
    for line, recipe in zip(lines, shipped_recipes().values(), strict=True):
        assert line.split("  ")[0] == recipe.name
        assert recipe.about in line and recipe.result in line


def test_show_prints_the_file_as_it_is_written(capsys: Capture) -> None:
    text = shipped_recipes()["vision/lp_ft"].path.read_text(encoding="utf-8")
    assert said(capsys, "show", "vision/lp_ft") == text


def test_cp_copies_to_a_file_and_into_a_folder(capsys: Capture, tmp_path: Path) -> None:
    said(capsys, "cp", "vision/full", str(tmp_path / "my.yaml"))
    said(capsys, "cp", "vision/full", str(tmp_path))
    assert (tmp_path / "my.yaml").read_text() == (tmp_path / "full.yaml").read_text()
    assert Recipe.load(tmp_path / "my.yaml") == Recipe.load("vision/full")


def test_cp_overwrites_only_when_forced(capsys: Capture, tmp_path: Path) -> None:
    mine = tmp_path / "my.yaml"
    mine.write_text("mine")
    complaint = said(capsys, "cp", "vision/full", str(mine), code=2)
    assert complaint == (
        f"tunekit: {mine} exists; choose another name, or overwrite it with --force.\n"
    )
    assert mine.read_text() == "mine"
    said(capsys, "cp", "--force", "vision/full", str(mine))
    assert Recipe.load(mine) == Recipe.load("vision/full")


def test_cp_into_a_folder_that_is_not_there_says_so(capsys: Capture, tmp_path: Path) -> None:
    target = tmp_path / "nowhere" / "my.yaml"
    assert "nowhere is no folder; make it first." in said(
        capsys, "cp", "vision/full", str(target), code=2
    )


def test_validate_says_that_a_recipe_is_right(capsys: Capture) -> None:
    printed = said(capsys, "validate", "vision/lp_ft", "plan.0.epochs=2", "data.path=photos/")
    assert printed == "vision/lp_ft is a valid recipe: efficientnet_lite0, 2 phases.\n"


def test_validate_names_the_builders_of_a_plan(capsys: Capture) -> None:
    printed = said(capsys, "validate", "vision/freezing/discriminative")
    assert printed.endswith(": efficientnet_lite0, 1 phase, discriminative.\n")
    printed = said(capsys, "validate", "vision/freezing/ulmfit")
    assert printed.endswith(": efficientnet_lite0, ulmfit.\n")


def test_validate_reports_every_mistake_on_lines_of_their_own(capsys: Capture) -> None:
    complaint = said(capsys, "validate", "vision/full", "plan.0.epoch=2", "batch.size=x", code=2)
    assert complaint.splitlines() == [
        "tunekit: the recipe has 2 mistakes:",
        "  plan[0].epoch: plan[0] has no such field. Did you mean 'epochs'?",
        '  batch.size: expected a whole number; got "x".',
    ]


def test_schema_prints_the_schema_of_recipes(capsys: Capture) -> None:
    assert json.loads(said(capsys, "schema")) == Recipe.json_schema()


def test_run_without_data_says_how_to_give_it(capsys: Capture) -> None:
    complaint = said(capsys, "run", "vision/full", code=2)
    assert "data.path: is required to run: tunekit run vision/full data.path=photos/" in complaint


def test_run_resumes_only_in_a_folder(capsys: Capture) -> None:
    complaint = said(capsys, "run", "vision/full", "data.path=photos", "--resume", code=2)
    assert "runtime.resume: there is no folder to resume from" in complaint


def test_run_traces_steps_from_one_to_another(capsys: Capture) -> None:
    argv = ["run", "vision/full", "data.path=photos", "--profile-steps", "7"]
    assert "runtime.profile_steps: expected steps as FIRST:END" in said(capsys, *argv, code=2)


def test_options_may_stand_between_overrides(capsys: Capture, tmp_path: Path) -> None:
    argv = ["run", "vision/full", "--out", str(tmp_path), "batch.size=x", "--resume", "seed=y"]
    complaint = said(capsys, *argv, code=2)
    assert "batch.size" in complaint and "seed" in complaint and "2 mistakes" in complaint


def test_eval_of_a_folder_that_is_no_result_says_so(capsys: Capture, tmp_path: Path) -> None:
    complaint = said(capsys, "eval", str(tmp_path), "photos", code=2)
    assert complaint.startswith("tunekit: ") and "Result.save" in complaint


def test_layers_of_an_unknown_model_says_so(capsys: Capture) -> None:
    complaint = said(capsys, "layers", "efficientnet_lite1", code=2)
    assert complaint.startswith("tunekit: ") and "efficientnet_lite0" in complaint


def marks(printed: str) -> dict[str, str]:
    """What the last column says of each group."""
    lines = [line.split() for line in printed.splitlines() if "%" in line and "─" in line]
    return {line[1]: line[-1] for line in lines}


def test_layers_marks_what_selectors_select(capsys: Capture) -> None:
    marked = marks(said(capsys, "layers", "efficientnet_lite0", "--train", "blocks[15]", "head"))
    assert [name for name, mark in marked.items() if mark == "yes"] == ["blocks[15]", "heads/label"]


def test_layers_marks_what_any_phase_of_a_recipe_trains(capsys: Capture) -> None:
    head = marks(said(capsys, "layers", "efficientnet_lite0", "--recipe", "vision/linear_probe"))
    assert [name for name, mark in head.items() if mark == "yes"] == ["heads/label"]
    both = marks(said(capsys, "layers", "efficientnet_lite0", "--recipe", "vision/lp_ft"))
    assert set(both.values()) == {"yes"}


def test_layers_gives_a_model_without_a_head_one_to_select(capsys: Capture, tmp_path: Path) -> None:
    for path in bundled.folder("efficientnet_lite0").iterdir():
        if not path.name.startswith("task."):
            shutil.copy(path, tmp_path)
    assert "heads" not in said(capsys, "layers", str(tmp_path))
    printed = said(capsys, "layers", str(tmp_path), "--train", "head")
    assert marks(printed)["heads/label"] == "yes"


def test_layers_of_a_selector_that_selects_nothing_says_so(capsys: Capture) -> None:
    complaint = said(capsys, "layers", "efficientnet_lite0", "--train", "hed", code=2)
    assert complaint == "tunekit: 'hed' is no selector. Did you mean 'head'?\n"


def test_layers_takes_selectors_or_a_recipe(capsys: Capture) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["layers", "efficientnet_lite0", "--train", "head", "--recipe", "vision/full"])
    assert "not allowed with argument" in capsys.readouterr().err


def test_plan_preview_prints_a_recipe_that_runs(capsys: Capture, tmp_path: Path) -> None:
    mine = tmp_path / "mine.yaml"
    mine.write_text("plan: [{build: gradual_unfreeze, epochs: 8}]\n")
    printed = said(capsys, "plan-preview", str(mine), "plan.0.portions=2", "--examples", "64")
    mine.write_text(printed)
    assert "# phase 3: all, 3.5 M parameters, 100 %; " in printed
    assert said(capsys, "validate", str(mine)).endswith("efficientnet_lite0, 3 phases.\n")


def test_plan_preview_writes_the_recipe_and_the_picture(capsys: Capture, tmp_path: Path) -> None:
    recipe, picture = tmp_path / "plan.yaml", tmp_path / "plan.png"
    argv = ["plan-preview", "vision/lp_ft", "--yaml", str(recipe), "--plot", str(picture)]
    lines = said(capsys, *argv).splitlines()
    assert [line.split()[:2] for line in lines[1:3]] == [["1", "head"], ["2", "all"]]
    assert lines[3:] == [f"written: {recipe}", f"written: {picture}"]
    assert len(Recipe.load(recipe).plan) == 2
    assert picture.read_bytes()[:4] == b"\x89PNG"


def test_plan_preview_overwrites_a_recipe_only_when_forced(capsys: Capture, tmp_path: Path) -> None:
    mine = tmp_path / "mine.yaml"
    mine.write_text(PLAN)
    argv = ["plan-preview", str(mine), "--yaml", str(mine)]
    assert "overwrite it with --force" in said(capsys, *argv, code=2)
    assert mine.read_text() == PLAN
    said(capsys, *argv, "--force")
    assert "# phase 1: all" in mine.read_text()


def test_traceback_shows_where_an_error_arose() -> None:
    with pytest.raises(tunekit.TunekitError, match="expected a YAML file"):
        main(["validate", "--traceback", "nothing"])


def test_an_unknown_command_is_answered_with_a_near_one(capsys: Capture) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["rnu"])
    assert "no such command: 'rnu'. Did you mean 'run'?" in capsys.readouterr().err


def test_version_is_that_of_the_package(capsys: Capture) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(["--version"])
    assert capsys.readouterr().out == f"tunekit {tunekit.__version__}\n"


def test_no_command_prints_the_help(capsys: Capture) -> None:
    assert main([]) == 2
    assert "list the shipped recipes" in capsys.readouterr().out


def test_ctrl_c_ends_with_one_line_and_130(
    capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Recipe, "load", interrupted)
    assert said(capsys, "validate", "vision/full", code=130) == "tunekit: interrupted.\n"


def test_a_reader_that_has_enough_is_no_error() -> None:
    command = f"{sys.executable} -c 'import tunekit.cli as c; c.main([\"schema\"])' | head -n 1"
    done = subprocess.run(command, shell=True, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("{\n", "")


def in_a_new_process(folder: Path, *argv: str) -> str:
    """Runs one command in a process of its own, which must not load TensorFlow."""
    code = (
        "import sys; from tunekit.cli import main; code = main(sys.argv[1:]);"
        "assert 'tensorflow' not in sys.modules, 'TensorFlow is loaded'; sys.exit(code)"
    )
    root = str(Path(tunekit.__file__).parents[1])
    done = subprocess.run(
        [sys.executable, "-c", code, *argv],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": root},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with photos of two colours, and with the result of a run on them."""
    folder = tmp_path_factory.mktemp("workplace")
    rng = np.random.default_rng(0)
    for label, channel in (("blue", 2), ("red", 0)):
        (folder / "photos" / label).mkdir(parents=True)
        for index in range(6):
            pixels = rng.integers(0, 60, (32, 32, 3), dtype=np.uint8)
            pixels[..., channel] += 150
            Image.fromarray(pixels).save(folder / "photos" / label / f"{index}.png")
    small = ["backbone.image_size=32", "batch.size=4", "data.validation_fraction=0.34"]
    argv = ["run", "vision/linear_probe", "data.path=photos", "plan.0.epochs=2", *small]
    printed = in_a_new_process(folder, *argv, "--profile", "--profile-steps", "1:3")
    assert "waiting for a batch, no step running" in printed and "-bound: " in printed
    assert "accuracy" in printed and printed.endswith("saved in runs/linear_probe\n")
    return folder


def test_run_saves_a_result_with_its_curves_and_recipe(workplace: Path) -> None:
    out = workplace / "runs" / "linear_probe"
    assert {"curves.png", "metrics.json", "model.safetensors"} <= {p.name for p in out.iterdir()}
    recipe = Recipe.load(out / "recipe.yaml")
    assert (recipe.plan[0].epochs, recipe.runtime.out) == (2.0, "runs/linear_probe")
    report = json.loads((out / "report.json").read_text())
    summary = json.loads((out / "profile" / "summary.json").read_text())
    assert report["profile"] == summary and summary["traced_steps"] == [1, 3]
    assert report["unexpected_compiles"] == []
    assert len(list((out / "profile").rglob("*.trace.json.gz"))) == 1


def test_predict_prints_a_label_and_its_probability_for_each_file(
    workplace: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(workplace)
    files = ["photos/blue/0.png", "photos/red/0.png"]
    as_json = json.loads(said(capsys, "predict", "runs/linear_probe", "--json", *files))
    assert [row["id"] for row in as_json] == files
    table = said(capsys, "predict", "runs/linear_probe", *files).splitlines()[1:]
    for line, row in zip(table, as_json, strict=True):
        assert line.split() == [row["id"], row["label"], f"{row['probability']:.3f}"]


def test_predict_of_a_file_that_is_not_there_names_it(
    workplace: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(workplace)
    assert "gone.jpg" in said(capsys, "predict", "runs/linear_probe", "gone.jpg", code=2)


def test_eval_prints_metrics_for_people_and_as_json(workplace: Path, capsys: Capture) -> None:
    out, photos = str(workplace / "runs" / "linear_probe"), str(workplace / "photos")
    metrics = json.loads(said(capsys, "eval", out, photos, "--json"))
    assert sum(row["support"] for row in metrics["per_class"].values()) == 12
    lines = said(capsys, "eval", out, photos).splitlines()
    assert ["accuracy", f"{metrics['accuracy']:.4f}"] in [line.split() for line in lines]
    assert "class  precision  recall  f1" in "\n".join(lines)


def test_a_second_run_leaves_the_first_ones_folder_alone(
    workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tunekit.cli import _free_folder

    monkeypatch.chdir(workplace)
    assert _free_folder(Path("runs/linear_probe")) == Path("runs/linear_probe-2")
    assert _free_folder(Path("runs/full")) == Path("runs/full")
