"""One pass over rows before any is trained on: which can be used, and what must be known of all."""

from __future__ import annotations

import hashlib
import json
from array import array
from dataclasses import dataclass
from itertools import compress

import numpy as np

from tunekit.data.columns import Columns
from tunekit.data.examples import data_error
from tunekit.data.rows import BadRow, Rows
from tunekit.data.spec import DataSpec
from tunekit.data.text_kinds import Reading, Readings, TextKind, reader
from tunekit.errors import Issue

_SAMPLED, _REASONS = 100, 20


@dataclass(frozen=True)
class Scan:
    """What is known of the rows of a split that can be used; arrays are in their order, [N]."""

    rows: Readings
    places: np.ndarray
    """Index among all rows, int64."""
    sizes: np.ndarray
    """Bytes of what is read of each, int64."""
    digests: np.ndarray
    """Hash of the inputs, uint64: equal for copies."""
    contents: np.ndarray
    """Hash of inputs, labels and outputs, uint64."""
    labels: list[tuple[str, ...]]
    """Names of each example's labels, of kind "labelled"; else empty."""
    numbers: np.ndarray
    """Label of each, float32, of kind "number"; else empty."""
    names: frozenset[str]
    """Names of labels or tags that occur."""
    several: bool
    """Whether examples have any number of labels."""
    bad: tuple[tuple[str, str], ...]
    """Name and reason of the first rows that cannot be used."""
    bad_count: int

    @property
    def unlabelled(self) -> bool:
        """Whether none can be used, for want of labels alone: a test set that keeps them secret."""
        return not len(self.places) and all(reason == "no label" for _, reason in self.bad)

    def issues(self, where: str) -> list[Issue]:
        """Returns an issue that lists the rows that cannot be used."""
        if not self.bad_count:
            return []
        cure = "or set data.on_unreadable: skip"
        lines = [f"{name}: {reason}" for name, reason in self.bad[:5]]
        if self.bad_count == 1:
            return [Issue(where, f"{lines[0]}; mend the line, {cure}")]
        if self.bad_count > len(lines):
            lines.append(f"and {self.bad_count - len(lines)} more")
        shown = "\n    ".join([*lines, f"mend the lines, {cure}"])
        message = f"{self.bad_count} of {len(self.rows)} rows cannot be read:\n    {shown}"
        return [Issue(where, message)]


def scan(rows: Rows, kind: TextKind, spec: DataSpec) -> Scan:
    """Returns what is known of the rows after reading each of them once.

    Args:
        rows: of one split.
        kind: what they are to become.
        spec: names columns; others are found by their names.

    Raises:
        DataError: a column is not there or ambiguous.
    """
    columns = Columns(columns_of(rows), rows.place)
    readings = Readings(rows, reader(kind, columns, spec, rows.class_names))
    if columns.issues and columns.there:
        raise data_error(columns.issues)
    index = _Index(labelled=kind == "labelled")
    for place_of_row in range(len(rows)):
        try:
            index.add(place_of_row, readings.read(place_of_row))
        except BadRow as error:
            index.reject(place_of_row, str(error))
    if kind == "labelled" and not index.several:
        index.reject_unlabelled()
    return index.scan(readings, numbered=kind == "number")


def columns_of(rows: Rows) -> tuple[str, ...]:
    """Returns the columns of the first rows that can be read."""
    found: dict[str, None] = {}
    sampled = 0
    for index in range(len(rows)):
        try:
            found |= dict.fromkeys(rows.read(index))
        except BadRow:
            continue
        sampled += 1
        if sampled == _SAMPLED:
            break
    return tuple(found)


class _Index:
    """What a scan has gathered so far: some 60 bytes a row."""

    def __init__(self, *, labelled: bool) -> None:
        self.labelled = labelled
        self.places, self.sizes = array("q"), array("q")
        self.digests, self.contents = array("Q"), array("Q")
        self.numbers = array("f")
        self.labels: list[tuple[str, ...]] = []
        self.equal: dict[tuple[str, ...], tuple[str, ...]] = {}
        self.names: set[str] = set()
        self.several = False
        self.bad: list[tuple[int, str]] = []
        self.bad_count = 0

    def add(self, place: int, reading: Reading) -> None:
        """Takes in a row. Raises BadRow where it holds what is no text."""
        inputs = _bytes(reading.inputs)
        hasher = hashlib.blake2b(inputs, digest_size=8)
        digest = hasher.digest()
        outputs = _bytes([reading.outputs, reading.labels, reading.number])
        hasher.update(outputs)
        self.places.append(place)
        self.sizes.append(len(inputs) + len(outputs))
        self.digests.append(int.from_bytes(digest, "big"))
        self.contents.append(int.from_bytes(hasher.digest(), "big"))
        self.numbers.append(reading.number)
        self.several |= reading.several
        self.names.update(reading.labels)
        if self.labelled:  # rows of equal labels share one tuple
            self.labels.append(self.equal.setdefault(reading.labels, reading.labels))

    def reject(self, place: int, reason: str) -> None:
        """Takes note of a row that cannot be used."""
        self.bad_count += 1
        if len(self.bad) < _REASONS:
            self.bad.append((place, reason))

    def reject_unlabelled(self) -> None:
        """Rejects the rows without a label, where each must have one."""
        if () not in self.equal:
            return
        has = [bool(names) for names in self.labels]
        for place, labelled in zip(self.places, has, strict=True):
            if not labelled:
                self.reject(place, "no label")
        self.labels = list(compress(self.labels, has))
        for column in ("places", "sizes", "digests", "contents", "numbers"):
            kept = getattr(self, column)
            setattr(self, column, array(kept.typecode, compress(kept, has)))
        self.bad.sort()

    def scan(self, rows: Readings, *, numbered: bool) -> Scan:
        return Scan(
            rows,
            np.array(self.places, np.int64),
            np.array(self.sizes, np.int64),
            np.array(self.digests, np.uint64),
            np.array(self.contents, np.uint64),
            self.labels,
            np.array(self.numbers if numbered else (), np.float32),
            frozenset(self.names),
            self.several,
            tuple((rows.name(place), reason) for place, reason in self.bad),
            self.bad_count,
        )


_ENCODER = json.JSONEncoder(ensure_ascii=False)


def _bytes(value: object) -> bytes:
    try:
        return _ENCODER.encode(value).encode()
    except UnicodeEncodeError as error:
        character = f"\\u{ord(error.object[error.start]):04x}"
        raise BadRow(f"half a surrogate pair ({character}), which is no character") from None
