"""The names of a pretrained classifier's classes."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from tunekit.errors import ModelError
from tunekit.models import bundled


def class_labels(source: str | Path | None, count: int) -> tuple[str, ...]:
    """Returns a name for each of the `count` classes of a classifier read from `source`.

    A folder may name them in its ``labels.json``. Otherwise a classifier of 1,000 classes is
    taken for ImageNet-1k in the usual order, as timm takes it; any other has "0", "1", ...

    Raises:
        ModelError: ``labels.json`` names another number of classes.
    """
    own = None if source is None else Path(source) / "labels.json"
    if own is not None and own.is_file():
        named = json.loads(own.read_text())
        if len(named) != count:
            raise ModelError(f"{own} names {len(named)} labels; the classifier has {count}.")
        return distinct(named)
    if count == 1000:
        return class_labels(bundled.folder("efficientnet_lite0"), 1000)
    return tuple(str(index) for index in range(count))


def distinct(labels: Iterable[str]) -> tuple[str, ...]:
    """Returns `labels` with the class index behind those that occur more than once.

    ImageNet has two cranes and two maillots; everything here finds a class by its label.
    """
    names = [str(label) for label in labels]
    counts = Counter(names)
    return tuple(f"{n} ({i})" if counts[n] > 1 else n for i, n in enumerate(names))
