"""Finds what would spoil a training before it starts, all of it at once."""

from __future__ import annotations

import warnings
from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from tunekit.data.examples import (
    LabelledImages,
    Source,
    Splits,
    data_error,
    listed,
    scan_source,
)
from tunekit.data.images import Scan
from tunekit.data.spec import DataSpec
from tunekit.errors import Issue, did_you_mean

Scans = dict[str, list[tuple[str, Scan]]]


def preflight(splits: Splits, spec: DataSpec, found_before: Sequence[Issue] = ()) -> None:
    """Passes where the splits can be trained on.

    Args:
        splits: what was opened.
        spec: how it was opened.
        found_before: issues of the opening, reported with the others.

    Raises:
        DataError: lists every issue.
    """
    issues = [*found_before, *check(splits, spec)]
    if issues:
        raise data_error(issues)


def check(splits: Splits, spec: DataSpec) -> list[Issue]:
    """Returns every issue of the splits, reading each image once."""
    scans: Scans = {name: scan_source(source) for name, source in splits.items()}
    return [
        *label_issues(splits, spec),
        *count_issues(splits),
        *_unreadable(scans),
        *_copies(splits, scans, spec),
    ]


def drop_damaged(source: LabelledImages, where: str) -> LabelledImages:
    """Returns the source without images that cannot be decoded, and warns of those."""
    scans = source.scan()
    damaged = [f"{source.name(i)} ({scan.damage})" for i, scan in enumerate(scans) if scan.damage]
    if not damaged:
        return source
    warnings.warn(
        f"{where}: skipped {len(damaged)} of {len(source)} images that cannot be read: "
        f"{listed(damaged)}",
        stacklevel=2,
    )
    return source.select([i for i, scan in enumerate(scans) if not scan.damage])


def label_issues(splits: Splits, spec: DataSpec) -> list[Issue]:
    """Returns an issue for each split whose labels are not those of train."""
    issues: list[Issue] = []
    names = spec.labels or splits.train.label_names
    for split, source in splits.items():
        where = f"data.{split}"
        if source.multi_label != splits.train.multi_label:
            kinds = (
                "several labels" if s.multi_label else "one label" for s in (source, splits.train)
            )
            issues.append(Issue(where, "examples have {} where train has {}".format(*kinds)))
            continue
        strangers = [name for name in source.label_names if name not in names]
        if strangers:
            hints = [f"'{name}'.{did_you_mean(name, names)}".rstrip(".") for name in strangers]
            known = "data.labels" if spec.labels else "the labels of train"
            issues.append(
                Issue(where, f"labels not among {known} ({listed(names)}): {listed(hints)}")
            )
        elif source.label_names != tuple(names):
            issues.append(
                Issue(
                    where,
                    f"expected label names {listed(names)} in this order, "
                    f"got {listed(source.label_names)}",
                )
            )
    return issues


def model_label_issues(source: Source, labels: Sequence[str]) -> list[Issue]:
    """Returns an issue where the labels to evaluate on are not those of the model."""
    strangers = [name for name in source.label_names if name not in labels]
    if strangers:
        hints = [f"{name!r}.{did_you_mean(name, labels)}".rstrip(".") for name in strangers]
        message = f"labels not among the model's ({listed(labels)}): {listed(hints)}"
        return [Issue("data", message)]
    if source.label_names != tuple(labels):
        expected = f"expected the model's label names {listed(labels)} in this order"
        return [Issue("data", f"{expected}, got {listed(source.label_names)}")]
    return []


def count_issues(splits: Splits) -> list[Issue]:
    """Returns issues where a split has no examples, or a label of train none."""
    issues = [
        Issue(f"data.{split}", "has no examples")
        for split, source in splits.items()
        if not len(source)
    ]
    train = splits.train
    if not len(train):
        return issues
    if len(train.label_names) < 2 and not train.multi_label:
        only = listed(train.label_names)
        issues.append(Issue("data.train", f"expected at least 2 classes, found one: {only}"))
    empty = [
        name
        for name, count in zip(train.label_names, label_counts(train), strict=True)
        if not count
    ]
    if empty:
        issues.append(
            Issue(
                "data.train",
                f"no example has the label {listed([repr(name) for name in empty])}; "
                "add examples, or leave the label out",
            )
        )
    return issues


def label_counts(source: Source) -> np.ndarray:
    """Returns how many examples have each label: int [C]."""
    labels = source.label_array
    if source.multi_label:
        return labels.sum(axis=0).astype(np.int64)
    return np.bincount(labels, minlength=len(source.label_names))


def too_few_to_split(source: Source, where: str = "data.train") -> list[Issue]:
    """Returns an issue where a class has a single example, so that none could be held out."""
    if source.multi_label:
        return []
    single = [
        name
        for name, count in zip(source.label_names, label_counts(source), strict=True)
        if count == 1
    ]
    if not single:
        return []
    return [
        Issue(
            where,
            f"cannot split off a validation part: {listed(single)} have a single example each. "
            "Add examples, give a validation split, or set data.validation_fraction=0",
        )
    ]


def _unreadable(scans: Scans) -> list[Issue]:
    issues: list[Issue] = []
    for split, looks in scans.items():
        damaged = [f"{name} ({scan.damage})" for name, scan in looks if scan.damage]
        if damaged:
            issues.append(
                Issue(
                    f"data.{split}",
                    f"{len(damaged)} of {len(looks)} images cannot be read: {listed(damaged)}. "
                    "Mend or remove them, or set data.on_unreadable=skip",
                )
            )
    return issues


def _copies(splits: Splits, scans: Scans, spec: DataSpec) -> list[Issue]:
    """Finds one image in two splits, or under two labels, by its content."""
    if spec.on_duplicate == "ignore":
        return []
    places: dict[str, list[tuple[str, str, object]]] = defaultdict(list)
    for split, source in splits.items():
        labels = source.label_array
        for i, (name, scan) in enumerate(scans[split]):
            if scan.digest and not scan.damage:
                label = tuple(labels[i]) if source.multi_label else int(labels[i])
                places[scan.digest].append((split, name, label))
    copies = [group for group in places.values() if len(group) > 1]
    leaks: dict[tuple[str, ...], list[str]] = defaultdict(list)
    clashes: list[str] = []
    for group in copies:
        one_per_split = {split: name for split, name, _ in reversed(group)}
        if len(one_per_split) > 1:
            leaks[tuple(reversed(one_per_split))].append(
                " = ".join(reversed(one_per_split.values()))
            )
        by_label = {label: name for _, name, label in reversed(group)}
        if len(by_label) > 1:
            clashes.append(" = ".join(reversed(by_label.values())))
    issues = [
        Issue("data", f"{len(names)} images are in both {' and '.join(pair)}: {listed(names)}")
        for pair, names in leaks.items()
    ]
    if clashes:
        issues.append(Issue("data", f"{len(clashes)} images have two labels: {listed(clashes)}"))
    if spec.on_duplicate == "warn":
        for issue in issues:
            warnings.warn(str(issue), stacklevel=2)
        return []
    cure = ". Remove the copies, or set data.on_duplicate=warn"
    return [Issue(issue.path, issue.message + cure) for issue in issues]
