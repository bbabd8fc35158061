"""Mixtures: further examples drawn among the data, such as general text against forgetting."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from tunekit.data.rows import JoinedRows
from tunekit.data.text_examples import TextSource
from tunekit.errors import DataError

# Keeps the draw apart from other streams of the same seed.
_DRAW = 3


def mixed(
    data: TextSource,
    others: Sequence[TextSource],
    weights: Sequence[float],
    judged: Sequence[np.ndarray],
    seed: int,
) -> TextSource:
    """Returns the examples of the data, and after them `weight * len(data)` of each other source.

    None of a source comes a second time before all of it have come once.

    Args:
        data: kept whole, with its label names.
        others: of the same kind and with the same label names.
        weights: one for each of them, above 0.
        judged: digests of the examples that are evaluated on, which are never drawn.
        seed: fixes the draw.

    Raises:
        DataError: all examples of a source are evaluated on.
    """
    parts = [data]
    held = np.concatenate([np.zeros(0, np.uint64), *judged])
    for number, (source, weight) in enumerate(zip(others, weights, strict=True)):
        fresh = np.flatnonzero(~np.isin(source.digests, held))
        if not len(fresh):
            raise DataError(
                f"data.mix[{number}]: all {len(source)} examples are evaluated on; mix in others"
            )
        count = round(weight * len(data))
        rng = np.random.default_rng((seed, _DRAW, number))
        rounds = [rng.permutation(fresh) for _ in range(-(-count // len(fresh)))]
        parts.append(source.select(np.concatenate([fresh[:0], *rounds])[:count]))
    return joined(parts)


def joined(parts: Sequence[TextSource]) -> TextSource:
    """Returns the examples of sources of one kind and one set of labels, one after the other."""
    before = np.cumsum([0, *(len(part.rows) for part in parts)])
    places = [part.places + start for part, start in zip(parts, before[:-1], strict=True)]
    columns = ("sizes", "digests", "contents", "label_array")
    arrays = {name: np.concatenate([getattr(part, name) for part in parts]) for name in columns}
    rows = JoinedRows(tuple(part.rows for part in parts))
    return replace(parts[0], rows=rows, places=np.concatenate(places), **arrays)
