"""Sources of labelled images: what the rest of the house reads examples from."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, runtime_checkable

import numpy as np

from tunekit.data.images import Images, Scan, Scanner, scan_pixels
from tunekit.errors import DataError, Issue


@runtime_checkable
class Source(Protocol):
    """A finite, indexable collection of labelled images.

    Example `i` is a dict: "image" (PIL image in mode RGB, or uint8 [H, W, 3]), "label" (int, or
    float32 [C] of zeros and ones), "id" (str, what a message calls it).
    """

    @property
    def label_names(self) -> tuple[str, ...]:
        """Names of the C classes, in the order of the label's numbers."""
        ...

    @property
    def multi_label(self) -> bool:
        """Whether an example has any number of labels instead of one."""
        ...

    @property
    def label_array(self) -> np.ndarray:
        """Every label: int32 [N], or float32 [N, C] where `multi_label`."""
        ...

    @property
    def fingerprint(self) -> str:
        """Hash of the content, equal on every machine whatever the order."""
        ...

    def __len__(self) -> int:
        """Returns the number of examples."""
        ...

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Returns one example."""
        ...

    def select(self, indices: Sequence[int] | np.ndarray) -> Source:
        """Returns the source of these examples, in this order."""
        ...


@dataclass(frozen=True)
class Splits:
    """What to train on, what to choose by and what to judge by."""

    train: Source
    validation: Source | None = None
    test: Source | None = None

    def items(self) -> Iterator[tuple[str, Source]]:
        """Yields (name, source) of the splits there are."""
        for name in ("train", "validation", "test"):
            source = getattr(self, name)
            if source is not None:
                yield name, source

    def fingerprints(self) -> dict[str, str]:
        """Returns the fingerprint of each split there is, by what errors call it: "train data"."""
        return {f"{name} data": source.fingerprint for name, source in self.items()}


@dataclass(frozen=True, eq=False)
class LabelledImages:
    """The source behind every format: rows of a collection of images, and their labels."""

    scanner: Scanner
    rows: np.ndarray
    """Index of each example in the images: int [N]."""
    label_array: np.ndarray
    label_names: tuple[str, ...]
    multi_label: bool

    def __len__(self) -> int:
        """Returns the number of examples."""
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Returns one example."""
        row = int(self.rows[index])
        label = self.label_array[index]
        return {
            "image": self.scanner.images.read(row),
            "label": label if self.multi_label else int(label),
            "id": self.scanner.images.name(row),
        }

    def select(self, indices: Sequence[int] | np.ndarray) -> LabelledImages:
        """Returns the source of these examples, in this order."""
        chosen = np.asarray(indices, np.int64)
        return replace(self, rows=self.rows[chosen], label_array=self.label_array[chosen])

    def name(self, index: int) -> str:
        """Returns what a message calls the example."""
        return self.scanner.images.name(int(self.rows[index]))

    def scan(self) -> list[Scan]:
        """Returns the scan of every example; the content is read once in a source's life."""
        return self.scanner(self.rows)

    def names_of(self, index: int) -> tuple[str, ...]:
        """Returns the label names of an example."""
        label = self.label_array[index]
        chosen = np.flatnonzero(label) if self.multi_label else [int(label)]
        return tuple(self.label_names[i] for i in chosen)

    @property
    def fingerprint(self) -> str:
        """sha256 over each example's relative path, content and labels."""
        images = self.scanner.images
        lines = sorted(
            "\0".join((images.key(int(row)), scan.digest, *self.names_of(i)))
            for i, (row, scan) in enumerate(zip(self.rows, self.scan(), strict=True))
        )
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def scan_source(source: Source) -> list[tuple[str, Scan]]:
    """Returns (name, scan) of every example of any source."""
    if isinstance(source, LabelledImages):
        return [(source.name(i), scan) for i, scan in enumerate(source.scan())]
    found: list[tuple[str, Scan]] = []
    for i in range(len(source)):
        try:
            example = source[i]
            found.append((example["id"], scan_pixels(example["image"])))
        except DataError as error:
            found.append((f"example {i}", Scan("", str(error))))
    return found


@dataclass(frozen=True)
class UnlabelledImages:
    """Images to predict on: examples have "image" and "id"."""

    images: Images

    def __len__(self) -> int:
        """Returns the number of examples."""
        return len(self.images)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Returns one example."""
        return {"image": self.images.read(index), "id": self.images.name(index)}


@dataclass(frozen=True)
class Found:
    """One split as its format holds it: labels are names, not yet numbers."""

    images: Images
    labels: tuple[tuple[str, ...], ...]
    """Label names of each image; exactly one each unless `multi_label`."""
    multi_label: bool = False
    declared: tuple[str, ...] = ()
    """Names the format itself gives, in its order, whether or not an image has them."""
    issues: tuple[Issue, ...] = field(default=())
    """What is wrong with the split, for the one report."""

    def names(self) -> tuple[str, ...]:
        """Returns the declared names, or those that occur, sorted (numbers by value)."""
        return self.declared or in_order({name for labels in self.labels for name in labels})

    def bind(self, names: Sequence[str], *, multi_label: bool) -> LabelledImages:
        """Returns the source with numbers for labels.

        Names that `names` lacks are appended to the source's own `label_names`, where the
        preflight finds them.
        """
        array, all_names = label_numbers(self.labels, names, multi_label=multi_label)
        rows = np.arange(len(self.images))
        return LabelledImages(Scanner(self.images), rows, array, all_names, multi_label)


def label_numbers(
    labels: Sequence[tuple[str, ...]], names: Sequence[str], *, multi_label: bool
) -> tuple[np.ndarray, tuple[str, ...]]:
    """Returns labels as numbers, int32 [N] or float32 [N, C], and the names they are numbers of.

    Names that `names` lacks are appended to it.
    """
    strangers = {name for one in labels for name in one} - set(names)
    all_names = (*names, *in_order(strangers))
    number = {name: i for i, name in enumerate(all_names)}
    if not multi_label:
        return np.array([number[name] for (name,) in labels], np.int32), all_names
    array = np.zeros((len(labels), len(all_names)), np.float32)
    for i, one in enumerate(labels):
        array[i, [number[name] for name in one]] = 1
    return array, all_names


def in_order(names: Iterable[str]) -> tuple[str, ...]:
    """Returns names sorted: by value where all are whole numbers, else by alphabet."""
    names = list(names)
    if all(name.isdecimal() for name in names):
        return tuple(sorted(names, key=lambda name: (int(name), name)))
    return tuple(sorted(names))


def listed(items: Sequence[Any], most: int = 5) -> str:
    """Returns "a, b, c" with at most so many items, then how many more there are."""
    shown = ", ".join(str(item) for item in items[:most])
    return shown if len(items) <= most else f"{shown} and {len(items) - most} more"


def data_error(issues: Sequence[Issue]) -> DataError:
    """Returns the one exception that lists every issue."""
    if len(issues) == 1:
        return DataError(str(issues[0]))
    lines = "\n".join(f"  {issue}" for issue in issues)
    return DataError(f"the data has {len(issues)} problems:\n{lines}")
