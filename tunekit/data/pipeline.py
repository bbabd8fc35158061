"""Turns a source into batches of static shape: shuffled by seed, decoded in threads, resumable."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
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
    from. With `rows` they hold these of the same batches, and the others are not read.
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
    rows: tuple[int, ...] | None = None
    """Which rows of a batch are read, such as those of this process; None reads all B."""

    @property
    def steps_per_epoch(self) -> int:
        """Number of batches in an epoch."""
        return -(-len(self.source) // self.batch_size)

    def of_rows(self, rows: tuple[int, ...]) -> Batches:
        """Returns the same batches, of which these rows alone are read."""
        return replace(self, rows=rows)

    def shapes(self) -> dict[str, tuple[tuple[int, ...], np.dtype[Any]]]:
        """Returns shape and dtype of each column of a whole batch; reads one example."""
        rng = np.random.default_rng(self.seed) if self.shuffle else None
        row = {"weight": np.ones((), np.float32), **read(self.source, self.encode, 0, rng)}
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

        def load(position: int) -> Columns:
            rng = example_rng(self.seed, epoch, position) if self.shuffle else None
            weight = np.asarray(position < len(order), np.float32)
            index = int(order[position % len(order)])
            return {"weight": weight, **read(self.source, self.encode, index, rng)}

        steps = range(min(start_step, self.steps_per_epoch), self.steps_per_epoch)
        reading = Reading(self.batch_size, self.workers, self.prefetch, self.rows)
        return reading.batches(load, _stack, steps)

    def order(self, epoch: int) -> np.ndarray:
        """Returns the index in the source of each example of an epoch, in order: int [N]."""
        return epoch_order(
            self.source, self.seed, epoch, shuffle=self.shuffle, balanced=self.balanced
        )


@dataclass(frozen=True)
class Reading:
    """How rows are read ahead and put together."""

    batch_size: int
    workers: int | None
    """Threads; None uses the cores, 0 the caller's thread."""
    prefetch: int
    """Batches read ahead."""
    own: tuple[int, ...] | None = None
    """Rows of a batch that are read; None is all."""

    def batches(
        self,
        load: Callable[[int], Columns],
        stack: Callable[[Sequence[Columns]], Columns],
        steps: range,
    ) -> Iterator[Columns]:
        """Returns the batches of `steps`, the rows of each loaded by their position in the epoch.

        Its threads end with it, however it is left.
        """
        size = self.batch_size
        own = range(size) if self.own is None else self.own

        def load_own(place: int) -> Columns:
            step, row = divmod(place, len(own))
            return load(step * size + own[row])

        rows = self._rows(load_own, range(steps.start * len(own), steps.stop * len(own)))
        return _closing(iter(rows.batch(len(own), batch_fn=stack)))

    def rows(self, load: Callable[[int], Any], positions: range) -> Iterator[Any]:
        """Returns what `load` gives for each position, in order; as `batches`."""
        return _closing(iter(self._rows(load, positions)))

    def _rows(self, load: Callable[[int], Any], positions: range) -> Any:
        threads = (os.cpu_count() or 1) if self.workers is None else self.workers
        ahead = max(threads, self.prefetch * self.batch_size)
        options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=ahead)
        dataset = grain.MapDataset.range(positions.start, positions.stop)
        return dataset.map(load).to_iter_dataset(options)


def read(source: Any, encode: Encode, index: int, rng: np.random.Generator | None) -> Columns:
    """Returns the columns of one example, and its "index"; an error says which example it was."""
    example: dict[str, Any] = {"id": f"example {index}"}
    try:
        example = source[index]
        columns = encode(example, rng)
    except Exception as error:
        if not isinstance(error, TunekitError):
            error.add_note(f"while reading {example['id']}")
        raise
    return {**columns, "index": np.array(index, np.int32)}


def example_rng(seed: int, epoch: int, position: int) -> np.random.Generator:
    """Returns the chance of the row at `position` of an epoch, its own."""
    return np.random.default_rng((seed, _EXAMPLE, epoch, position))


def order_rng(seed: int, epoch: int, *more: int) -> np.random.Generator:
    """Returns the chance that orders an epoch; with `more`, another one that does."""
    return np.random.default_rng((seed, _ORDER, epoch, *more))


def epoch_order(source: Any, seed: int, epoch: int, *, shuffle: bool, balanced: bool) -> np.ndarray:
    """Returns the index in the source of each example of an epoch, in order: int [N].

    Raises:
        DataError: there are no examples, or they cannot be balanced.
    """
    if not len(source):
        raise DataError("data: expected at least one example to make a batch of, got none")
    rng = order_rng(seed, epoch)
    if balanced:
        return _balanced_order(source, rng, shuffle=shuffle)
    return rng.permutation(len(source)) if shuffle else np.arange(len(source))


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
    if len(labels) != len(source):
        raise DataError(
            "batch.balanced: needs a label per example, and these have none; set it to false"
        )
    classes = rng.permutation(np.unique(labels))
    drawn: list[np.ndarray] = []
    for turn, label in enumerate(classes):
        members = np.flatnonzero(labels == label)
        quota = len(labels) // len(classes) + (turn < len(labels) % len(classes))
        rounds = [rng.permutation(members) for _ in range(-(-quota // len(members)))]
        drawn.append(np.concatenate(rounds)[:quota])
    order = np.concatenate(drawn)
    return rng.permutation(order) if shuffle else np.sort(order)


def _closing(batches: Any) -> Iterator[Any]:
    """Yields what a Grain iterator does, then ends its threads, however it is left."""
    try:
        yield from batches
    except Exception as error:
        # Grain appends a note about its own traceback settings, which would bury the cause.
        notes = getattr(error, "__notes__", [])
        notes[:] = [note for note in notes if "grain_py_traceback_filtering" not in note]
        raise
    finally:
        batches.close()
