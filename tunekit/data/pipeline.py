"""Turns a source into batches of static shape: shuffled by seed, decoded in threads, resumable."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import grain
import numpy as np

from tunekit.data.examples import Source, UnlabelledImages
from tunekit.errors import DataError, TunekitError

Columns = dict[str, np.ndarray]
Encode = Callable[[dict[str, Any], np.random.Generator | None], Columns]

# Streams of random numbers; a tag keeps them apart, since NumPy pads short seeds with zeros.
_ORDER, _EXAMPLE = 1, 2


@dataclass(frozen=True)
class Batches:
    """Batches of a source, epoch by epoch.

    A batch has the columns of `encode`, stacked, and "weight" float32 [B] and "index" int32 [B]
    (place in the source). The last batch of an epoch is filled with the epoch's first examples, of
    weight 0: copies of one example would distort the statistics of a BatchNorm. Batches depend on
    the source, the seed and the epoch alone: not on `workers`, nor on the step an epoch is started
    from.
    """

    source: Source | UnlabelledImages
    encode: Encode
    """Turns an example into arrays; gets a generator of its own where `shuffle`, else None."""
    batch_size: int
    seed: int
    shuffle: bool
    balanced: bool = False
    """Draws every class equally often, an example several times where it must be."""
    workers: int | None = None
    """Decoding threads; None uses the cores, 0 the caller's thread."""
    prefetch: int = 2
    """Batches decoded ahead."""

    @property
    def steps_per_epoch(self) -> int:
        """Number of batches in an epoch."""
        return -(-len(self.source) // self.batch_size)

    def shapes(self) -> dict[str, tuple[tuple[int, ...], np.dtype[Any]]]:
        """Returns shape and dtype of each column of a batch; reads one example."""
        rng = np.random.default_rng(self.seed) if self.shuffle else None
        row = {"weight": np.ones((), np.float32), **self._load(0, rng)}
        return {name: ((self.batch_size, *value.shape), value.dtype) for name, value in row.items()}

    def epoch(self, epoch: int, start_step: int = 0) -> Iterator[Columns]:
        """Yields the batches of an epoch, from `start_step` on.

        Its threads end with it: at the last batch, at an error, or when it is closed or dropped.

        Args:
            epoch: counted from 0.
            start_step: batches to pass over, without reading them.

        Raises:
            DataError: an image cannot be read; names it. Or the source is empty, or balanced
                sampling is asked of several labels per example.
        """
        order = self.order(epoch)
        first = min(start_step, self.steps_per_epoch) * self.batch_size

        def load(position: int) -> Columns:
            rng = None
            if self.shuffle:
                rng = np.random.default_rng((self.seed, _EXAMPLE, epoch, position))
            weight = np.asarray(position < len(order), np.float32)
            return {"weight": weight, **self._load(int(order[position % len(order)]), rng)}

        threads = (os.cpu_count() or 1) if self.workers is None else self.workers
        ahead = max(threads, self.prefetch * self.batch_size)
        options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=ahead)
        last = self.steps_per_epoch * self.batch_size
        rows = grain.MapDataset.range(first, last).map(load).to_iter_dataset(options)
        return _closing(iter(rows.batch(self.batch_size, batch_fn=_stack)))

    def order(self, epoch: int) -> np.ndarray:
        """Returns the index in the source of each example of an epoch, in order: int [N]."""
        count = len(self.source)
        if not count:
            raise DataError("data: expected at least one example to make a batch of, got none")
        rng = np.random.default_rng((self.seed, _ORDER, epoch))
        if self.balanced:
            return _balanced_order(self.source, rng, shuffle=self.shuffle)
        return rng.permutation(count) if self.shuffle else np.arange(count)

    def _load(self, index: int, rng: np.random.Generator | None) -> Columns:
        example: dict[str, Any] = {"id": f"example {index}"}
        try:
            example = self.source[index]
            columns = self.encode(example, rng)
        except Exception as error:
            if not isinstance(error, TunekitError):
                error.add_note(f"while reading {example['id']}")
            raise
        return {**columns, "index": np.array(index, np.int32)}


def _stack(rows: Sequence[Columns]) -> Columns:
    return {name: _stack_column(name, [row[name] for row in rows]) for name in rows[0]}


def _stack_column(name: str, values: list[np.ndarray]) -> np.ndarray:
    shapes = sorted({np.shape(value) for value in values})
    if len(shapes) > 1:
        raise DataError(
            f"column '{name}': expected one shape in a batch, got {shapes[0]} and {shapes[-1]}; "
            "the encoder must resize"
        )
    return np.stack(values)


def _balanced_order(source: Any, rng: np.random.Generator, *, shuffle: bool) -> np.ndarray:
    """Returns as many indices as the source has, each class as often as any other (or one more).

    No example comes a second time before all of its class have come once.
    """
    if source.multi_label:
        raise DataError(
            "batch.balanced: needs one label per example, and these have several; set it to false"
        )
    labels = source.label_array
    classes = rng.permutation(np.unique(labels))
    drawn: list[np.ndarray] = []
    for turn, label in enumerate(classes):
        members = np.flatnonzero(labels == label)
        quota = len(labels) // len(classes) + (turn < len(labels) % len(classes))
        rounds = [rng.permutation(members) for _ in range(-(-quota // len(members)))]
        drawn.append(np.concatenate(rounds)[:quota])
    order = np.concatenate(drawn)
    return rng.permutation(order) if shuffle else np.sort(order)


def _closing(batches: Any) -> Iterator[Columns]:
    """Yields the batches of a Grain iterator, then ends its threads, however it is left."""
    try:
        yield from batches
    except Exception as error:
        # Grain appends a note about its own traceback settings, which would bury the cause.
        notes = getattr(error, "__notes__", [])
        notes[:] = [note for note in notes if "grain_py_traceback_filtering" not in note]
        raise
    finally:
        batches.close()
