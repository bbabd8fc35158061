"""Pairs of labelled texts, of one label or of two, as SetFit draws them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from tunekit.errors import DataError


@dataclass(frozen=True, eq=False)
class LabelPairs:
    """A source of pairs: "texts" (text, text), "score" 1.0 for one label and 0.0 for two."""

    source: Any
    """Of examples with "text" and "label"."""
    pairs: np.ndarray
    """Numbers of two texts each: int64 [N, 2]."""
    same: np.ndarray
    """Whether they have one label: bool [N]."""

    label_names: tuple[str, ...] = ()
    multi_label: bool = False

    def __len__(self) -> int:
        """Returns the number of pairs."""
        return len(self.pairs)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Returns one pair."""
        first, second = (self.source[int(row)] for row in self.pairs[index])
        return {
            "id": f"{first['id']} and {second['id']}",
            "texts": (first["text"], second["text"]),
            "score": float(self.same[index]),
        }

    def name(self, index: int) -> str:
        """Returns what a message calls the pair."""
        return " and ".join(self.source.name(int(row)) for row in self.pairs[index])

    def select(self, indices: Sequence[int] | np.ndarray) -> LabelPairs:
        """Returns the source of these pairs, in this order."""
        chosen = np.asarray(indices, np.int64)
        return replace(self, pairs=self.pairs[chosen], same=self.same[chosen])

    @property
    def label_array(self) -> np.ndarray:
        """Empty: pairs have scores, no labels."""
        return np.zeros(0, np.int32)

    @property
    def sizes(self) -> np.ndarray:
        """Of the longer text of each pair: int64 [N]."""
        return np.asarray(self.source.sizes)[self.pairs].max(axis=1)

    @property
    def fingerprint(self) -> str:
        """That of the texts."""
        return self.source.fingerprint


def label_pairs(source: Any, pairs_per_text: int, seed: int) -> LabelPairs:
    """Returns every text paired with others, by turns of its own label and of another one.

    Tunstall et al. 2022 (https://arxiv.org/abs/2209.11055), section 3.1, where both kinds are
    drawn equally often. A text that is alone with its label has pairs of two labels only.

    Args:
        source: of labelled texts, one label each.
        pairs_per_text: pairs drawn with each text.
        seed: of the draw.

    Raises:
        DataError: the texts have several labels each, or all of them the same one.
    """
    labels = np.asarray(source.label_array)
    if labels.ndim != 1:
        raise DataError(
            "task.contrast: pairs are drawn by label where each text has one label, and these have "
            "several; give pairs of texts instead."
        )
    names, numbers, counts = np.unique(labels, return_inverse=True, return_counts=True)
    if len(names) < 2:
        raise DataError(
            f"task.contrast: pairs are drawn by label from texts of at least 2 labels, and these "
            f"have {len(names)}; give more labels, or pairs of texts."
        )
    order = np.argsort(numbers, kind="stable")
    """Texts by label: those of one stand together."""
    place = np.argsort(order, kind="stable")
    starts = np.cumsum(counts) - counts
    rng = np.random.default_rng((seed, len(labels)))
    anchors = np.repeat(np.arange(len(labels)), pairs_per_text)
    start, count = starts[numbers[anchors]], counts[numbers[anchors]]
    same = np.resize(np.arange(pairs_per_text) % 2 == 0, len(anchors)) & (count > 1)
    # A step of 1 to count - 1 round those of the label never ends where it began.
    step = 1 + rng.integers(0, np.maximum(count - 1, 1))
    own = start + (place[anchors] - start + step) % count
    other = rng.integers(0, len(labels) - count)
    other += np.where(other >= start, count, 0)
    partners = order[np.where(same, own, other)]
    return LabelPairs(source, np.stack([anchors, partners], axis=1), same)
