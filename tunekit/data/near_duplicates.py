"""Texts that are nearly the same, in one split or in two: MinHash finds them, Jaccard decides.

MinHash and its index are datasketch's (read in version 2.0); every pair that they propose is then
compared as it is, so none is reported that is not one, and few are missed.
"""

from __future__ import annotations

import re
import zlib
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import cast

import numpy as np

THRESHOLD = 0.8
"""Jaccard similarity of two texts' shingles from which they count as nearly the same."""
SHINGLE = 5
"""Characters of a shingle, in lowercase and without punctuation."""
MOST_TEXTS = 20_000
"""Texts that are compared; of more, so many are drawn."""
MOST_BYTES = 8_000_000
"""Of all texts that are compared: long ones are fewer."""
_PERMUTATIONS = 128
_MISSED_COUNTS = (0.1, 0.9)
"""What a wrong proposal and a missed one cost: the first is only compared in vain."""
_CROWD, _SHOWN = 32, 5

Text = Callable[[int], str]


@dataclass(frozen=True)
class NearPair:
    """Two texts that are nearly the same."""

    first: str
    """What messages call it: its file and line."""
    first_split: str
    second: str
    second_split: str
    similarity: float
    """Jaccard similarity of their shingles."""


@dataclass(frozen=True)
class NearDuplicates:
    """How many texts are nearly the same as others, none of them an exact copy."""

    counts: tuple[tuple[str, str, int], ...]
    """(split, split, texts of the second that are nearly the same as one of the first)."""
    pairs: tuple[NearPair, ...]
    """The first found, those of two splits before those of one."""
    compared: int
    total: int
    """Different texts there are; more than `compared` where some were drawn."""

    def between(self, first: str, second: str) -> int:
        """Returns how many texts of one split are nearly the same as one of another, or its own."""
        return next((n for one, two, n in self.counts if (one, two) == (first, second)), 0)


@dataclass(frozen=True)
class Candidates:
    """The texts of a split, each of which is no copy of another."""

    text: Text
    """Returns a text by its index."""
    name: Callable[[int], str]
    """Returns what messages call it."""
    indices: np.ndarray
    """Of those to compare: int64 [N]."""
    sizes: np.ndarray
    """Bytes of each of them: int64 [N]."""


def near_duplicates(
    splits: Mapping[str, Candidates], *, most: int = MOST_TEXTS, most_bytes: int = MOST_BYTES
) -> NearDuplicates:
    """Returns which texts are nearly the same as one that comes before them.

    Args:
        splits: in the order in which one comes before the other, train first.
        most: texts to compare; of more, so many are drawn from all splits alike.
        most_bytes: that they have together.
    """
    from datasketch import MinHash, MinHashLSH

    chosen, total = _drawn(splits, most, most_bytes)
    index = MinHashLSH(THRESHOLD, num_perm=_PERMUTATIONS, weights=_MISSED_COUNTS)
    counts: Counter[tuple[str, str]] = Counter()
    pairs: list[NearPair] = []
    for number, (split, row) in enumerate(chosen):
        shingles = shingles_of(splits[split].text(row))
        if not shingles:
            continue
        sketch = MinHash(_PERMUTATIONS, hashfunc=zlib.crc32)
        sketch.update_batch([shingle.encode() for shingle in shingles])
        proposed = sorted(cast(list[int], index.query(sketch)))
        for (other, earlier), similarity in _nearest(proposed, chosen, splits, shingles):
            counts[other, split] += 1
            names = splits[other].name(earlier), other, splits[split].name(row), split
            pairs.append(NearPair(*names, round(similarity, 3)))
        if len(proposed) < _CROWD:  # Of a crowd of like texts, some are enough to find the rest.
            index.insert(number, sketch)
    pairs.sort(key=lambda pair: pair.first_split == pair.second_split)
    listed = tuple((*key, count) for key, count in sorted(counts.items()))
    return NearDuplicates(listed, tuple(pairs[:_SHOWN]), len(chosen), total)


def shingles_of(text: str) -> frozenset[str]:
    """Returns the pieces of a text that it is compared by; a short one is a single piece."""
    plain = " ".join(re.findall(r"\w+", text.lower()))
    if len(plain) <= SHINGLE:
        return frozenset([plain] if plain else [])
    return frozenset(plain[i : i + SHINGLE] for i in range(len(plain) - SHINGLE + 1))


def _nearest(
    proposed: list[int],
    chosen: list[tuple[str, int]],
    splits: Mapping[str, Candidates],
    shingles: frozenset[str],
) -> list[tuple[tuple[str, int], float]]:
    """Of each split the first proposed text that is near, and how near."""
    found: dict[str, tuple[tuple[str, int], float]] = {}
    for split, row in (chosen[number] for number in proposed):
        if split in found:
            continue
        other = shingles_of(splits[split].text(row))
        similarity = len(shingles & other) / len(shingles | other)
        if similarity >= THRESHOLD:
            found[split] = (split, row), similarity
    return list(found.values())


def _drawn(
    splits: Mapping[str, Candidates], most: int, most_bytes: int
) -> tuple[list[tuple[str, int]], int]:
    """(split, index) of the texts to compare, in their order, and how many there are."""
    total = sum(len(one.indices) for one in splits.values())
    size = sum(int(one.sizes.sum()) for one in splits.values())
    count = min(total, most, max(1, int(most_bytes / max(size, 1) * total)))
    kept = np.zeros(total, bool)
    kept[np.random.default_rng(0).permutation(total)[:count]] = True
    chosen, start = [], 0
    for name, one in splits.items():
        here = one.indices[kept[start : start + len(one.indices)]]
        chosen += [(name, int(row)) for row in here]
        start += len(one.indices)
    return chosen, total
