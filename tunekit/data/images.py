"""Where pictures lie: in files, encoded in memory, or as arrays; each by index."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image

from tunekit.data.decode import array_to_rgb, damage, decode, to_rgb
from tunekit.errors import DataError

Picture = Image.Image | np.ndarray


@dataclass(frozen=True)
class Scan:
    """What one look at a picture's content says."""

    digest: str
    """sha256 of the content, in hexadecimal."""
    damage: str | None
    """Why it cannot be decoded, or None."""


class Images(Protocol):
    """A finite, indexable collection of pictures."""

    def __len__(self) -> int:
        """Returns the number of images."""
        ...

    def read(self, index: int) -> Picture:
        """Returns an upright RGB image, or uint8 [H, W, 3]; raises DataError with its name."""
        ...

    def name(self, index: int) -> str:
        """Returns what a message calls the picture: the path of a file."""
        ...

    def key(self, index: int) -> str:
        """Returns its path below the data's folder, equal on every machine; "" without a path."""
        ...

    def scan(self, index: int) -> Scan:
        """Returns the digest of the content and whether it decodes."""
        ...


@dataclass(frozen=True)
class ImageFiles:
    """Image files; names are paths."""

    paths: tuple[Path, ...]
    root: Path | None = None
    """Folder that keys are relative to."""

    def __len__(self) -> int:
        """Returns the number of images."""
        return len(self.paths)

    def read(self, index: int) -> Picture:
        """Returns the decoded file."""
        return decode(self.paths[index], str(self.paths[index]))

    def name(self, index: int) -> str:
        """Returns the path."""
        return str(self.paths[index])

    def key(self, index: int) -> str:
        """Returns the path relative to the root, with forward slashes."""
        path = self.paths[index]
        if self.root is not None and path.is_relative_to(self.root):
            return path.relative_to(self.root).as_posix()
        return path.name

    def scan(self, index: int) -> Scan:
        """Returns digest and damage of the file; one that cannot be opened is damaged."""
        try:
            return _scan_bytes(self.paths[index].read_bytes())
        except OSError as error:
            return Scan("", error.strerror or str(error))


@dataclass(frozen=True)
class EncodedImages:
    """Files' contents fetched by index, as from a Parquet column or a TFDS record."""

    count: int
    fetch: Callable[[int], bytes]
    place: str
    """What holds them: the table's path, the dataset's name."""

    def __len__(self) -> int:
        """Returns the number of images."""
        return self.count

    def read(self, index: int) -> Picture:
        """Returns the decoded bytes."""
        return decode(self.fetch(index), self.name(index))

    def name(self, index: int) -> str:
        """Returns the place and the row."""
        return f"{self.place}, row {index}"

    def key(self, index: int) -> str:
        """Returns an empty string."""
        return ""

    def scan(self, index: int) -> Scan:
        """Returns digest and damage of the bytes."""
        return _scan_bytes(self.fetch(index))


@dataclass(frozen=True)
class MemoryImages:
    """Arrays, PIL images or paths as the caller gave them."""

    items: Sequence[Any] | np.ndarray
    place: str = "images"

    def __len__(self) -> int:
        """Returns the number of images."""
        return len(self.items)

    def read(self, index: int) -> Picture:
        """Returns the picture, an array as uint8 [H, W, 3]."""
        item = self.items[index]
        if isinstance(item, (str, Path)):
            return decode(Path(item), str(item))
        if not isinstance(item, Image.Image):
            return array_to_rgb(item, self.name(index))
        try:
            return to_rgb(item)
        except (ValueError, OSError) as error:
            raise DataError(f"{self.name(index)}: {error}") from error

    def name(self, index: int) -> str:
        """Returns the path of a file, else the place and the index."""
        item = self.items[index]
        return str(item) if isinstance(item, (str, Path)) else f"{self.place}[{index}]"

    def key(self, index: int) -> str:
        """Returns the file name of a path, else an empty string."""
        item = self.items[index]
        return Path(item).name if isinstance(item, (str, Path)) else ""

    def scan(self, index: int) -> Scan:
        """Returns the digest of the pixels, and why they are no image."""
        item = self.items[index]
        if isinstance(item, (str, Path)):
            return ImageFiles((Path(item),)).scan(0)
        try:
            return scan_pixels(self.read(index))
        except DataError as error:
            return Scan("", str(error).removeprefix(f"{self.name(index)}: "))


@dataclass(frozen=True)
class Scanner:
    """Scans pictures once each, in threads, however often they are asked for."""

    images: Images
    seen: dict[int, Scan] = field(default_factory=dict, compare=False)

    def __call__(self, rows: Iterable[int]) -> list[Scan]:
        """Returns one scan per row."""
        rows = [int(row) for row in rows]
        new = [row for row in dict.fromkeys(rows) if row not in self.seen]
        if new:
            with ThreadPoolExecutor(os.cpu_count(), "tunekit-scan") as threads:
                self.seen.update(zip(new, threads.map(self.images.scan, new), strict=True))
        return [self.seen[row] for row in rows]


def scan_pixels(picture: Picture) -> Scan:
    """Returns the scan of a decoded picture: a digest of its shape and pixels."""
    pixels = np.ascontiguousarray(picture)
    content = hashlib.sha256(f"{pixels.shape} {pixels.dtype} ".encode())
    content.update(pixels.data)
    return Scan(content.hexdigest(), None)


def _scan_bytes(encoded: bytes) -> Scan:
    return Scan(hashlib.sha256(encoded).hexdigest(), damage(encoded))
