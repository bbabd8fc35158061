"""docs/methods.md, done: every Python block in one session, in order, and every YAML block."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from benchmarks import methods
from tests.real.pages import FENCE, ROOT, Example, difference, examples, one_session
from tests.reference.folders import folder
from tunekit.methods.spec import METHOD_NAMES
from tunekit.recipe import Recipe

PAGE = ROOT / "docs" / "methods.md"
TEXT = PAGE.read_text(encoding="utf-8")
EXAMPLES = tuple(examples(TEXT))
RECIPES = [fence[2] for fence in FENCE.finditer(TEXT) if fence[1] == "yaml"]


@pytest.fixture(scope="module")
def printed(tmp_path_factory: pytest.TempPathFactory) -> dict[Example, str]:
    """What every block printed, in one session in a folder that has a network beside it."""
    here = tmp_path_factory.mktemp("reader")
    (here / "vit-small").symlink_to(folder("hf_dinov2_small"))
    return one_session(EXAMPLES, here)


@pytest.mark.parametrize("example", EXAMPLES, ids=str)
def test_what_the_page_shows_is_what_is_printed(
    example: Example, printed: dict[Example, str]
) -> None:
    wrong = difference(example.shown, printed[example])
    assert not wrong, f"docs/methods.md line {example.line}: {example.typed}\n{wrong}"


def test_the_page_has_examples() -> None:
    assert len(EXAMPLES) >= 7 and len(RECIPES) == 2


@pytest.mark.parametrize("text", RECIPES)
def test_a_recipe_on_the_page_is_valid(text: str, tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(text, encoding="utf-8")
    assert Recipe.load(path).method.name == "lora"


def test_every_method_has_its_line_on_the_page() -> None:
    table = "".join(re.findall(r"^\| (`.*?) \|", TEXT, re.MULTILINE))
    named = set(re.findall(r"`([^`]+)`", table))
    # A bottleneck is named by its kind.
    assert set(METHOD_NAMES) - {"bottleneck"} <= named


def test_every_recipe_for_adapters_is_measured_on_the_page() -> None:
    between = TEXT.partition(methods.MARKS[0])[2].partition(methods.MARKS[1])[0]
    rows = re.findall(r"^\| (\w+) \| [\d.]+% \| 0\.\d+ \|", between, re.MULTILINE)
    assert set(rows) == {*methods.SCALE, *(path.stem for path in methods.RECIPES.glob("*.yaml"))}


def test_a_row_of_the_table_is_the_mean_of_its_runs() -> None:
    run = {
        "share": 0.01,
        "accuracy": 0.5,
        "step_seconds": 0.1,
        "seconds": 10.0,
        "held_bytes": 90_000_000,
        "activation_bytes": 5_000_000,
        "peak_bytes": 2_000_000_000,
    }
    runs = [run, run | {"accuracy": 0.7}]
    shown = "| ia3 | 1.00% | 0.600 | 100 ms | 10 s | 90 MB | 5 MB | 2.00 GB |"
    assert methods.row("ia3", runs) == shown
