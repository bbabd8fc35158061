"""Sources of texts: what tasks of texts read their examples from."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from tunekit.data.examples import label_numbers
from tunekit.data.rows import BadRow, JoinedRows
from tunekit.data.text_kinds import Readings, TextKind
from tunekit.data.text_scan import Scan
from tunekit.errors import DataError


@dataclass(frozen=True, eq=False)
class TextSource:
    """Examples of texts by index, read from their rows when they are asked for.

    An example is a dict with "id" and, by kind:

    - labelled: "text" (str, or two of them), "label" (int, or float32 [C] where `multi_label`);
    - number: "text", "label" (float);
    - tagged: "words" (list of str), "tags" (list of int, numbers in `label_names`);
    - answers: "question", "context", "answers" (list of (text, start character), perhaps empty);
    - pairs: "texts" (two, or three: an anchor, a match, and what is none), "score" (float or None);
    - dialogue: "messages" (dicts of "role" and "content"), or "text" where a row is plain text;
    - plain: "text".
    """

    kind: TextKind
    rows: Readings | JoinedRows
    places: np.ndarray
    """Index of each example among the rows, int64 [N]."""
    sizes: np.ndarray
    """Bytes of each example, int64 [N]: what grouping by length needs."""
    digests: np.ndarray
    """Hash of the inputs of each, uint64 [N]: equal for copies."""
    contents: np.ndarray
    """Hash of each as a whole, labels included, uint64 [N]."""
    label_names: tuple[str, ...]
    """Classes or tags in the order of their numbers; empty for kinds without."""
    label_array: np.ndarray
    """int32 [N]; float32 [N, C] where `multi_label`; float32 [N] of numbers; else empty."""
    multi_label: bool = False
    skipped: tuple[tuple[str, str], ...] = ()
    """Name and reason of the first rows that were passed over."""
    skipped_count: int = 0

    def __len__(self) -> int:
        """Returns the number of examples."""
        return len(self.places)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Returns one example.

        Raises:
            DataError: its file has changed since it was opened.
        """
        name = self.name(index)
        try:
            reading = self.rows.read(int(self.places[index]))
        except BadRow as error:
            raise DataError(f"{name}: {error}; it was changed since it was opened") from error
        example = {**reading.inputs, **reading.outputs, "id": name}
        if self.kind == "tagged":
            example["tags"] = [self._numbers[tag] for tag in reading.labels]
        elif self.label_array.size:
            label = self.label_array[index]
            example["label"] = label if self.multi_label else label.item()
        return example

    def select(self, indices: Sequence[int] | np.ndarray) -> TextSource:
        """Returns the source of these examples, in this order."""
        chosen = np.asarray(indices, np.int64)
        columns = ("places", "sizes", "digests", "contents")
        kept = {name: getattr(self, name)[chosen] for name in columns}
        labels = self.label_array[chosen] if len(self.label_array) else self.label_array
        return replace(self, label_array=labels, **kept)

    def name(self, index: int) -> str:
        """Returns what a message calls the example: its file and line."""
        return self.rows.name(int(self.places[index]))

    @property
    def fingerprint(self) -> str:
        """sha256 over what the examples hold, whatever their order."""
        return hashlib.sha256(np.sort(self.contents).tobytes()).hexdigest()

    @cached_property
    def _numbers(self) -> Mapping[str, int]:
        return {name: number for number, name in enumerate(self.label_names)}


def source_of(scan: Scan, kind: TextKind, names: Sequence[str], *, multi_label: bool) -> TextSource:
    """Returns the source of the rows that can be used.

    Args:
        scan: of one split.
        kind: of its examples.
        names: of labels or tags; those that it lacks are appended, where the preflight finds them.
        multi_label: whether examples of any split have any number of labels.
    """
    all_names, array = tuple(names), np.zeros(0, np.int32)
    if kind == "labelled":
        array, all_names = label_numbers(scan.labels, names, multi_label=multi_label)
    elif kind == "number":
        array = scan.numbers
    elif kind == "tagged":
        all_names = (*names, *sorted(scan.names - set(names)))
    return TextSource(
        kind,
        scan.rows,
        scan.places,
        scan.sizes,
        scan.digests,
        scan.contents,
        all_names,
        array,
        multi_label and kind == "labelled",
        scan.bad,
        scan.bad_count,
    )
