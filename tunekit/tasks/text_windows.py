"""Long texts in pieces that fit into one sequence, so that nothing of them is left out."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from tunekit.errors import DataError
from tunekit.models.tokenizing import Tokenizer


@dataclass(frozen=True, eq=False)
class TextWindows:
    """A source of plain texts, in pieces."""

    source: Any
    """Of examples with "text" and "id"."""
    rows: np.ndarray
    """Which text each piece is of: int64 [N]."""
    spans: np.ndarray
    """First character of each piece and the one after its last: int64 [N, 2]."""
    sizes: np.ndarray
    """How long each piece is: int64 [N]."""
    label_names: tuple[str, ...] = ()
    multi_label: bool = False

    def __len__(self) -> int:
        """Returns the number of pieces."""
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Returns one piece, under the name of its text."""
        example = self.source[int(self.rows[index])]
        start, stop = self.spans[index]
        return {**example, "text": example["text"][start:stop]}

    def name(self, index: int) -> str:
        """Returns what a message calls the piece."""
        return self.source.name(int(self.rows[index]))

    def select(self, indices: Sequence[int] | np.ndarray) -> TextWindows:
        """Returns the source of these pieces, in this order."""
        chosen = np.asarray(indices, np.int64)
        rows, spans, sizes = self.rows[chosen], self.spans[chosen], self.sizes[chosen]
        return replace(self, rows=rows, spans=spans, sizes=sizes)

    @property
    def label_array(self) -> np.ndarray:
        """Empty: there are no labels."""
        return np.zeros(0, np.int32)

    @property
    def fingerprint(self) -> str:
        """That of the texts."""
        return self.source.fingerprint


def text_windows(source: Any, tokenizer: Tokenizer, max_length: int) -> Any:
    """Returns the source with every text cut into pieces of at most `max_length` tokens.

    Pieces end between words, but for a word that fills one by itself. A source whose texts all fit
    is returned as it is; texts of fewer bytes than tokens that fit are not read.

    Raises:
        DataError: `max_length` has no room beside the special tokens.
    """
    special = len(tokenizer.encode(""))
    room = max_length - special
    if room < 1:
        raise DataError(
            f"batch.max_length: {max_length} tokens leave no room for text beside the {special} "
            "special ones that the tokenizer adds; raise it."
        )
    # No tokenizer makes more tokens than bytes, and a row has its text and more.
    row_sizes = np.asarray(source.sizes)
    found = {
        int(row): _pieces(source[int(row)]["text"], tokenizer, room)
        for row in np.flatnonzero(row_sizes > room)
    }
    if all(len(pieces) == 1 for pieces in found.values()):
        return source
    whole = [(0, sys.maxsize)]
    spans = [found.get(row, whole) for row in range(len(source))]
    rows = np.repeat(np.arange(len(source)), [len(pieces) for pieces in spans])
    ends = np.array([piece for pieces in spans for piece in pieces], np.int64)
    sizes = np.minimum(ends[:, 1] - ends[:, 0], row_sizes[rows])
    return TextWindows(source, rows, ends, sizes)


def _pieces(text: str, tokenizer: Tokenizer, room: int) -> list[tuple[int, int]]:
    """Spans of characters of at most `room` tokens each."""
    encoded = tokenizer.encode(text, special=False)
    pieces, start = [], 0
    while start < len(encoded):
        stop = min(start + room, len(encoded))
        words = encoded.word_ids
        if stop < len(encoded):
            first = np.searchsorted(words, words[stop])
            stop = int(first) if first > start else stop
        pieces.append((int(encoded.offsets[start, 0]), int(encoded.offsets[stop - 1, 1])))
        start = stop
    return pieces or [(0, len(text))]
