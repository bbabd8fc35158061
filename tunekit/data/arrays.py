"""Examples from Python: images and labels as arrays or lists."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tunekit.data.decode import range_problem
from tunekit.data.examples import Found, data_error, listed
from tunekit.data.images import Images, MemoryImages
from tunekit.errors import DataError, Issue

Labels = tuple[tuple[str, ...], ...]


def find_arrays(images: Any, labels: Any, where: str) -> Found:
    """Returns the examples of one split.

    Args:
        images: [N, H, W, 3], [N, H, W, 1] or [N, H, W] in 0..255, or a list of arrays, PIL images
            and paths.
        labels: [N] whole numbers or strings; [N, C] zeros and ones (one label where every row has
            exactly one 1, else multi-label); or a list of lists of names (multi-label).
        where: the split, for messages ("data.train").

    Raises:
        DataError: lists everything that is wrong with the two.
    """
    issues: list[Issue] = []
    found_images = _images(images, f"{where}.images", issues)
    names, multi_label, declared = (), False, ()
    try:
        names, multi_label, declared = read_labels(labels)
    except DataError as error:
        issues.append(Issue(f"{where}.labels", str(error)))
    else:
        if len(found_images) != len(names):
            issues.append(
                Issue(
                    where,
                    f"expected one label per image, got {len(found_images)} images and "
                    f"{len(names)} labels",
                )
            )
    if issues:
        raise data_error(issues)
    return Found(found_images, names, multi_label, declared)


def image_items(items: Any, place: str = "images") -> Images:
    """Returns a list of paths, PIL images and arrays, or one array [N, H, W, ...], by index.

    Raises:
        DataError: an item is none of these, or a path does not exist.
    """
    issues: list[Issue] = []
    found = _images(items, place, issues)
    if issues:
        raise data_error(issues)
    return found


def _images(images: Any, path: str, issues: list[Issue]) -> Images:
    if isinstance(images, (list, tuple)):
        return _image_list(images, path, issues)
    array = np.asarray(images)
    came = f"{array.dtype} {list(array.shape)}"
    if array.ndim == 4 and array.shape[1] in (1, 3) and array.shape[3] not in (1, 3):
        issues.append(
            Issue(
                path,
                "expected channels last, [N, height, width, 3]; "
                f"got {came}: use images.transpose(0, 2, 3, 1)",
            )
        )
    elif array.ndim not in (3, 4) or (array.ndim == 4 and array.shape[3] not in (1, 3)):
        hint = "; one image alone needs images[None]" if array.ndim == 2 else ""
        issues.append(Issue(path, f"expected [N, height, width, 3], got {came}{hint}"))
    elif array.size == 0:
        issues.append(Issue(path, f"expected at least one image, got {came}"))
    else:
        problem = range_problem(array)
        if problem is None and array.max() <= 1:
            problem = "every pixel is 0 or 1, where 0..255 is expected; multiply by 255"
        if problem:
            issues.append(Issue(path, problem))
        elif array.dtype != np.uint8:
            array = np.rint(array).astype(np.uint8)
    return MemoryImages(array, path)


def _image_list(images: list[Any] | tuple[Any, ...], path: str, issues: list[Issue]) -> Images:
    strangers = [
        f"[{i}] is {type(item).__name__}"
        for i, item in enumerate(images)
        if not isinstance(item, (str, Path, Image.Image, np.ndarray))
        and not hasattr(item, "__array__")
    ]
    missing = [
        str(item) for item in images if isinstance(item, (str, Path)) and not Path(item).is_file()
    ]
    if not images:
        issues.append(Issue(path, "expected at least one image, got an empty list"))
    if strangers:
        expected = "expected paths, PIL images or arrays; "
        issues.append(Issue(path, expected + listed(strangers)))
    if missing:
        issues.append(Issue(path, f"{len(missing)} files do not exist: {listed(missing)}"))
    return MemoryImages(images, path)


def read_labels(labels: Any) -> tuple[Labels, bool, tuple[str, ...]]:
    """Returns the names of each example, whether there may be several, and the declared names.

    Raises:
        DataError: they are nothing that `find_arrays` takes.
    """
    if isinstance(labels, (list, tuple)) and labels and _is_names(labels[0]):
        if all(_is_names(label) for label in labels):
            return tuple(tuple(dict.fromkeys(label)) for label in labels), True, ()
        raise DataError("some labels are lists of names and some are not; make all of them lists")
    try:
        array = np.asarray(labels)
    except ValueError as error:
        raise DataError(f"the labels are of different lengths ({error})") from error
    if array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    if array.dtype == object and array.size and isinstance(array.flat[0], str):
        array = _string_array(array)
    if array.ndim == 1 and array.dtype.kind in "US":
        return tuple((str(label),) for label in array), False, ()
    if array.ndim == 1 and array.dtype.kind in "iu":
        return _numbered(array), False, ()
    if array.ndim == 2 and array.dtype.kind in "biuf":
        return _hot(array)
    raise DataError(
        "expected [N] whole numbers or strings, [N, C] zeros and ones, or lists of names; "
        f"got {array.dtype} {list(array.shape)}"
        + ("; use labels.astype(int)" if array.ndim == 1 and array.dtype.kind == "f" else "")
    )


def _is_names(label: Any) -> bool:
    return isinstance(label, (list, tuple, set, frozenset)) and all(
        isinstance(name, str) for name in label
    )


def _string_array(array: np.ndarray) -> np.ndarray:
    wrong = [f"[{i}] is {item!r}" for i, item in enumerate(array.flat) if not isinstance(item, str)]
    if wrong:
        raise DataError(f"expected strings only, but {listed(wrong)}")
    return array.astype(str)


def _numbered(array: np.ndarray) -> Labels:
    if array.size and array.min() < 0:
        count = int((array < 0).sum())
        raise DataError(f"{count} labels are negative; remove examples without a label")
    return tuple((str(label),) for label in array)


def _hot(array: np.ndarray) -> tuple[Labels, bool, tuple[str, ...]]:
    if not np.isin(array, (0, 1)).all():
        low, high = array.min(), array.max()
        raise DataError(
            f"expected [N, C] of zeros and ones, got {array.dtype} {list(array.shape)} in "
            f"{low:g}..{high:g}"
        )
    declared = tuple(str(i) for i in range(array.shape[1]))
    names = tuple(tuple(declared[i] for i in np.flatnonzero(row)) for row in array)
    return names, not bool((array.sum(axis=1) == 1).all()), declared
