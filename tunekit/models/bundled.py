"""The pretrained weights that ship inside tunekit."""

from __future__ import annotations

import re
from pathlib import Path

WEIGHTS = Path(__file__).parent / "weights"


def names() -> list[str]:
    """Returns the names of the bundled backbones."""
    return sorted(path.parent.name for path in WEIGHTS.glob("*/config.json"))


def folder(name: str) -> Path:
    """Returns the preset folder of a bundled backbone."""
    return WEIGHTS / name


def license(name: str) -> str:
    """Returns the licence of a bundled backbone's weights, from its notice."""
    (row,) = re.findall(r"^\| Licence \| (\S+)", (folder(name) / "NOTICE.md").read_text(), re.M)
    return row
