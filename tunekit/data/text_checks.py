"""Finds what would spoil a training on texts before it starts, all of it at once."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from itertools import combinations

import numpy as np

from tunekit.data.examples import Splits
from tunekit.data.mixture import joined
from tunekit.data.preflight import count_issues, label_issues
from tunekit.data.spec import DataSpec
from tunekit.data.text_examples import TextSource
from tunekit.errors import Issue


def check_texts(sources: Mapping[str, TextSource], spec: DataSpec) -> list[Issue]:
    """Returns every issue of the splits: strange labels, no examples, copies."""
    splits = Splits(**sources)
    issues = label_issues(splits, spec)
    if sources["train"].kind == "labelled":
        issues += count_issues(splits)
    else:
        empty = [name for name, source in sources.items() if not len(source)]
        issues += [Issue(f"data.{name}", "has no examples") for name in empty]
    return [*issues, *_copies(sources, spec)]


def _copies(sources: Mapping[str, TextSource], spec: DataSpec) -> list[Issue]:
    """Finds one text in two splits, or under two labels, by its hash."""
    if spec.on_duplicate == "ignore":
        return []
    issues: list[Issue] = []
    for (one, first), (other, second) in combinations(sources.items(), 2):
        _, ours, theirs = np.intersect1d(first.digests, second.digests, return_indices=True)
        if len(ours):
            pairs = np.stack([ours, theirs], axis=1)[np.argsort(ours)]
            message = f"{len(ours)} texts are in both {one} and {other}: "
            issues.append(Issue("data", message + _equal(first, second, pairs)))
    if all(source.kind == "labelled" for source in sources.values()):
        issues += _two_labels(sources)
    if spec.on_duplicate == "warn":
        for issue in issues:
            warnings.warn(str(issue), stacklevel=4)
        return []
    cure = ". Remove the copies, or set data.on_duplicate=warn"
    return [Issue(issue.path, issue.message + cure) for issue in issues]


def _two_labels(sources: Mapping[str, TextSource]) -> list[Issue]:
    """Finds equal texts under unequal labels, in one split or in two."""
    everything = joined(list(sources.values()))
    order = np.lexsort((everything.contents, everything.digests))
    text, content = everything.digests[order], everything.contents[order]
    clash = np.flatnonzero((text[1:] == text[:-1]) & (content[1:] != content[:-1]))
    _, once = np.unique(text[clash], return_index=True)
    if not len(once):
        return []
    pairs = np.sort([order[clash[once]], order[clash[once] + 1]], axis=0).T
    shown = pairs[np.argsort(pairs[:, 0])]
    return [
        Issue("data", f"{len(once)} texts have two labels: {_equal(everything, everything, shown)}")
    ]


def _equal(first: TextSource, second: TextSource, pairs: np.ndarray) -> str:
    """Returns "a.csv:2 = b.csv:9, ..." for pairs of examples."""
    names = [f"{first.name(i)} = {second.name(j)}" for i, j in pairs[:5].tolist()]
    more = f" and {len(pairs) - 5} more" if len(pairs) > 5 else ""
    return ", ".join(names) + more
