"""Features of the frozen prefix in place of examples: their keys, their one pass, their batches."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import numpy as np
import PIL

from tunekit import __version__
from tunekit.data.examples import Source, scan_source
from tunekit.data.feature_store import FeatureStore
from tunekit.data.pipeline import Batches, Columns
from tunekit.errors import DataError

__all__ = ["FeatureBatches", "FeatureStore", "cache_key", "fill_features", "ordered_fingerprint"]


def cache_key(**parts: Any) -> str:
    """Returns the key of features made of `parts`: another one if any part differs.

    What decodes and resizes images, Pillow and this package, is always a part.

    Args:
        **parts: what the features depend on: texts, numbers, dataclasses, and collections of these.

    Example:
        >>> cache_key(
        ...     prefix=cut.fingerprint(values),
        ...     data=ordered_fingerprint(source),
        ...     preprocessing=model.preprocessing,
        ...     cache=CacheSpec(dtype="float16"),
        ... )
    """
    whole = {"versions": [__version__, PIL.__version__], "parts": parts}
    return hashlib.sha256(json.dumps(whole, sort_keys=True, default=_plain).encode()).hexdigest()


def _plain(part: Any) -> Any:
    if dataclasses.is_dataclass(part) and not isinstance(part, type):
        return [type(part).__name__, dataclasses.asdict(part)]
    raise TypeError(f"a cache key is made of plain values and dataclasses, got {part!r}")


def ordered_fingerprint(source: Source) -> str:
    """Returns a sha256 over the content of the examples in their order; labels have no part.

    Features are kept by index, and ``source.fingerprint`` is the same in any order.
    """
    content = hashlib.sha256()
    for _, scan in scan_source(source):
        content.update(f"{scan.digest}\n".encode())
    return content.hexdigest()


def fill_features(batches: Batches, program: Callable[[np.ndarray], Any], out: np.ndarray) -> None:
    """Writes the features of every example into `out`; view v is made of epoch v of `batches`.

    So while views last, training sees what it would without a cache.

    Args:
        batches: of the examples; each comes once, `balanced` or not.
        program: from a batch of "image" to its features [B, ...].
        out: [V, N, ...], by index in the source.

    Raises:
        DataError: an image cannot be read, or a value is too large for the precision of `out`.
    """
    batches = dataclasses.replace(batches, balanced=False)
    for view in range(len(out)):
        epoch: Any = batches.epoch(view)
        with closing(epoch):  # Its threads end with it, at an error too.
            left = out.shape[1]
            for batch in epoch:
                index = batch["index"][:left]
                features = np.asarray(program(batch["image"]))[: len(index)]
                _put(out, view, index, features)
                left -= len(index)


def _put(out: np.ndarray, view: int, index: np.ndarray, features: np.ndarray) -> None:
    try:
        with np.errstate(over="raise"):
            out[view, index] = features
    except FloatingPointError as error:
        raise DataError(
            f"cache.dtype: expected features that {out.dtype} can hold, got one of "
            f"{np.abs(features).max():.3g}; choose bfloat16, whose range is that of float32"
        ) from error


@dataclass(frozen=True, eq=False)
class FeatureBatches:
    """The batches of `batches` with kept features in place of images.

    A batch has "features" float32 [B, ...], and "label", "weight" and "index" exactly as `batches`
    gives them.
    """

    batches: Batches
    features: np.ndarray
    """[V, N, ...], by index in the source; epoch e is made of view e modulo V."""
    labels: np.ndarray
    """[N] or [N, C]: the label column of each example, as `batches.encode` gives it."""

    @property
    def steps_per_epoch(self) -> int:
        """Number of batches in an epoch."""
        return self.batches.steps_per_epoch

    def epoch(self, epoch: int, start_step: int = 0) -> Iterator[Columns]:
        """Yields the batches of an epoch, from `start_step` on.

        Args:
            epoch: counted from 0.
            start_step: batches to pass over.
        """
        order = self.batches.order(epoch)
        view = self.features[epoch % len(self.features)]
        size = self.batches.batch_size
        for step in range(start_step, self.steps_per_epoch):
            places = np.arange(step * size, (step + 1) * size)
            index = order[places % len(order)]
            yield {
                "features": view[index].astype(np.float32),
                "label": self.labels[index],
                "weight": (places < len(order)).astype(np.float32),
                "index": index.astype(np.int32),
            }
