"""Examples from tables: CSV and Parquet, one row an image."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunekit.data.examples import Found, data_error, listed
from tunekit.data.images import EncodedImages, ImageFiles, Images
from tunekit.data.spec import DataSpec
from tunekit.errors import DataError, Issue, did_you_mean

TABLE_SUFFIXES = {".csv": "csv", ".tsv": "csv", ".parquet": "parquet", ".pq": "parquet"}
_SPLIT_STEMS = {
    "train": ("train",),
    "validation": ("validation", "val", "valid"),
    "test": ("test",),
}


@dataclass(frozen=True)
class _Columns:
    """The two columns of a table; names are the label names its schema gives, if any."""

    images: Sequence[Any]
    labels: Sequence[Any]
    names: tuple[str, ...] = ()
    first_row: int = 0
    """Number a person counts the first row as: 2 in a CSV, below its header."""


def find_tables(path: Path, spec: DataSpec) -> dict[str, Found]:
    """Returns the splits of a table, or of a folder of tables named train, validation and test.

    Raises:
        DataError: a file or a column is missing; lists all that are.
    """
    folder = path if path.is_dir() else path.parent
    files: dict[str, list[Path]] = split_files(path) if path.is_dir() else {"train": [path]}
    issues: list[Issue] = []
    for name in _SPLIT_STEMS:
        file = getattr(spec, name)
        if file is not None:
            files[name] = [folder / file]
            if not files[name][0].is_file():
                there = [p.name for p in folder.iterdir() if p.suffix.lower() in TABLE_SUFFIXES]
                hint = did_you_mean(file, there)
                issues.append(Issue(f"data.{name}", f"{folder} has no file {file!r}.{hint}"))
    if issues:
        raise data_error(issues)
    if "train" not in files:
        raise DataError(f"data.train: name the file of {folder} to train on")
    return {name: find_table(paths, spec, f"data.{name}") for name, paths in files.items()}


def split_files(folder: Path) -> dict[str, list[Path]]:
    """Returns the tables of a folder by split: train.csv, or train-00000-of-00002.parquet."""
    files: dict[str, list[Path]] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() in TABLE_SUFFIXES:
            stem = path.stem.lower().split("-0")[0]
            for name, stems in _SPLIT_STEMS.items():
                if stem in stems:
                    files.setdefault(name, []).append(path)
    return files if "train" in files else {}


def find_table(paths: Sequence[Path], spec: DataSpec, where: str) -> Found:
    """Returns the examples of one table (in several files, perhaps).

    Images are paths relative to the table, or bytes (Parquet). A label cell holds a name or a
    number, several of them split by `spec.label_separator`, or a list (Parquet).

    Raises:
        DataError: a column is missing or the table is empty.
    """
    issues: list[Issue] = []
    names: list[tuple[str, ...]] = []
    cells: list[Any] = []
    declared: tuple[str, ...] = ()
    multi_label = False
    for path in paths:
        columns = _read(path, spec, where)
        if not len(columns.images):
            raise DataError(f"{where}: {path} has no rows")
        declared = columns.names
        labels = [_names_in(cell, spec.label_separator, declared) for cell in columns.labels]
        multi_label |= any(isinstance(cell, (list, tuple)) for cell in columns.labels)
        multi_label |= any(len(label) > 1 for label in labels)
        unlabelled = [i for i, label in enumerate(labels) if not label]
        if unlabelled and not multi_label:
            rows = listed([i + columns.first_row for i in unlabelled])
            message = f"{path.name} has no label in {len(unlabelled)} rows: {rows}"
            issues.append(Issue(where, message))
        cells += list(columns.images)
        names += labels
    if not multi_label:
        keep = [i for i, label in enumerate(names) if label]
        cells, names = [cells[i] for i in keep], [names[i] for i in keep]
    images = _images(cells, paths[0], where, issues)
    return Found(images, tuple(names), multi_label, declared, tuple(issues))


def _images(cells: list[Any], table: Path, where: str, issues: list[Issue]) -> Images:
    if cells and all(isinstance(cell, bytes) for cell in cells):
        return EncodedImages(len(cells), cells.__getitem__, table.name)
    wrong = [i for i, cell in enumerate(cells) if not isinstance(cell, str) or not cell]
    if wrong:
        issues.append(Issue(where, f"{len(wrong)} rows have no image path: {listed(wrong)}"))
    paths = tuple(table.parent / str(cell) for cell in cells)
    given = [path for i, path in enumerate(paths) if i not in set(wrong)]
    missing = [str(path) for path in given if not path.is_file()]
    if missing:
        hint = f" Paths are relative to {table.parent}" if len(missing) == len(given) else ""
        message = f"{len(missing)} image files do not exist: {listed(missing)}.{hint}"
        issues.append(Issue(where, message))
    return ImageFiles(paths, table.parent)


def _read(path: Path, spec: DataSpec, where: str) -> _Columns:
    if TABLE_SUFFIXES.get(path.suffix.lower()) == "parquet" or spec.kind == "parquet":
        return _read_parquet(path, spec, where)
    return _read_csv(path, spec, where)


def _read_csv(path: Path, spec: DataSpec, where: str) -> _Columns:
    delimiter = "\t" if path.suffix.lower() == ".tsv" else ","
    try:
        # utf-8-sig drops the mark that spreadsheets write before the first column's name.
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, delimiter=delimiter)
            _check_columns(path, reader.fieldnames or (), spec, where)
            rows = [(row[spec.image_column], row[spec.label_column]) for row in reader]
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{where}: {path} is not a UTF-8 CSV file ({error})") from error
    return _Columns([image for image, _ in rows], [label for _, label in rows], first_row=2)


def _read_parquet(path: Path, spec: DataSpec, where: str) -> _Columns:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise DataError(
            f"{where}: reading {path} needs pyarrow. pip install 'tunekit[parquet]'"
        ) from error
    try:
        schema = parquet.read_schema(path)
        _check_columns(path, schema.names, spec, where)
        table = parquet.read_table(path, columns=[spec.image_column, spec.label_column])
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{where}: {path} is not a Parquet file ({error})") from error
    images = table[spec.image_column].to_pylist()
    if images and isinstance(images[0], dict):
        # Hugging Face's Image feature: a struct of the file's bytes and its path.
        images = [cell and (cell.get("bytes") or cell.get("path")) for cell in images]
    names = _feature_names(schema.metadata, spec.label_column)
    return _Columns(images, table[spec.label_column].to_pylist(), names)


def _feature_names(metadata: dict[bytes, bytes] | None, column: str) -> tuple[str, ...]:
    """Returns the names that Hugging Face datasets stores beside a column of class numbers."""
    try:
        feature = json.loads((metadata or {})[b"huggingface"])["info"]["features"][column]
        return tuple(feature.get("names") or feature["feature"]["names"])
    except (KeyError, TypeError, ValueError):
        return ()


def _check_columns(path: Path, there: Sequence[str], spec: DataSpec, where: str) -> None:
    issues = [
        Issue(
            f"data.{field}",
            f"{path} has no column {column!r}.{did_you_mean(column, there)} "
            f"Its columns: {listed(there, 12) or 'none'}",
        )
        for field, column in (
            ("image_column", spec.image_column),
            ("label_column", spec.label_column),
        )
        if column not in there
    ]
    if issues:
        raise data_error(issues)


def _names_in(cell: Any, separator: str, declared: tuple[str, ...]) -> tuple[str, ...]:
    """Returns the label names of a cell, class numbers turned into declared names."""
    if isinstance(cell, str):
        parts: list[Any] = [part.strip() for part in cell.split(separator)]
    elif isinstance(cell, (list, tuple)):
        parts = list(cell)
    else:
        parts = [cell]
    names: list[str] = []
    for part in parts:
        if isinstance(part, int) and declared:
            part = declared[part] if 0 <= part < len(declared) else None
        if part is not None and part != "" and part == part:  # NaN is not itself
            names.append(str(part))
    return tuple(dict.fromkeys(names))
