"""A text as tokens: numbers, places and words, in arrays."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import tokenizers

_SURROGATE = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True, eq=False)
class Encoded:
    """A text, or two, as T tokens."""

    ids: np.ndarray
    """int32 [T]."""
    offsets: np.ndarray
    """int32 [T, 2]: first character, and the one after the last, in the text it came from."""
    types: np.ndarray
    """int32 [T]: BERT's segment, 1 for the second text."""
    special: np.ndarray
    """bool [T]: put there by the tokenizer, such as [CLS], and no part of the text."""
    word_ids: np.ndarray
    """int32 [T]: number of the word that it is a piece of, -1 where special."""
    sequences: np.ndarray
    """int32 [T]: 0 for the first text, 1 for the second, -1 where special."""

    def __len__(self) -> int:
        """Returns T."""
        return len(self.ids)


def clean(text: str) -> str:
    """Returns a text as long as `text`, without lone surrogates."""
    return _SURROGATE.sub("\ufffd", text)


def encoded(encoding: tokenizers.Encoding) -> Encoded:
    """Returns what ``tokenizers`` found, as arrays."""

    def numbers(values: Iterable[int | None]) -> np.ndarray:
        return np.array([-1 if value is None else value for value in values], np.int32)

    return Encoded(
        ids=np.array(encoding.ids, np.int32),
        offsets=np.array(encoding.offsets, np.int32).reshape(-1, 2),
        types=np.array(encoding.type_ids, np.int32),
        special=np.array(encoding.special_tokens_mask, bool),
        word_ids=numbers(encoding.word_ids),
        sequences=numbers(encoding.sequence_ids),
    )
