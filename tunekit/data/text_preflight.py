"""What there is to know of texts before they are trained on: counts, lengths, copies, labels."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any, Protocol

import numpy as np

from tunekit.data.examples import Splits
from tunekit.data.mixture import joined
from tunekit.data.near_duplicates import Candidates, NearDuplicates, near_duplicates
from tunekit.data.pipeline import Encode
from tunekit.data.preflight import label_counts
from tunekit.data.text_examples import TextSource

ANY_LENGTH = 1 << 20
"""Tokens that no text has: with it as its longest, nothing is cut."""
_BINS, _SHOWN, _WORDS = 10, 5, 10


@dataclass(frozen=True)
class SplitFacts:
    """One split in numbers."""

    name: str
    rows: int
    skipped: int
    """Rows that no example can be made of."""
    reasons: tuple[tuple[str, str], ...]
    """Name and reason of the first of them."""
    copies: int
    """Rows that are equal to an earlier one of the split."""
    labels: tuple[tuple[str, int], ...]
    """Examples by label; empty where labels are no classes."""
    unlabelled: int = 0
    """Examples without any label, where any number may hold."""


@dataclass(frozen=True)
class Numbers:
    """Labels that are numbers."""

    least: float
    mean: float
    most: float
    deviation: float


@dataclass(frozen=True)
class Bin:
    """One bar of a histogram."""

    first: int
    last: int | None
    """None: all that are longer."""
    count: int


@dataclass(frozen=True)
class Lengths:
    """How long texts are, in tokens, special ones included, before anything is cut."""

    texts: int
    """That were read."""
    total: int
    """That there are; more than `texts` where some were drawn."""
    tokens: int
    median: int
    p95: int
    longest: int
    max_length: int
    cut_texts: float
    """Share of the texts that are longer than `max_length`."""
    cut_tokens: float
    """Share of all tokens that lie beyond it."""
    histogram: tuple[Bin, ...]


@dataclass(frozen=True)
class Learned:
    """What the loss is made of, where it is one of tokens."""

    tokens: float
    """Share of the tokens, after cutting, that are in it."""
    silent: int
    """Texts none of whose tokens are: they teach nothing."""
    silent_names: tuple[str, ...]
    """The first of them."""


@dataclass(frozen=True)
class Copies:
    """Texts that are exactly the same."""

    across: tuple[tuple[str, str, int], ...]
    """(split, split, texts in both)."""
    across_names: tuple[tuple[str, str], ...]
    """The first of them."""
    conflicts: int
    """Texts with two labels, or two answers."""
    conflict_names: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Unknown:
    """What the vocabulary lacks."""

    tokens: float
    """Share of the tokens that stand for it."""
    words: tuple[tuple[str, int], ...]
    """The commonest, and how often they come."""


class Tokens(Protocol):
    """A text as T tokens."""

    @property
    def ids(self) -> np.ndarray:
        """Their numbers: int32 [T]."""
        ...

    @property
    def offsets(self) -> np.ndarray:
        """First character of each in the text, and the one after its last: int32 [T, 2]."""
        ...


def split_facts(splits: Splits) -> tuple[SplitFacts, ...]:
    """Returns the numbers of each split; rows skipped before a split was drawn are train's."""
    found, known = [], set()
    for name, source in splits.items():
        assert isinstance(source, TextSource)
        told = (source.skipped_count, source.skipped)
        skipped, reasons = (0, ()) if told in known else told
        known.add(told)
        found.append(
            SplitFacts(
                name,
                len(source),
                skipped,
                reasons[:_SHOWN],
                len(source) - len(np.unique(source.digests)),
                _labels(source),
                int((~source.label_array.any(axis=1)).sum()) if source.multi_label else 0,
            )
        )
    return tuple(found)


def numbers(source: TextSource) -> Numbers | None:
    """Returns the spread of labels that are numbers; `None` where they are not."""
    if source.kind != "number" or not len(source):
        return None
    values = source.label_array.astype(np.float64)
    return Numbers(*(float(v) for v in (values.min(), values.mean(), values.max(), values.std())))


def drawn(source: Any, most: int) -> np.ndarray:
    """Returns the places of at most so many examples, in order: int64 [N]."""
    if len(source) <= most:
        return np.arange(len(source))
    return np.sort(np.random.default_rng(0).choice(len(source), most, replace=False))


def read_lengths(
    source: Any, whole: Encode, cut: Encode, max_length: int, total: int
) -> tuple[Lengths, Learned | None]:
    """Returns how long the texts of a source are, and what of them is in the loss.

    Args:
        source: of what the encoders take; each example may be several texts.
        whole: turns one into columns, and cuts nothing.
        cut: does so and cuts at `max_length`.
        max_length: in tokens.
        total: texts there are, of which the source may be a part.
    """
    lengths: list[int] = []
    kept = in_loss = 0
    weighed, silent = False, []
    for place in range(len(source)):
        example = source[place]
        # A generator, as in training: without one, tasks add what judging needs.
        columns = whole(example, np.random.default_rng(place))
        texts = columns["token_ids"]
        own = [len(text) for text in (texts if isinstance(texts, tuple) else (texts,))]
        lengths += own
        if max(own) > max_length:
            columns = cut(example, np.random.default_rng(place))
        weights = columns.get("loss_weights", columns.get("token_weights"))
        if weights is not None:
            count, weighed = int(np.count_nonzero(weights)), True
            kept, in_loss = kept + len(weights), in_loss + count
            silent += [] if count else [source.name(place)]
    learned = Learned(in_loss / max(kept, 1), len(silent), tuple(silent[:_SHOWN]))
    return lengths_of(np.array(lengths), max_length, total), learned if weighed else None


def lengths_of(lengths: np.ndarray, max_length: int, total: int) -> Lengths:
    """Returns the summary of lengths in tokens, int [N]."""
    tokens = int(lengths.sum())
    beyond = np.maximum(lengths - max_length, 0)
    return Lengths(
        len(lengths),
        max(total, len(lengths)),
        tokens,
        int(np.median(lengths)),
        int(np.percentile(lengths, 95, method="inverted_cdf")),
        int(lengths.max()),
        max_length,
        float((beyond > 0).mean()),
        float(beyond.sum() / max(tokens, 1)),
        histogram(lengths),
    )


def histogram(lengths: np.ndarray) -> tuple[Bin, ...]:
    """Returns the bars of lengths, at most ten of a round width and one of all that are longer."""
    most = max(1, int(np.percentile(lengths, 99)))
    width = next(w for w in _round_numbers() if w * _BINS >= most)
    count = -(-most // width)
    of_bin = np.minimum((np.maximum(lengths, 1) - 1) // width, count)
    counts = np.bincount(of_bin, minlength=count + 1).tolist()
    first = int(of_bin.min())
    bins = [Bin(i * width + 1, (i + 1) * width, counts[i]) for i in range(first, count)]
    return (*bins, Bin(count * width + 1, None, counts[count])) if counts[count] else tuple(bins)


def tag_counts(source: Any) -> tuple[tuple[str, int], ...]:
    """Returns how many words of a source of tagged words have each tag."""
    found = Counter(tag for place in range(len(source)) for tag in source[place]["tags"])
    return tuple((name, found[number]) for number, name in enumerate(source.label_names))


def copies(splits: Splits) -> Copies:
    """Returns the texts that are in two splits, and those that have two labels."""
    sources = {name: source for name, source in splits.items() if isinstance(source, TextSource)}
    across, names = [], []
    for (one, first), (other, second) in combinations(sources.items(), 2):
        _, ours, theirs = np.intersect1d(first.digests, second.digests, return_indices=True)
        if len(ours):
            across.append((one, other, len(ours)))
            pairs = zip(ours[:_SHOWN].tolist(), theirs[:_SHOWN].tolist(), strict=True)
            names += [(first.name(i), second.name(j)) for i, j in pairs]
    everything = joined(list(sources.values()))
    order = np.lexsort((everything.contents, everything.digests))
    text, content = everything.digests[order], everything.contents[order]
    clash = np.flatnonzero((text[1:] == text[:-1]) & (content[1:] != content[:-1]))
    _, once = np.unique(text[clash], return_index=True)
    shown = clash[once][:_SHOWN]
    clashing = zip(order[shown].tolist(), order[shown + 1].tolist(), strict=True)
    conflicts = tuple((everything.name(min(ij)), everything.name(max(ij))) for ij in clashing)
    return Copies(tuple(across), tuple(names[:_SHOWN]), len(once), conflicts)


def near_copies(splits: Splits) -> NearDuplicates:
    """Returns the texts that are nearly the same; exact copies stand for each other."""
    candidates: dict[str, Candidates] = {}
    known = np.zeros(0, np.uint64)
    for name, source in splits.items():
        assert isinstance(source, TextSource)
        _, first = np.unique(source.digests, return_index=True)
        first = np.sort(first)
        own = first[~np.isin(source.digests[first], known)]
        known = np.concatenate([known, source.digests[own]])
        read = _reader(source)
        candidates[name] = Candidates(read, source.name, own, source.sizes[own])
    return near_duplicates(candidates)


def texts_of(example: Mapping[str, Any]) -> tuple[str, ...]:
    """Returns the texts that an example is told apart by: of a question, the question alone."""
    if "messages" in example:
        said = (m for m in example["messages"] if m["role"] != "system")
        return tuple(message["content"] for message in said)
    if "words" in example:
        return (" ".join(example["words"]),)
    if "question" in example:
        return (example["question"],)
    found = example["texts"] if "texts" in example else example["text"]
    return (found,) if isinstance(found, str) else tuple(found)


def unknown_words(
    texts: Sequence[str],
    tokenize: Callable[[Sequence[str]], Iterable[Tokens]],
    unknown_id: int | None,
) -> Unknown | None:
    """Returns what of the texts the vocabulary lacks; `None` where it has a token for everything.

    Args:
        texts: to look at.
        tokenize: gives the tokens of each, without special ones.
        unknown_id: of the token that stands for what is lacking.
    """
    if unknown_id is None:
        return None
    count = lacking = 0
    words: Counter[str] = Counter()
    for text, tokens in zip(texts, tokenize(texts), strict=True):
        places = np.flatnonzero(tokens.ids == unknown_id)
        count, lacking = count + len(tokens.ids), lacking + len(places)
        words.update(text[slice(*tokens.offsets[place])] for place in places)
    return Unknown(lacking / max(count, 1), tuple(words.most_common(_WORDS)))


def _reader(source: TextSource) -> Callable[[int], str]:
    return lambda index: "\n".join(texts_of(source[index]))


def _labels(source: TextSource) -> tuple[tuple[str, int], ...]:
    if source.kind != "labelled":
        return ()
    return tuple(zip(source.label_names, label_counts(source).tolist(), strict=True))


def _round_numbers() -> Iterable[int]:
    unit = 1
    while True:
        yield from (unit, 2 * unit, 5 * unit)
        unit *= 10
