"""The recipes that come with tunekit, found by scanning."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from tunekit.errors import Issue, RecipeError, did_you_mean


@dataclass(frozen=True)
class Shipped:
    """One recipe and what its opening comment says of it."""

    name: str
    """What `Recipe.load` takes, such as ``vision/linear_probe``."""
    path: Path
    about: str
    """The first line of the comment."""
    result: str
    """The measured result."""


def shipped_recipes() -> dict[str, Shipped]:
    """Returns every shipped recipe by name, in alphabetical order."""
    root = _root()
    found = {}
    for path in sorted(root.rglob("*.yaml")):
        name = path.relative_to(root).with_suffix("").as_posix()
        found[name] = Shipped(name, path, *_opening(path.read_text(encoding="utf-8")))
    return found


def recipe_path(source: str | Path) -> Path:
    """Returns the file of a recipe: the path itself, or that of the shipped recipe so named.

    Raises:
        RecipeError: there is neither.
    """
    if Path(source).is_file():
        return Path(source)
    shipped = shipped_recipes()
    name = Path(source).as_posix().removesuffix(".yaml")
    if name in shipped:
        return shipped[name].path
    # A name without its folder is the commonest slip, and too far from the whole for a near match.
    tails = [full for full in shipped if full.rpartition("/")[2] == name]
    hint = f" Did you mean '{tails[0]}'?" if tails else did_you_mean(name, shipped)
    message = f"expected a YAML file or a shipped recipe, got '{source}'.{hint}"
    raise RecipeError([Issue("", f"{message} `tunekit ls` lists the shipped ones.")])


def _root() -> Path:
    here = Path(__file__).parent
    # A wheel carries the recipes inside the package; a checkout has them beside it.
    inside = here / "_recipes"
    return inside if inside.is_dir() else here.parent / "recipes"


def _opening(text: str) -> tuple[str, str]:
    about = re.match(r"#\s*(.+)", text)
    result = re.search(r"^#\s*result:\s*(.+)$", text, re.MULTILINE)
    return about[1] if about else "", result[1] if result else "not measured yet"
