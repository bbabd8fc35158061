"""Rows of CSV and TSV files, indexed by where each record begins."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from pathlib import Path

from tunekit.data.file_rows import MAX_ROW_BYTES, FileRows, Place, decoded, file_lines
from tunekit.data.rows import BadRow, Row
from tunekit.errors import DataError


def csv_rows(path: Path) -> FileRows:
    """Returns the records of a table below its header; quoted cells may hold line breaks.

    Cells are divided by tabs in a .tsv, else by the comma or semicolon that the header has more of.

    Raises:
        DataError: the header is missing, or names a column twice.
    """
    # A cell of the csv module is at most 128 KiB long unless told otherwise, for all readers.
    csv.field_size_limit(max(csv.field_size_limit(), MAX_ROW_BYTES))
    line = next((line for _, _, _, line in file_lines(path) if line.strip()), b"")
    tabs = path.suffix.lower() == ".tsv"
    delimiter = "\t" if tabs else max(",;", key=lambda mark: line.count(mark.encode()))
    places = _records(path, delimiter)
    header = next(places, None)
    if header is None:
        raise DataError(f"{path} is empty; expected a header of column names")
    start, size, _ = header
    with path.open("rb") as file:
        file.seek(start)
        try:
            names = _cells(file.read(size), delimiter)
        except BadRow as error:
            raise DataError(f"{path}: the header cannot be read: {error}") from error
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise DataError(f"{path}: the header names {twice[0]!r} twice; rename one of them")

    def parse(content: bytes) -> Row:
        cells = _cells(content, delimiter)
        if len(cells) != len(names):
            raise BadRow(f"expected {len(names)} cells as in the header, got {len(cells)}")
        return dict(zip(names, cells, strict=True))

    return FileRows(path, places, parse)


def _records(path: Path, delimiter: str) -> Iterator[Place]:
    """Yields the place of each record, blank ones passed over."""
    begun: tuple[int, int] | None = None
    end = 0

    def lines() -> Iterator[str]:
        nonlocal begun, end
        for start, size, number, line in file_lines(path):
            begun, end = begun or (start, number), start + size
            # What is not UTF-8 is told when the row is read.
            yield line.decode("utf-8", "surrogateescape")

    reader = csv.reader(lines(), delimiter=delimiter, strict=True)
    while True:
        begun = None
        try:
            filled = any(cell.strip() for cell in next(reader))
        except StopIteration:
            return
        except csv.Error:
            filled = True  # its bytes are parsed again, and told of, when the row is read
        if filled and begun is not None:
            yield begun[0], end - begun[0], begun[1]


def _cells(content: bytes, delimiter: str) -> list[str]:
    """Returns the cells of one record. Raises BadRow."""
    text = io.StringIO(decoded(content), newline="")
    try:
        return next(csv.reader(text, delimiter=delimiter, strict=True), [])
    except csv.Error as error:
        reason = "a quote is never closed" if "unexpected end" in str(error) else str(error)
        raise BadRow(f"invalid CSV ({reason})") from None
