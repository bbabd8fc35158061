"""Examples from folders: one sub-folder per class, perhaps below one per split."""

from __future__ import annotations

import os
import warnings
from collections.abc import Set
from pathlib import Path

from tunekit.data.decode import IMAGE_SUFFIXES
from tunekit.data.examples import Found, data_error, in_order, listed
from tunekit.data.images import ImageFiles
from tunekit.data.spec import DataSpec
from tunekit.errors import DataError, Issue, did_you_mean

SPLIT_FOLDERS = {
    "train": ("train", "training"),
    "validation": ("validation", "val", "valid"),
    "test": ("test",),
}


def find_image_folders(root: Path, spec: DataSpec) -> dict[str, Found]:
    """Returns the splits of an image folder, by the names train, validation and test.

    Sub-folders train, validation (val, valid) and test are splits, unless `train` itself holds
    images: then it is a class.

    Raises:
        DataError: the folder has no class folders, or a named split does not exist.
    """
    folders = _split_folders(root, spec) or {"train": root}
    return {name: find_image_folder(folder, f"data.{name}") for name, folder in folders.items()}


def find_image_folder(folder: Path, where: str) -> Found:
    """Returns the examples of one folder of class folders.

    Hidden files and files that are no images are passed over; a class folder without images is an
    issue. Images may lie deeper in a class folder.

    Raises:
        DataError: there are no class folders, or they are splits.
    """
    classes = _subfolders(folder)
    if not classes:
        loose = len(_loose_images(folder))
        hint = f"; its {loose} images have no label" if loose else ""
        raise DataError(
            f"{where}: expected one folder per class in {folder}, found none{hint}. "
            f"Lay the images out as {folder.name}/<class>/<image>.jpg"
        )
    if _usual_splits(folder):
        splits = listed([path.name for path in _usual_splits(folder).values()])
        raise DataError(f"{where}: {folder} holds splits ({splits}); name one of them")
    paths: list[Path] = []
    labels: list[tuple[str, ...]] = []
    issues: list[Issue] = []
    for path in classes:
        images, others = _image_paths(path)
        if not images:
            suffixes = listed(sorted({other.suffix or other.name for other in others}))
            inside = f"; it holds {len(others)} other files ({suffixes})" if others else ""
            message = f"class folder {path} holds no image{inside}. Fill or remove it"
            issues.append(Issue(where, message))
        paths += images
        labels += [(path.name,)] * len(images)
    declared = in_order(path.name for path in classes)
    return Found(ImageFiles(tuple(paths), folder), tuple(labels), False, declared, tuple(issues))


def _split_folders(root: Path, spec: DataSpec) -> dict[str, Path]:
    """Returns the folders of the splits, named by the spec or found; none in a plain folder."""
    there = [path.name for path in _subfolders(root)]
    named: dict[str, Path] = {}
    issues: list[Issue] = []
    for name in SPLIT_FOLDERS:
        folder = getattr(spec, name)
        if folder is None:
            continue
        named[name] = root / folder
        if not named[name].is_dir():
            hint = did_you_mean(folder, there) or f" It holds {listed(there) or 'no folders'}"
            issues.append(Issue(f"data.{name}", f"{root} has no folder {folder!r}.{hint}"))
    if issues:
        raise data_error(issues)
    found = _usual_splits(root, but=set(named.values()))
    if named and "train" not in {**found, **named}:
        raise DataError(f"data.train: name the folder of {root} to train on: {listed(there)}")
    return {**found, **named}


def _usual_splits(root: Path, but: Set[Path] = frozenset()) -> dict[str, Path]:
    """Returns the split folders of a root that is laid out in splits, else nothing.

    Raises:
        DataError: folders of splits and of classes lie side by side.
    """
    by_name = {path.name.lower(): path for path in _subfolders(root) if path not in but}
    splits: dict[str, Path] = {}
    for name, aliases in SPLIT_FOLDERS.items():
        there = [by_name.pop(alias) for alias in aliases if alias in by_name]
        if there:
            splits[name] = there[0]
    if "train" in splits and (not _subfolders(splits["train"]) or _loose_images(splits["train"])):
        return {}  # "train" is a class, of vehicles perhaps
    if "train" not in splits and not but:
        return {}
    classes = [path.name for path in by_name.values() if _loose_images(path)]
    if classes and not but:
        raise DataError(
            f"data.train: {root} holds splits ({listed([p.name for p in splits.values()])}) beside "
            f"folders of images ({listed(classes)}). Name the folder to train on in data.train, or "
            "move the others out"
        )
    for name in ("validation", "test"):
        if name in splits and not _subfolders(splits[name]):
            warnings.warn(
                f"data.{name}: {splits[name]} has no class folders, so it is not used; "
                f"lay it out as {splits[name].name}/<class>/<image>.jpg",
                stacklevel=2,
            )
            del splits[name]
    return splits


def _loose_images(folder: Path) -> list[Path]:
    """Returns the images that lie directly in a folder."""
    return [
        path
        for path in folder.iterdir()
        if path.suffix.lower() in IMAGE_SUFFIXES and not _hidden(path.name)
    ]


def _subfolders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir() and not _hidden(path.name))


def _image_paths(folder: Path) -> tuple[list[Path], list[Path]]:
    """Returns the images below a folder, in the order of their relative paths, and other files."""
    images: list[Path] = []
    others: list[Path] = []
    for parent, folders, files in os.walk(folder, followlinks=True):
        folders[:] = [name for name in folders if not _hidden(name)]
        for name in files:
            if not _hidden(name):
                kind = images if Path(name).suffix.lower() in IMAGE_SUFFIXES else others
                kind.append(Path(parent, name))
    return sorted(images), sorted(others)


def _hidden(name: str) -> bool:
    return name.startswith(".") or name in ("__MACOSX", "Thumbs.db", "desktop.ini", "@eaDir")
