"""A folder of records: written whole or not at all, read with errors that name the file."""

from __future__ import annotations

import csv
import io
import json
import math
import shutil
import uuid
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import numpy as np
import safetensors
import safetensors.numpy

from tunekit.errors import ModelError, did_you_mean


@contextmanager
def replacing(folder: Path, ours: Collection[str], marks: Collection[str]) -> Iterator[Path]:
    """Yields an empty folder that takes the place of `folder` if the block ends well.

    A failure leaves `folder` as it was.

    Args:
        folder: may hold an earlier save, or not exist.
        ours: names of the files that are replaced; whatever else is in `folder` is kept.
        marks: a folder with any of these names in it may be written to; so may an empty one.

    Raises:
        ModelError: `folder` holds other files only.
    """
    check_replaceable(folder, marks)
    folder.parent.mkdir(parents=True, exist_ok=True)
    mark = uuid.uuid4().hex[:8]
    new, old = (folder.with_name(f".{folder.name}.{kind}-{mark}") for kind in ("new", "old"))
    new.mkdir()
    try:
        yield new
        try:
            if folder.exists():
                folder.rename(old)
            new.rename(folder)
        except BaseException:
            if old.exists() and not folder.exists():
                old.rename(folder)
            raise
    finally:
        shutil.rmtree(new, ignore_errors=True)
    if old.exists():
        for entry in old.iterdir():
            if entry.name not in ours:
                entry.rename(folder / entry.name)
        shutil.rmtree(old)


def check_replaceable(folder: Path, marks: Collection[str]) -> None:
    """Passes where `replacing` may write to `folder`.

    Raises:
        ModelError: it is a file, or holds other files only.
    """
    if not folder.exists():
        return
    if not folder.is_dir():
        raise ModelError(f"expected a folder to save in, but {folder} is a file; name another")
    entries = {entry.name for entry in folder.iterdir()}
    if entries and entries.isdisjoint(marks):
        raise ModelError(
            f"{folder} holds other files ({', '.join(sorted(entries)[:5])}) and no earlier save; "
            "nothing was written. Name a new or empty folder."
        )


def write_json(path: Path, value: Any) -> None:
    """Writes `value` as strict JSON; NaN and infinities become null."""
    path.write_text(json.dumps(plain(value), indent=1, allow_nan=False) + "\n", encoding="utf-8")


def read_text(path: Path) -> str:
    """Returns what the file holds.

    Raises:
        ModelError: the file is missing.
    """
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ModelError(f"{path} is missing; the folder is no whole save") from None


def read_json(path: Path) -> Any:
    """Returns what the file holds.

    Raises:
        ModelError: the file is missing or is not JSON.
    """
    try:
        return json.loads(read_text(path))
    except ValueError as error:
        raise ModelError(f"{path} is damaged ({error}); restore it from a copy") from error


def read_tensors(path: Path) -> dict[str, np.ndarray]:
    """Returns the arrays of a safetensors file by name.

    Raises:
        ModelError: the file is missing or damaged.
    """
    try:
        return safetensors.numpy.load_file(path)
    except FileNotFoundError:
        raise ModelError(f"{path} is missing; the folder is no whole save") from None
    except safetensors.SafetensorError as error:
        raise ModelError(f"{path} is damaged ({error}); restore it from a copy") from error


def mismatches(
    found: Mapping[str, Any], wanted: Mapping[str, Any], *, dtypes: bool = False
) -> list[str]:
    """Returns a line for each array that is missing, too many or of another shape.

    Args:
        found: arrays by name.
        wanted: what has a `shape` and a `dtype`, such as a variable, by the names there should be.
        dtypes: whether those must be the same too.
    """
    extra = [name for name in found if name not in wanted]
    wrong = [f"missing: {n}.{did_you_mean(n, extra)}" for n in wanted if n not in found]
    wrong += [f"not in the model: {name}" for name in extra]
    for name in (name for name in wanted if name in found):
        value, want = found[name], wanted[name]
        if tuple(value.shape) != tuple(want.shape):
            wrong.append(f"{name}: expected shape {tuple(want.shape)}, got {tuple(value.shape)}")
        elif dtypes and str(value.dtype) != str(want.dtype):
            wrong.append(f"{name}: expected {want.dtype}, got {value.dtype}")
    return wrong


def listed(wrong: Sequence[str]) -> str:
    """Returns the first ten of what is wrong, one a line, and how many there are besides."""
    more = [f"and {len(wrong) - 10} more"] if wrong[10:] else []
    return "\n  ".join([*wrong[:10], *more])


def plain(value: Any) -> Any:
    """Returns `value` in JSON's types."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, (np.ndarray, np.generic, jax.Array)):
        return plain(np.asarray(value).tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if value is None or isinstance(value, (str, int, float)):
        return value
    return str(value)


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Returns the rows as CSV with every column that one of them has."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
