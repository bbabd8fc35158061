"""The probe on the bundled network and the textile images, by the command."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest

from tunekit.cli import main
from tunekit.recipe import Recipe


@pytest.fixture(scope="module")
def folder() -> Path:
    found = importlib.util.find_spec("conformal_clip_data")
    if found is None or found.origin is None:
        pytest.fail("the textile images are missing: pip install 'tunekit[demo]'")
    return Path(found.origin).parent / "data" / "textile_images" / "simulated"


def test_probe_of_the_bundled_network_saves_a_plan_that_suits_its_accuracies(
    folder, tmp_path, capsys
):
    out = tmp_path / "probe"
    argv = ["probe", "efficientnet_lite0", str(folder), "--examples", "160", "--out", str(out)]
    assert main(argv) == 0
    printed = capsys.readouterr().out
    found = json.loads((out / "probe.json").read_text())
    accuracies = [depth["accuracy"] for depth in found["depths"]]
    assert len(accuracies) == 18 and found["majority"] == 0.5
    # Pretrained features tell the weaves apart; 0.76 on all of the images.
    assert max(accuracies) - 2 * found["depths"][0]["standard_error"] > 0.5
    best, last = max(found["depths"], key=lambda d: d["accuracy"]), found["depths"][-1]
    tied = last["accuracy"] >= best["accuracy"] - best["standard_error"]
    recipe = Recipe.load(out / "plan.yaml")
    assert (recipe.backbone.name, recipe.data.path) == ("efficientnet_lite0", str(folder))
    assert recipe.plan[0].train == ("head",)
    assert len(recipe.plan) == (1 if tied and all(d["snr"] < 1 for d in found["depths"]) else 2)
    assert all(depth["name"] in printed for depth in found["depths"])
    assert (out / "probe.png").read_bytes()[:4] == b"\x89PNG"
