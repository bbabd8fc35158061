"""Batches of texts: token sequences of any length, padded to one of few lengths, or packed.

Each length is a program to compile, so there are few, and texts of similar length share a batch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from tunekit.data.packing import PackedRows, Packing, pack, packed_row, token_lengths
from tunekit.data.pipeline import (
    Columns,
    Encode,
    Reading,
    epoch_order,
    example_rng,
    order_rng,
    read,
)
from tunekit.errors import DataError

SEQUENCE_COLUMNS = frozenset(
    {
        "token_ids",
        "token_types",
        "targets",
        "loss_weights",
        "token_labels",
        "token_weights",
        "context_mask",
    }
)
"""Columns with a value for each token [T]; an encoder's others have one for each text."""
SHORTEST = 32
"""Length that shorter texts are padded to."""
_WINDOW = 50
"""Batches within which texts are grouped by length: most of what sorting them all would save,
while batches still differ from epoch to epoch."""


def buckets(max_length: int) -> tuple[int, ...]:
    """Returns the lengths that batches are padded to: powers of two, then `max_length`.

    Example:
        >>> buckets(200)
        (32, 64, 128, 200)
    """
    doubled = [SHORTEST << i for i in range(max_length.bit_length())]
    return (*(length for length in doubled if length < max_length), max_length)


@dataclass(frozen=True)
class SequenceBatches:
    """Batches of a source of texts, epoch by epoch.

    A batch has the columns of `encode`, "padding_mask" int32 [B, T] (0 is padding), "weight"
    float32 [B] and "index" int32 [B] (place in the source). Those in `SEQUENCE_COLUMNS` are padded
    to T, the smallest bucket that holds the longest text of the batch: "token_ids" with `pad_id`,
    others with 0; where `encode` gives a tuple of S sequences they are [B, S, T]. The last batch
    of an epoch is filled with its own first rows, of weight and "loss_weights" 0. Batches depend
    on the source, the seed and the epoch alone: not on `workers`, nor on the step an epoch is
    started from. With `rows` they hold these of the same batches, and the others are not read: T is
    then of these, and `padded` brings them to the whole batch's.

    With `packing` a row holds several texts, "index" is that of the first, and there are
    "positions" and "documents" int32 [B, T]: the place of a token in its text from 0, and the
    number of its text from 1, 0 for padding.
    """

    source: Any
    """Texts; `sizes` int [N], where it has them, say which are of similar length."""
    encode: Encode
    """Turns an example into arrays; gets a generator of its own where `shuffle`, else None."""
    batch_size: int
    seed: int
    shuffle: bool
    buckets: tuple[int, ...]
    """Lengths T of a batch, ascending; with `packing` it is that of the rows instead."""
    pad_id: int
    balanced: bool = False
    """Draws every class equally often, an example several times where it must be."""
    workers: int | None = None
    """Encoding threads; None uses the cores, 0 the caller's thread."""
    prefetch: int = 2
    """Batches encoded ahead."""
    packing: Packing | None = None
    """Whether texts share rows; None gives each its own."""
    rows: tuple[int, ...] | None = None
    """Which rows of a batch are read, such as those of this process; None reads all B."""

    def __post_init__(self) -> None:
        """Checks that the options go together.

        Raises:
            DataError: texts are to be packed and balanced.
        """
        if self.packing is not None and self.balanced:
            raise DataError(
                "batch.packing: the texts of a row are chosen by length alone; set it, or "
                "batch.balanced, to false"
            )

    @property
    def steps_per_epoch(self) -> int:
        """Number of batches in an epoch."""
        rows = self.source if self.packing is None else self.packed
        return -(-len(rows) // self.batch_size)

    @cached_property
    def packed(self) -> PackedRows:
        """Which texts share a row; encodes all of them once, for their lengths."""
        assert self.packing is not None
        lengths = token_lengths(
            self.source, self.encode, shuffle=self.shuffle, workers=self.workers
        )
        return pack(lengths, self.packing.length, seed=self.seed)

    def of_rows(self, rows: tuple[int, ...]) -> SequenceBatches:
        """Returns the same batches, of which these rows alone are read."""
        others = replace(self, rows=rows)
        if "packed" in self.__dict__:
            others.__dict__["packed"] = self.packed  # It is made of all texts, which takes long.
        return others

    def padded(self, batch: Columns, length: int) -> Columns:
        """Returns a batch with its sequences padded to `length`, at least their own."""
        return {
            name: _lengthened(column, length, self.pad_id if name == "token_ids" else 0)
            if name in _BY_TOKEN or name == "padding_mask"
            else column
            for name, column in batch.items()
        }

    def shapes(self, length: int) -> dict[str, tuple[tuple[int, ...], np.dtype[Any]]]:
        """Returns shape and dtype of a whole batch's columns at a bucket; reads one example."""
        rng = np.random.default_rng(self.seed) if self.shuffle else None
        row = read(self.source, self.encode, 0, rng)
        if self.packing is not None:
            row = packed_row([row], SEQUENCE_COLUMNS)
        one = self._batch([_cut({**row, "weight": np.ones((), np.float32)}, length)], length)
        return {name: ((self.batch_size, *x.shape[1:]), x.dtype) for name, x in one.items()}

    def epoch(self, epoch: int, start_step: int = 0) -> Iterator[Columns]:
        """Yields the batches of an epoch, from `start_step` on.

        Its threads end with it: at the last batch, at an error, or when it is closed or dropped.

        Args:
            epoch: counted from 0.
            start_step: batches to pass over, without reading them.

        Raises:
            DataError: a text cannot be read or is longer than the last bucket; or the source is
                empty, or cannot be balanced.
        """
        rows = self._rows(epoch)
        # The last batch is filled up by its own rows, which are of its own length.
        last = (self.steps_per_epoch - 1) * self.batch_size
        places = np.concatenate(
            [np.arange(last), last + np.resize(np.arange(len(rows) - last), self.batch_size)]
        )

        def load(position: int) -> Columns:
            rng = example_rng(self.seed, epoch, position) if self.shuffle else None
            row = self._load(rows[places[position]], rng)
            weight = np.float32(position < len(rows))
            if "loss_weights" in row:
                row["loss_weights"] = _times(row["loss_weights"], weight)
            return {**row, "weight": np.asarray(weight)}

        steps = range(min(start_step, self.steps_per_epoch), self.steps_per_epoch)
        reading = Reading(self.batch_size, self.workers, self.prefetch, self.rows)
        return reading.batches(load, self._batch, steps)

    def order(self, epoch: int) -> np.ndarray:
        """Returns the index in the source of each example of an epoch, in order: int [N]."""
        rows = self._rows(epoch)
        return rows if self.packing is None else np.concatenate(rows)

    def _rows(self, epoch: int) -> Any:
        """What each row of an epoch holds: an index, or with packing the indices of its texts."""
        if self.packing is not None:
            rng = order_rng(self.seed, epoch)
            count = len(self.packed)
            return self.packed.texts_of(rng.permutation(count) if self.shuffle else range(count))
        order = epoch_order(
            self.source, self.seed, epoch, shuffle=self.shuffle, balanced=self.balanced
        )
        sizes = getattr(self.source, "sizes", None)
        if sizes is None:
            return order
        if not self.shuffle:
            return order[np.argsort(np.asarray(sizes)[order], kind="stable")]
        return self._grouped(order, np.asarray(sizes), order_rng(self.seed, epoch, 1))

    def _grouped(
        self, order: np.ndarray, sizes: np.ndarray, rng: np.random.Generator
    ) -> np.ndarray:
        """Sorted by size within windows of batches, which are then shuffled; a rest stays last."""
        window = _WINDOW * self.batch_size
        parts = [order[start : start + window] for start in range(0, len(order), window)]
        by_size = np.concatenate([part[np.argsort(sizes[part], kind="stable")] for part in parts])
        whole = len(order) - len(order) % self.batch_size
        full = by_size[:whole].reshape(-1, self.batch_size)
        return np.concatenate([rng.permutation(full).reshape(-1), by_size[whole:]])

    def _load(self, row: Any, rng: np.random.Generator | None) -> Columns:
        if self.packing is None:
            return read(self.source, self.encode, int(row), rng)
        texts = [read(self.source, self.encode, int(index), rng) for index in row]
        return packed_row(texts, SEQUENCE_COLUMNS)

    def _batch(self, rows: Sequence[Columns], length: int | None = None) -> Columns:
        rows = [_as_columns(row) for row in rows]
        length = self._length(rows) if length is None else length
        batch = {"padding_mask": _padded("padding_mask", [_ones(row) for row in rows], length, 0)}
        for name in rows[0]:
            values = [row[name] for row in rows]
            if name in _BY_TOKEN:
                pad = self.pad_id if name == "token_ids" else 0
                batch[name] = _padded(name, values, length, pad)
            else:
                batch[name] = _stacked(name, values)
        return batch

    def _length(self, rows: Sequence[Columns]) -> int:
        """The smallest of a batch that holds these rows."""
        longest = max(len(ids) for row in rows for ids in _each(row["token_ids"]))
        lengths = self.buckets if self.packing is None else (self.packing.length,)
        for length in lengths:
            if length >= longest:
                return length
        raise DataError(
            f"a row of {longest} tokens is longer than the longest batch, of {lengths[-1]}; the "
            "encoder must cut it (batch.max_length)"
        )


_BY_TOKEN = SEQUENCE_COLUMNS | {"positions", "documents"}


def _each(value: Any) -> tuple[Any, ...]:
    """The sequences of a row's column: one, or those of a tuple."""
    return value if isinstance(value, tuple) else (value,)


def _mapped(function: Any, value: Any) -> Any:
    return tuple(map(function, value)) if isinstance(value, tuple) else function(value)


def _times(value: Any, weight: np.float32) -> Any:
    return _mapped(lambda x: np.asarray(x, np.float32) * weight, value)


def _cut(row: Mapping[str, Any], length: int) -> dict[str, Any]:
    names = row.keys() & _BY_TOKEN
    return {**row, **{name: _mapped(lambda x: x[:length], row[name]) for name in names}}


def _ones(row: Mapping[str, Any]) -> Any:
    return _mapped(lambda ids: np.ones(len(ids), np.int32), row["token_ids"])


def _as_columns(row: Mapping[str, Any]) -> dict[str, Any]:
    """The row with arrays in the dtypes of a batch: int32 where the encoder gave wider ones."""

    def array(value: Any) -> np.ndarray:
        x = np.asarray(value)
        return x.astype({"i": np.int32, "f": np.float32}.get(x.dtype.kind, x.dtype))

    return {name: _mapped(array, value) for name, value in row.items()}


def _padded(name: str, rows: Sequence[Any], length: int, pad: int) -> np.ndarray:
    """[B, T], or [B, S, T] of rows of S sequences each."""
    counts = {len(row) if isinstance(row, tuple) else 0 for row in rows}
    if len(counts) > 1:
        raise DataError(
            f"column '{name}': expected as many sequences in every row, got {min(counts)} and "
            f"{max(counts)}"
        )
    sequences = [sequence for row in rows for sequence in _each(row)]
    padded = np.full((len(sequences), length), pad, sequences[0].dtype)
    for place, sequence in enumerate(sequences):
        padded[place, : len(sequence)] = sequence
    count = counts.pop()
    return padded.reshape(len(rows), count, length) if count else padded


def _lengthened(column: np.ndarray, length: int, pad: int) -> np.ndarray:
    """[..., T] with T made `length`."""
    more = [(0, 0)] * (column.ndim - 1) + [(0, length - column.shape[-1])]
    return np.pad(column, more, constant_values=pad)


def _stacked(name: str, values: Sequence[np.ndarray]) -> np.ndarray:
    shapes = sorted({value.shape for value in values})
    if len(shapes) > 1:
        raise DataError(
            f"column '{name}': expected one shape in a batch, got {shapes[0]} and {shapes[-1]}; "
            f"columns with a value for each token are {', '.join(sorted(SEQUENCE_COLUMNS))}"
        )
    return np.stack(values)
