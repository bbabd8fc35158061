"""Files of features: whole or absent, whichever process writes, dies or waits.

A file gets its name when it is whole and on the disk. Until then it is a ``.partial`` file that its
writer has locked: another process that wants the same waits for it, and what a killed one left
behind, the next writer deletes.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

import ml_dtypes
import numpy as np

from tunekit.errors import DataError

Fill = Callable[[np.ndarray], None]

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
_OURS = re.compile(r"[0-9a-f]{64}\.(npy|partial)")


def opened(path: Path, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray | None:
    """Returns the file's array, mapped, and marks it as used; None where there is no such array."""
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError):
        return None
    if array.shape != shape or array.dtype != _stored(dtype):
        return None
    with suppress(OSError):  # Somebody else's folder can be read all the same.
        os.utime(path)
    return np.asarray(array).view(dtype)


def written(path: Path, shape: tuple[int, ...], dtype: np.dtype, fill: Fill) -> np.ndarray:
    """Returns the array of a new file; of another process' where that wrote the same meanwhile."""
    partial = path.with_suffix(".partial")
    with _claimed(partial) as file:
        if (found := opened(path, shape, dtype)) is not None:
            partial.unlink(missing_ok=True)
            return found
        try:
            array = _write(file, shape, dtype, fill)
            with write_errors(path.parent):
                os.replace(partial, path)
                _synchronise(path.parent)
        except BaseException:
            if _is_at(file, partial):  # And not another's, begun after this one got its name.
                partial.unlink()
            raise
        return array


def _write(file: BinaryIO, shape: tuple[int, ...], dtype: np.dtype, fill: Fill) -> np.ndarray:
    """Fills the file through a map, puts it on the disk, and returns its array."""
    # NumPy's format knows no bfloat16: its bits are kept.
    stored = _stored(dtype)
    header = {"descr": stored.str, "fortran_order": False, "shape": shape}
    folder = Path(file.name).parent
    with write_errors(folder):
        file.truncate(0)
        np.lib.format.write_array_header_2_0(file, header)
        file.flush()
        offset = file.tell()
        _reserve(file, offset, math.prod(shape) * stored.itemsize)
        array = np.memmap(file, stored, "r+", offset, shape)
    fill(np.asarray(array).view(dtype))
    with write_errors(folder):
        array.flush()
        os.fsync(file.fileno())
        return np.asarray(np.memmap(file, stored, "r", offset, shape)).view(dtype)


def _reserve(file: BinaryIO, offset: int, size: int) -> None:
    """Takes the room on the disk: where it lacks, writing through a map kills the process."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(file.fileno(), 0, max(offset + size, 1))
        return
    block = bytes(1 << 20)
    for start in range(0, size, len(block)):
        file.write(block[: size - start])
    file.flush()


@contextmanager
def _claimed(partial: Path) -> Iterator[BinaryIO]:
    """Opens `partial` as its only writer, once any other has finished or died."""
    while True:
        with write_errors(partial.parent):
            file = open(partial, "a+b")
        with file:
            with write_errors(partial.parent):
                _lock(file, wait=True)
            if _is_at(file, partial):
                yield file
                return
            # While this one waited the other finished, and the file now bears its name.


def delete_unfinished(folder: Path) -> None:
    """Deletes what processes that died had not finished."""
    for partial in folder.glob("*.partial"):
        with suppress(OSError), open(partial, "r+b") as file:
            if _OURS.fullmatch(partial.name) and _lock(file, wait=False):
                if _is_at(file, partial):
                    partial.unlink()


def _lock(file: BinaryIO, *, wait: bool) -> bool:
    """Whether the file is now this process' alone; a lock ends with its process."""
    import fcntl  # Here, for Windows has none: there only the disk store is missing.

    try:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    return True


def _is_at(file: BinaryIO, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), os.stat(path))
    except FileNotFoundError:
        return False


def own_files(folder: Path) -> list[tuple[float, int, Path]]:
    """Last use, size and path of every file of the cache, that not used for longest first."""
    found = []
    for path in folder.glob("*.npy"):
        with suppress(FileNotFoundError):
            if _OURS.fullmatch(path.name):
                state = path.stat()
                found.append((state.st_mtime, state.st_size, path))
    return sorted(found)


def make_room(folder: Path, needed: int, limit: int) -> None:
    """Deletes files not used for longest, until `needed` more bytes keep to `limit`."""
    files = own_files(folder)
    used = sum(size for _, size, _ in files)
    for _, size, path in files:
        if used + needed <= limit:
            break
        path.unlink(missing_ok=True)  # Whoever has it mapped keeps what is mapped.
        used -= size


def _synchronise(folder: Path) -> None:
    """Makes the names in `folder` survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def write_errors(folder: Path) -> Iterator[None]:
    """Within the block the system's errors become errors about `folder`."""
    try:
        yield
    except OSError as error:
        raise write_error(folder, error.strerror or str(error)) from error


def write_error(folder: Path, cause: str) -> DataError:
    """Returns the exception for a folder that cannot be written to."""
    return DataError(
        f"cache.folder: cannot write to {folder}: {cause}. Name another folder, make room, or "
        "choose a cache.store of 'ram' or 'off'."
    )


def _stored(dtype: np.dtype) -> np.dtype[Any]:
    return np.dtype("<u2") if dtype == BFLOAT16 else dtype.newbyteorder("<")
