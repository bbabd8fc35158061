"""From a path to the rows of each split, whatever the format of the files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from tunekit.data import tfds
from tunekit.data.arrow_rows import dataset_splits, is_dataset_folder, parquet_rows
from tunekit.data.csv_rows import csv_rows
from tunekit.data.examples import data_error, listed
from tunekit.data.file_rows import conll_rows, jsonl_rows, text_rows
from tunekit.data.json_rows import json_rows
from tunekit.data.rows import SPLIT_NAMES, JoinedRows, Rows
from tunekit.data.spec import DataSpec
from tunekit.errors import DataError, Issue, did_you_mean

SUFFIXES = {
    ".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "json", ".csv": "csv", ".tsv": "csv",
    ".parquet": "parquet", ".pq": "parquet", ".txt": "text", ".conll": "conll", ".bio": "conll",
    ".iob": "conll",
}  # fmt: skip
READERS: dict[str, Callable[[Path], Rows]] = {
    "jsonl": jsonl_rows,
    "json": json_rows,
    "csv": csv_rows,
    "parquet": parquet_rows,
    "text": text_rows,
    "conll": conll_rows,
}


def path_rows(path: str | Path, spec: DataSpec, *, tagged: bool = False) -> dict[str, Rows]:
    """Returns the rows at a path by the names train, validation and test.

    Args:
        path: a file; a folder of files named after splits, or of files that are all to train on;
            a folder of Hugging Face datasets; a prepared TFDS folder, or "tfds:name".
        spec: names the format and the splits where they are not to be guessed.
        tagged: whether plain text files hold a word and its tag in each line.

    Raises:
        DataError: there is no such path, split or format, or a file cannot be read at all.
    """
    if spec.kind == "tfds" or str(path).startswith(tfds.TFDS_PREFIX):
        return tfds.text_rows(path, spec)
    root = existing(path)
    if spec.kind == "datasets" or is_dataset_folder(root):
        return dataset_splits(root, spec)
    if root.is_dir() and tfds.prepared_folder(root):
        return tfds.text_rows(root, spec)
    return {
        name: _joined([file_rows(file, spec, tagged=tagged) for file in files])
        for name, files in split_files(root, spec).items()
    }


def existing(path: str | Path) -> Path:
    """Returns the path.

    Raises:
        DataError: nothing is there; names what is near.
    """
    found = Path(path).expanduser()
    if not found.exists():
        near = [str(p) for p in found.parent.iterdir()] if found.parent.is_dir() else []
        hint = did_you_mean(str(found), near)
        raise DataError(f"data.path: no such file or folder: {found}.{hint}")
    return found


def split_files(root: Path, spec: DataSpec) -> dict[str, list[Path]]:
    """Returns the files of each split: those the spec names, and those that their names tell.

    A folder none of whose files is named after a split is to train on, all of it.

    Raises:
        DataError: a named split is not there, or the folder has no files of texts.
    """
    folder = root if root.is_dir() else root.parent
    files = told_by_name(root) if root.is_dir() else {"train": [root]}
    issues: list[Issue] = []
    named: set[Path] = set()
    for split in SPLIT_NAMES:
        name = getattr(spec, split)
        if name is not None:
            files[split] = _named(folder, name)
            named |= set(files[split])
            if not files[split]:
                there = [entry.name for entry in sorted(folder.iterdir())]
                hint = did_you_mean(name, [*there, *(Path(name).stem for name in there)])
                message = f"{folder} has no file or folder {name!r}.{hint} It holds {listed(there)}"
                issues.append(Issue(f"data.{split}", message))
    if issues:
        raise data_error(issues)
    if "train" not in files and root.is_dir():
        files["train"] = [file for file in _readable(root) if file not in named]
    if not files.get("train"):
        raise DataError(
            f"data.path: {root} holds no file of {listed(sorted(SUFFIXES), len(SUFFIXES))}"
        )
    return {split: files[split] for split in SPLIT_NAMES if files.get(split)}


def _named(folder: Path, name: str) -> list[Path]:
    """Returns the file, the files of the sub-folder or the files of the stem of this name."""
    if (folder / name).is_file():
        return [folder / name]
    if (folder / name).is_dir():
        return _readable(folder / name)
    return [file for file in _readable(folder) if _stem(file) == name.lower()]


def told_by_name(folder: Path) -> dict[str, list[Path]]:
    """Returns the files of a folder by split: train.csv, dev.jsonl, train-00000-of-00002.parquet.

    Those in sub-folders that are named after splits, where there are none, or in one named data;
    empty without train.
    """
    found: dict[str, list[Path]] = {}
    for split, stems in SPLIT_NAMES.items():
        files = [file for file in _readable(folder) if _stem(file) in stems]
        folders = [folder / stem for stem in stems if (folder / stem).is_dir()]
        files += [file for below in folders if not files for file in _readable(below)]
        if files:
            found[split] = files
    if "train" in found:
        return found
    below = folder / "data"  # as repositories of Hugging Face have it
    return told_by_name(below) if not found and below.is_dir() else {}


def _readable(folder: Path) -> list[Path]:
    return [file for file in sorted(folder.iterdir()) if file.suffix.lower() in SUFFIXES]


def _stem(file: Path) -> str:
    """Returns the name of the split: "train" of train-00000-of-00002.parquet too."""
    return file.stem.lower().split("-0")[0]


def file_rows(file: Path, spec: DataSpec, *, tagged: bool = False) -> Rows:
    """Returns the rows of one file; see `path_rows`."""
    suffix = SUFFIXES.get(file.suffix.lower())
    form = spec.kind if spec.kind in READERS else suffix
    if form is None:
        raise DataError(
            f"data.path: expected a file of {listed(sorted(SUFFIXES), len(SUFFIXES))}, got {file}; "
            "set data.kind where its name does not tell its format"
        )
    if form == "text" and tagged:
        form = "conll"
    rows = READERS[form](file)
    if not len(rows):
        raise DataError(f"data.path: {file} has no rows")
    return rows


def _joined(parts: list[Rows]) -> Rows:
    return parts[0] if len(parts) == 1 else JoinedRows(tuple(parts))
