"""Where features are kept: in memory, or in files that later runs and other processes reuse.

The files lie in ``cache.folder``, by default ``$XDG_CACHE_HOME/tunekit/features`` or
``~/.cache/tunekit/features``. To clear the cache, delete that folder, whenever. Of the disk space
that is free without the cache it takes at most a quarter; beyond that the files that were not used
for longest go.

A file gets its name when it is whole and on the disk, so that a process killed while writing
leaves no more than a ``.partial`` file, which the next writer deletes.
"""

from __future__ import annotations

import math
import os
import re
import shutil
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, Literal

import ml_dtypes
import numpy as np

from tunekit.data.memory import available_memory
from tunekit.data.spec import CacheSpec
from tunekit.errors import DataError

Fill = Callable[[np.ndarray], None]
Place = Literal["ram", "disk", "off"]

_KEY = re.compile(r"[0-9a-f]{64}")
_OURS = re.compile(r"[0-9a-f]{64}\.(npy|partial)")
_SHARE_OF_MEMORY = 2
_SHARE_OF_DISK = 4
"""One part in so many, of what is free, is the cache's."""
_BFLOAT16 = np.dtype(ml_dtypes.bfloat16)


class FeatureStore:
    """Arrays by key, each computed once.

    Example:
        >>> store = FeatureStore(CacheSpec(store="disk"))
        >>> features = store.get(cache_key(weights=fingerprint), (1, len(source), 384), fill)
    """

    def __init__(self, spec: CacheSpec) -> None:
        """Measures what memory there is; touches no file."""
        self.spec = spec
        self.folder = default_folder() if spec.folder is None else Path(spec.folder).expanduser()
        self._dtype = _BFLOAT16 if spec.dtype == "bfloat16" else np.dtype(spec.dtype)
        self._kept: OrderedDict[str, np.ndarray] = OrderedDict()
        self._memory_limit = available_memory() // _SHARE_OF_MEMORY

    def plan(self, bytes_needed: int) -> Place:
        """Returns where an array of so many bytes is kept.

        It is "off" where the spec says so, or says auto and neither memory nor disk has the room.

        Raises:
            DataError: the place that the spec names has not.
        """
        store = self.spec.store
        if store == "off":
            return "off"
        if store in ("auto", "ram") and bytes_needed <= self._memory_limit:
            return "ram"
        if store == "ram":
            raise DataError(self._too_large(bytes_needed, self._memory_limit, "memory", "disk"))
        there = next(path for path in (self.folder, *self.folder.parents) if os.path.exists(path))
        if not there.is_dir() or not os.access(there, os.W_OK):
            if store == "auto":
                return "off"
            raise _write_error(self.folder, "it is no folder, or read-only")
        limit = self._disk_limit()
        if bytes_needed <= limit:
            return "disk"
        if store == "disk":
            raise DataError(self._too_large(bytes_needed, limit, str(self.folder), "ram"))
        return "off"

    def get(self, key: str, shape: tuple[int, ...], fill: Fill) -> np.ndarray:
        """Returns the array kept under `key`, in the spec's dtype and not to be written to.

        Args:
            key: from `cache_key`; says everything that the content depends on, the dtype too.
            shape: of the array.
            fill: writes the content into an array of zeros; called where nothing is kept yet.

        Raises:
            DataError: there is no room for it, or the folder cannot be written to.
        """
        assert _KEY.fullmatch(key), f"{key!r} is no cache key"
        if key in self._kept and self._kept[key].shape == shape:
            self._kept.move_to_end(key)
            return self._kept[key]
        path = self.folder / f"{key}.npy"
        if self.spec.store != "ram" and (found := _opened(path, shape, self._dtype)) is not None:
            return found
        size = math.prod(shape) * self._dtype.itemsize
        match self.plan(size):
            case "ram":
                return self._in_memory(key, shape, fill)
            case "disk":
                with _write_errors(self.folder):
                    self.folder.mkdir(parents=True, exist_ok=True)
                    _clean(self.folder)
                    _make_room(self.folder, size, self._disk_limit())
                return _written(path, shape, self._dtype, fill)
        raise DataError(f"cache: {_bytes(size)} of features have no place; leave it off")

    def _in_memory(self, key: str, shape: tuple[int, ...], fill: Fill) -> np.ndarray:
        array = np.zeros(shape, self._dtype)
        while self._kept and array.nbytes + self._memory_used() > self._memory_limit:
            self._kept.popitem(last=False)
        fill(array)
        array.flags.writeable = False
        self._kept[key] = array
        return array

    def _memory_used(self) -> int:
        return sum(array.nbytes for array in self._kept.values())

    def _disk_limit(self) -> int:
        """Bytes that the files may take, those that are there included."""
        there = next(path for path in (self.folder, *self.folder.parents) if path.exists())
        used = sum(size for _, size, _ in _files(self.folder))
        return (shutil.disk_usage(there).free + used) // _SHARE_OF_DISK

    def _too_large(self, needed: int, limit: int, place: str, other: str) -> str:
        smaller = "" if self.spec.dtype != "float32" else ", a cache.dtype of bfloat16"
        return (
            f"cache.store={self.spec.store!r}: the features take {_bytes(needed)}, and {place} has "
            f"room for {_bytes(limit)}. Choose {other!r} or 'auto'{smaller}, fewer views, or 'off'."
        )


def default_folder() -> Path:
    """Returns the folder of the files where the user names none."""
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "tunekit" / "features"


def _opened(path: Path, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray | None:
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


def _written(path: Path, shape: tuple[int, ...], dtype: np.dtype, fill: Fill) -> np.ndarray:
    """Returns the array of a new file; of another process' where that wrote the same meanwhile."""
    partial = path.with_suffix(".partial")
    with _claimed(partial) as file:
        if (found := _opened(path, shape, dtype)) is not None:
            partial.unlink(missing_ok=True)
            return found
        try:
            array = _write(file, shape, dtype, fill)
            with _write_errors(path.parent):
                os.replace(partial, path)
                _synchronise(path.parent)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise
        return array


def _write(file: BinaryIO, shape: tuple[int, ...], dtype: np.dtype, fill: Fill) -> np.ndarray:
    """Fills the file through a map, puts it on the disk, and returns its array."""
    # NumPy's format knows no bfloat16: its bits are kept.
    stored = _stored(dtype)
    header = {"descr": stored.str, "fortran_order": False, "shape": shape}
    folder = Path(file.name).parent
    with _write_errors(folder):
        file.truncate(0)
        np.lib.format.write_array_header_2_0(file, header)
        file.flush()
        offset = file.tell()
        _reserve(file, offset, math.prod(shape) * stored.itemsize)
        array = np.memmap(file, stored, "r+", offset, shape)
    fill(np.asarray(array).view(dtype))
    with _write_errors(folder):
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
        with _write_errors(partial.parent):
            file = open(partial, "a+b")
        with file:
            _lock(file, wait=True)
            if _is_at(file, partial):
                yield file
                return
            # While this one waited the other finished, and the file now bears its name.


def _clean(folder: Path) -> None:
    """Deletes what processes that died had not finished."""
    for partial in folder.glob("*.partial"):
        with suppress(OSError), open(partial, "r+b") as file:
            if _OURS.fullmatch(partial.name) and _lock(file, wait=False):
                if _is_at(file, partial):
                    partial.unlink()


def _lock(file: BinaryIO, *, wait: bool) -> bool:
    """Whether the file is now this process' alone; a lock ends with its process."""
    try:
        import fcntl
    except ImportError:  # Windows: there one process at a time may use a folder.
        return wait
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


def _files(folder: Path) -> list[tuple[float, int, Path]]:
    """Last use, size and path of every file of the cache, that not used for longest first."""
    found = []
    for path in folder.glob("*.npy"):
        with suppress(FileNotFoundError):
            if _OURS.fullmatch(path.name):
                state = path.stat()
                found.append((state.st_mtime, state.st_size, path))
    return sorted(found)


def _make_room(folder: Path, needed: int, limit: int) -> None:
    files = _files(folder)
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
def _write_errors(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise _write_error(folder, error.strerror or str(error)) from error


def _write_error(folder: Path, cause: str) -> DataError:
    return DataError(
        f"cache.folder: cannot write to {folder}: {cause}. Name another folder, make room, or "
        "choose a cache.store of 'ram' or 'off'."
    )


def _stored(dtype: np.dtype) -> np.dtype[Any]:
    return np.dtype("<u2") if dtype == _BFLOAT16 else dtype.newbyteorder("<")


def _bytes(size: float) -> str:
    return f"{size / 1e9:.3g} GB" if size >= 1e9 else f"{size / 1e6:.3g} MB"
