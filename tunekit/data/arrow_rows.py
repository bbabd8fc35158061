"""Rows of Arrow tables: Parquet files, and folders that Hugging Face datasets saved to disk."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tunekit.data.examples import data_error, listed
from tunekit.data.rows import SPLIT_NAMES, JoinedRows, Row, Rows
from tunekit.data.spec import DataSpec
from tunekit.errors import DataError, Issue, did_you_mean


@dataclass(frozen=True, eq=False)
class ArrowRows:
    """Rows of a table in Arrow's memory, or mapped from disk."""

    table: Any
    place: str
    class_names: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def __len__(self) -> int:
        """Returns the number of rows."""
        return self.table.num_rows

    def read(self, index: int) -> Row:
        """Returns a row as plain Python values."""
        return {name: self.table[name][index].as_py() for name in self.table.column_names}

    def name(self, index: int) -> str:
        """Returns "file, row index"."""
        return f"{self.place}, row {index}"


def parquet_rows(path: Path) -> ArrowRows:
    """Returns the rows of a Parquet file, decompressed in memory.

    Raises:
        DataError: pyarrow is not installed, or the file is no Parquet.
    """
    pyarrow = _pyarrow(path)
    from pyarrow import parquet

    try:
        table = parquet.read_table(path)
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"data.path: {path} is not a Parquet file ({error})") from error
    return ArrowRows(table, path.name, _class_names(_schema_features(table.schema.metadata)))


def parquet_columns(path: Path) -> tuple[str, ...]:
    """Returns the columns of a Parquet file, which is not read.

    Raises:
        DataError: pyarrow is not installed, or the file is no Parquet.
    """
    pyarrow = _pyarrow(path)
    from pyarrow import parquet

    try:
        return tuple(parquet.read_schema(path).names)
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"data.path: {path} is not a Parquet file ({error})") from error


def is_dataset_folder(path: Path) -> bool:
    """Returns whether a folder is what `save_to_disk` of Hugging Face datasets writes."""
    return (path / "dataset_dict.json").is_file() or (path / "state.json").is_file()


def dataset_splits(path: Path, spec: DataSpec) -> dict[str, Rows]:
    """Returns the splits of a folder that Hugging Face datasets saved, mapped from disk.

    Raises:
        DataError: it is no such folder, or has no split that the spec names.
    """
    if (path / "state.json").is_file():
        return {"train": _dataset(path)}
    try:
        there = json.loads((path / "dataset_dict.json").read_text("utf-8"))["splits"]
    except (OSError, ValueError, KeyError) as error:
        raise DataError(
            f"data.path: expected dataset_dict.json or state.json in {path}, as save_to_disk of "
            f"Hugging Face datasets writes ({error})"
        ) from error
    found: dict[str, Rows] = {}
    issues: list[Issue] = []
    for split, usual in SPLIT_NAMES.items():
        wanted = getattr(spec, split)
        if wanted is not None and wanted not in there:
            message = f"no split {wanted!r}.{did_you_mean(wanted, there)} It has {listed(there)}"
            issues.append(Issue(f"data.{split}", message))
            continue
        name = wanted or next((name for name in there if name in usual), None)
        if name is not None:
            found[split] = _dataset(path / name)
    if "train" not in found and not issues:
        issues.append(Issue("data.train", f"name the split to train on: {listed(there)}"))
    if issues:
        raise data_error(issues)
    return found


def _dataset(folder: Path) -> Rows:
    pyarrow = _pyarrow(folder)
    try:
        state = json.loads((folder / "state.json").read_text("utf-8"))
        files = [folder / one["filename"] for one in state["_data_files"]]
        if state.get("_indices_data_files"):
            raise DataError(
                f"data.path: {folder} was saved with an index of rows by an old version of "
                "datasets; load it and save it again"
            )
        info = folder / "dataset_info.json"
        features = json.loads(info.read_text("utf-8")).get("features") if info.is_file() else None
        parts = [_mapped(file, pyarrow, features) for file in files]
    except (pyarrow.ArrowException, OSError, ValueError, KeyError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"data.path: {folder} cannot be read as a dataset ({error})") from error
    return parts[0] if len(parts) == 1 else JoinedRows(tuple(parts))


def _mapped(file: Path, pyarrow: Any, features: Any) -> ArrowRows:
    """Returns the rows of a stream of record batches; their pages are read as they are needed."""
    with pyarrow.ipc.open_stream(pyarrow.memory_map(str(file))) as stream:
        table = stream.read_all()
    features = features or _schema_features(table.schema.metadata)
    return ArrowRows(table, f"{file.parent.name}/{file.name}", _class_names(features))


def _schema_features(metadata: dict[bytes, bytes] | None) -> Any:
    """Returns the features that Hugging Face datasets stores in a schema."""
    try:
        return json.loads((metadata or {})[b"huggingface"])["info"]["features"]
    except (KeyError, TypeError, ValueError):
        return {}


def _class_names(features: Any) -> dict[str, tuple[str, ...]]:
    """Returns the names of class numbers by column; of lists of such numbers too."""
    found: dict[str, tuple[str, ...]] = {}
    for column, feature in (features or {}).items():
        if isinstance(feature, list):  # a list is written as [feature] by some versions
            feature = feature[0] if feature else {}
        if isinstance(feature, Mapping):
            inner = feature.get("feature")
            names = feature.get("names") or (
                inner.get("names") if isinstance(inner, Mapping) else None
            )
            if names:
                found[column] = tuple(names)
    return found


def _pyarrow(path: Path) -> Any:
    try:
        import pyarrow.ipc
    except ImportError as error:
        raise DataError(
            f"data.path: reading {path} needs pyarrow. pip install 'tunekit[parquet]'"
        ) from error
    return pyarrow
