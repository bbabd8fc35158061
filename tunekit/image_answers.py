"""What a model of images answers: metrics on labelled images, labels of others."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from tunekit.data.decode import IMAGE_SUFFIXES
from tunekit.data.pipeline import Batches, Encode
from tunekit.data.source import Source, UnlabelledImages, open_examples, open_images
from tunekit.data.spec import DataSpec
from tunekit.errors import DataError
from tunekit.evaluation.evaluate import collect_logits
from tunekit.evaluation.metrics import classification_metrics
from tunekit.models.model import Model
from tunekit.tasks.image_classification import ImageClassification, Prediction

LARGEST_BATCH = 32


def evaluate(
    model: Model, task: ImageClassification, data: Any, columns: DataSpec
) -> dict[str, Any]:
    """Returns the metrics of the model on labelled images.

    Raises:
        DataError: the data cannot be read, or has labels that the model does not know.
    """
    source = open_examples(data, model.labels, columns)
    if source.multi_label and not task.multi_label:
        raise DataError("data: has several labels an image, but the model was trained to give one")
    batches = _batches(source, task.encoder(model.preprocessing))
    logits, labels = collect_logits(model.apply, batches)
    return classification_metrics(
        logits, labels, model.labels, multi_label=task.multi_label, top_k=task.top_k
    )


def predict(
    model: Model, task: ImageClassification, items: Any, *, threshold: float = 0.5
) -> list[Prediction]:
    """Returns one prediction an image, in the order given.

    Raises:
        DataError: an image is missing or cannot be read.
    """
    images = open_images(with_folders_opened(items))
    preprocessing = model.preprocessing
    logits = np.concatenate(
        [
            model.apply(batch["image"])[batch["weight"] > 0]
            for batch in _batches(
                images, lambda example, _: {"image": preprocessing.to_pixels(example["image"])}
            )
        ]
    )
    names = [images.images.name(i) for i in range(len(images))]
    return task.decode(logits, ids=names, threshold=threshold)


def with_folders_opened(items: Any) -> Any:
    """Returns `items` with each folder replaced by the images below it."""
    if isinstance(items, (str, Path)):
        items = [items]
    if not isinstance(items, (list, tuple, Iterator)):
        return items
    return [each for item in items for each in _opened(item)]


def _batches(source: Source | UnlabelledImages, encode: Encode) -> Iterator[dict[str, np.ndarray]]:
    # Powers of two, so that calls with few images share a handful of programs.
    size = min(LARGEST_BATCH, 1 << (len(source) - 1).bit_length())
    return Batches(source, encode, batch_size=size, seed=0, shuffle=False).epoch(0)


def _opened(item: Any) -> Iterable[Any]:
    if not isinstance(item, (str, Path)) or not Path(item).expanduser().is_dir():
        return [item]
    folder = Path(item).expanduser()
    images = sorted(p for p in folder.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES)
    if not images:
        raise DataError(f"{folder}: no image in this folder or below it")
    return images
