"""Rows of a file too large for memory: an index of where each begins, and reads at that place."""

from __future__ import annotations

import json
import os
import weakref
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tunekit.data.rows import BadRow, Row, as_row
from tunekit.errors import DataError

MAX_ROW_BYTES = 10_000_000
_BOM, _UTF16 = b"\xef\xbb\xbf", (b"\xff\xfe", b"\xfe\xff")

Place = tuple[int, int, int]
"""Where a row begins in its file, how long it is, both in bytes, and the number of its line."""


class FileRows:
    """Rows of a file by index, 24 bytes of memory each.

    A read is one `pread`: threads need no lock, and no page of the file counts as the process's
    memory, as those of a memory map do.
    """

    def __init__(self, path: Path, places: Iterable[Place], parse: Callable[[bytes], Row]) -> None:
        """Takes where the rows are, and what makes a row of bytes or raises BadRow."""
        index = array("q")
        for place in places:
            index.extend(place)
        self._places = np.array(index, np.int64).reshape(-1, 3)
        self._parse = parse
        self.place = path.name
        self._descriptor = os.open(path, os.O_RDONLY)
        weakref.finalize(self, os.close, self._descriptor)
        self.class_names: Mapping[str, tuple[str, ...]] = {}

    def __len__(self) -> int:
        """Returns the number of rows."""
        return len(self._places)

    def read(self, index: int) -> Row:
        """Returns a row. Raises BadRow."""
        start, size, _ = self._places[index].tolist()
        if size > MAX_ROW_BYTES:
            most = MAX_ROW_BYTES // 10**6
            raise BadRow(f"{size / 1e6:.1f} MB long, where at most {most} MB are read")
        return self._parse(os.pread(self._descriptor, size, start))

    def name(self, index: int) -> str:
        """Returns "file:line"."""
        return f"{self.place}:{self._places[index, 2]}"


def jsonl_rows(path: Path) -> FileRows:
    """Returns the rows of a file that has one JSON object a line; blank lines are none."""
    return FileRows(path, _filled_lines(path), _json_row)


def text_rows(path: Path) -> FileRows:
    """Returns the paragraphs of a plain text, or its lines where blank ones divide none.

    Paragraphs stand where blank lines leave at most 20 lines together on average: a few blank
    lines in a list of sentences do not make paragraphs of it.
    """
    paragraphs = sum(1 for _ in _paragraphs(path))
    lines = sum(1 for _ in _filled_lines(path))
    divided = 1 < paragraphs and lines <= 20 * paragraphs
    return FileRows(path, _paragraphs(path) if divided else _filled_lines(path), _text_row)


def conll_rows(path: Path) -> FileRows:
    """Returns the sentences of a file of lines "word ... tag", blank lines between sentences."""
    return FileRows(path, _paragraphs(path, without=(b"-DOCSTART-",)), _conll_row)


def file_lines(path: Path) -> Iterator[tuple[int, int, int, bytes]]:
    """Yields start, size, number and content of each line, the content cut at the longest row.

    Raises:
        DataError: the file is UTF-16.
    """
    with path.open("rb", buffering=1 << 20) as file:
        number, start = 1, 0
        while line := file.readline(MAX_ROW_BYTES + 1):
            size, last = len(line), line
            while not last.endswith(b"\n") and (last := file.readline(MAX_ROW_BYTES)):
                size += len(last)
            if number == 1:
                if line.startswith(_UTF16):
                    raise DataError(f"{path} is UTF-16; save it as UTF-8")
                skipped = len(_BOM) if line.startswith(_BOM) else 0
                start, size, line = start + skipped, size - skipped, line[skipped:]
            yield start, size, number, line
            start, number = start + size, number + 1


def decoded(content: bytes) -> str:
    """Returns the text of a row. Raises BadRow."""
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        byte = f"byte 0x{content[error.start]:02x} at {error.start + 1}"
        raise BadRow(f"not UTF-8 ({byte})") from None


def _filled_lines(path: Path) -> Iterator[Place]:
    for start, size, number, line in file_lines(path):
        if line.strip():
            yield start, size, number


def _paragraphs(path: Path, without: tuple[bytes, ...] = ()) -> Iterator[Place]:
    """Yields the runs of lines between blank ones, and between those that begin with `without`."""
    first = end = number = 0
    for start, size, line_number, line in file_lines(path):
        if line.strip() and not (without and line.startswith(without)):
            if not number:
                first, number = start, line_number
            end = start + size
        elif number:
            yield first, end - first, number
            number = 0
    if number:
        yield first, end - first, number


def _json_row(content: bytes) -> Row:
    return as_row(_parsed(decoded(content)))


def _parsed(text: str) -> Any:
    try:
        return _DECODER.decode(text.strip())
    except json.JSONDecodeError as error:
        raise BadRow(f"invalid JSON ({error.msg} at character {error.pos + 1})") from None
    except ValueError as error:  # a whole number of thousands of digits
        raise BadRow(f"invalid JSON ({error})") from None
    except RecursionError:
        raise BadRow("invalid JSON (nested too deeply)") from None


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Returns the object of these keys; JSON itself would let the last of equal keys win."""
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise BadRow(f"the key {twice!r} occurs twice")
    return found


_DECODER = json.JSONDecoder(object_pairs_hook=_once)


def _text_row(content: bytes) -> Row:
    return {"text": decoded(content).replace("\r\n", "\n").strip()}


def _conll_row(content: bytes) -> Row:
    cells = [line.split() for line in decoded(content).splitlines() if line.strip()]
    alone = next((line[0] for line in cells if len(line) < 2), None)
    if alone is not None:
        raise BadRow(f"the word {alone!r} has no tag")
    return {"tokens": [line[0] for line in cells], "tags": [line[-1] for line in cells]}
