"""Where features are kept: in memory, or in files that later runs and other processes reuse.

The files lie in ``cache.folder``, by default ``$XDG_CACHE_HOME/tunekit/features`` or
``~/.cache/tunekit/features``. To clear the cache, delete that folder, whenever. Of the disk space
that is free without the cache it takes at most a quarter; beyond that the files that were not used
for longest go.
"""

from __future__ import annotations

import math
import os
import re
import shutil
from collections import OrderedDict
from pathlib import Path
from typing import Literal

import numpy as np

from tunekit.data.feature_files import (
    BFLOAT16,
    Fill,
    delete_unfinished,
    make_room,
    opened,
    own_files,
    write_error,
    write_errors,
    written,
)
from tunekit.data.memory import available_memory
from tunekit.data.spec import CacheSpec
from tunekit.errors import DataError

Place = Literal["ram", "disk", "off"]

_KEY = re.compile(r"[0-9a-f]{64}")
# One part in so many, of what is free, is the cache's.
_SHARE_OF_MEMORY, _SHARE_OF_DISK = 2, 4


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
        self._dtype = BFLOAT16 if spec.dtype == "bfloat16" else np.dtype(spec.dtype)
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
        there = self._existing()
        if not there.is_dir() or not os.access(there, os.W_OK):
            if store == "auto":
                return "off"
            raise write_error(self.folder, "it is no folder, or read-only")
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
        if self.spec.store != "ram" and (found := opened(path, shape, self._dtype)) is not None:
            return found
        size = math.prod(shape) * self._dtype.itemsize
        match self.plan(size):
            case "ram":
                return self._in_memory(key, shape, fill)
            case "disk":
                with write_errors(self.folder):
                    self.folder.mkdir(parents=True, exist_ok=True)
                    delete_unfinished(self.folder)
                    make_room(self.folder, size, self._disk_limit())
                return written(path, shape, self._dtype, fill)
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
        used = sum(size for _, size, _ in own_files(self.folder))
        return (shutil.disk_usage(self._existing()).free + used) // _SHARE_OF_DISK

    def _existing(self) -> Path:
        """The folder, or what of the way to it there is."""
        return next(path for path in (self.folder, *self.folder.parents) if os.path.exists(path))

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


def _bytes(size: float) -> str:
    return f"{size / 1e9:.3g} GB" if size >= 1e9 else f"{size / 1e6:.3g} MB"
