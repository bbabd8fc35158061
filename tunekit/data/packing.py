"""Packing: several short texts in one row, so that hardly a token of a batch is padding.

The rows are made once, for all epochs: their number is then the same in each.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tunekit.data.pipeline import Columns, Encode, Reading, order_rng, read
from tunekit.distributed import gathered, process_count, process_index
from tunekit.errors import DataError

_AHEAD = 256
"""Texts that are encoded ahead to be measured."""


@dataclass(frozen=True)
class Packing:
    """That texts share rows, and how many tokens a row holds."""

    length: int


@dataclass(frozen=True, eq=False)
class PackedRows:
    """Which texts share a row.

    Example:
        >>> rows = pack(np.array([3, 4, 2, 1]), length=5, seed=0)
        >>> len(rows), rows.fill
        (2, 1.0)
    """

    texts: np.ndarray
    """Index in the source of every text, row after row: int32 [N]."""
    ends: np.ndarray
    """Where each row ends in `texts`: int32 [rows]."""
    fill: float
    """Share of the rows' tokens that are no padding."""

    def __len__(self) -> int:
        """Returns the number of rows."""
        return len(self.ends)

    def texts_of(self, order: Iterable[int]) -> list[np.ndarray]:
        """Returns the indices of the texts of these rows."""
        rows = np.split(self.texts, self.ends[:-1])
        return [rows[place] for place in order]


def pack(lengths: np.ndarray, length: int, *, seed: int) -> PackedRows:
    """Returns rows of at most `length` tokens that hold every text once.

    Texts come in an order drawn by `seed`; each goes into the row that it fills best, or opens a
    new one (best fit: Johnson 1974, https://doi.org/10.1137/0203025, at most 1.7 times the rows
    needed).

    Args:
        lengths: tokens of each text: int [N].
        length: tokens of a row.
        seed: of the order.

    Raises:
        DataError: there are no texts, or one is longer than a row.
    """
    if not len(lengths):
        raise DataError("data: expected at least one example to make a batch of, got none")
    longest = int(np.argmax(lengths))
    if lengths[longest] > length:
        raise DataError(
            f"example {longest} has {lengths[longest]} tokens, and a packed row holds {length}; "
            "the encoder must cut it (batch.max_length)"
        )
    rows: list[list[int]] = []
    open_rows: list[list[int]] = [[] for _ in range(length + 1)]  # by tokens left
    is_open = 0  # bit n: there is a row with n tokens left
    for text in order_rng(seed, 0, 2).permutation(len(lengths)):
        size = int(lengths[text])
        if fitting := is_open >> size:
            # The lowest bit set: the row that has least left.
            left = size + (fitting & -fitting).bit_length() - 1
            row = open_rows[left].pop()
            if not open_rows[left]:
                is_open ^= 1 << left
        else:
            row, left = len(rows), length
            rows.append([])
        rows[row].append(int(text))
        if left > size:
            open_rows[left - size].append(row)
            is_open |= 1 << (left - size)
    ends = np.cumsum([len(row) for row in rows], dtype=np.int32)
    texts = np.concatenate(rows).astype(np.int32)
    return PackedRows(texts, ends, float(np.sum(lengths) / (len(rows) * length)))


def token_lengths(
    source: Any, encode: Encode, *, shuffle: bool = True, workers: int | None = None
) -> np.ndarray:
    """Returns the number of tokens of every text: int32 [N]; encodes each once, in threads.

    Of several processes each encodes its share, and all of them ask.

    Args:
        source: the texts.
        encode: as `SequenceBatches` takes it.
        shuffle: whether it is given a generator.
        workers: threads; None uses the cores, 0 the caller's.

    Raises:
        DataError: a text cannot be read.
    """

    def length(index: int) -> int:
        rng = np.random.default_rng(index) if shuffle else None
        return len(read(source, encode, index, rng)["token_ids"])

    first, count = process_index(), process_count()
    own = range(first, len(source), count)
    reading = Reading(batch_size=_AHEAD, workers=workers, prefetch=1)
    rows = reading.rows(lambda place: length(own[place]), range(len(own)))
    parts = gathered(np.fromiter(rows, np.int32, len(own)).tolist(), "lengths of the texts")
    lengths = np.empty(len(source), np.int32)
    for place, part in enumerate(parts):
        lengths[place::count] = part
    return lengths


def packed_row(texts: Sequence[Columns], by_token: frozenset[str]) -> Columns:
    """Returns one row of several texts: their tokens one after the other, and which is whose.

    Raises:
        DataError: a column has a value for each text, and a row has room for one.
    """
    fixed = sorted(texts[0].keys() - by_token - {"index"})
    if fixed or isinstance(texts[0]["token_ids"], tuple):
        what = f"column '{fixed[0]}' has one value" if fixed else "there are several sequences"
        raise DataError(
            f"batch.packing: {what} for each text, and a packed row holds several texts; "
            "set it to false"
        )
    lengths = [len(text["token_ids"]) for text in texts]
    joined = {
        name: np.concatenate([text[name] for text in texts]) for name in texts[0] if name != "index"
    }
    return {
        **joined,
        "positions": np.concatenate([np.arange(n, dtype=np.int32) for n in lengths]),
        "documents": np.repeat(np.arange(1, len(texts) + 1, dtype=np.int32), lengths),
        "index": texts[0]["index"],
    }
