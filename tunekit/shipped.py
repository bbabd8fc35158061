"""The recipes that come with tunekit, found by scanning."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path


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


def _root() -> Path:
    here = Path(__file__).parent
    # A wheel carries the recipes inside the package; a checkout has them beside it.
    inside = here / "_recipes"
    return inside if inside.is_dir() else here.parent / "recipes"


def _opening(text: str) -> tuple[str, str]:
    about = re.match(r"#\s*(.+)", text)
    result = re.search(r"^#\s*result:\s*(.+)$", text, re.MULTILINE)
    return about[1] if about else "", result[1] if result else "not measured yet"
