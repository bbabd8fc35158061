"""The pretrained weights that ship inside tunekit, and the labels that go with ImageNet."""

from __future__ import annotations

import json
from pathlib import Path

WEIGHTS = Path(__file__).parent / "weights"


def names() -> list[str]:
    """Returns the names of the bundled backbones."""
    return sorted(path.parent.name for path in WEIGHTS.glob("*/config.json"))


def folder(name: str) -> Path:
    """Returns the preset folder of a bundled backbone."""
    return WEIGHTS / name


def class_labels(source: str, count: int) -> tuple[str, ...]:
    """Returns a name for each of `count` classes of a classifier read from `source`.

    A folder may name them in its ``labels.json``. Otherwise a classifier of 1,000 classes is
    taken for ImageNet-1k in the usual order, as timm takes it; any other has "0", "1", ...
    """
    own = Path(source) / "labels.json"
    if own.is_file():
        return tuple(json.loads(own.read_text()))
    if count == 1000:
        return tuple(json.loads((folder("efficientnet_lite0") / "labels.json").read_text()))
    return tuple(str(index) for index in range(count))
