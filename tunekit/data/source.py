"""The door to data: opens whatever holds labelled images as checked sources."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from tunekit.data import table, tfds
from tunekit.data.arrays import find_arrays, image_items
from tunekit.data.examples import (
    Found,
    LabelledImages,
    Source,
    Splits,
    UnlabelledImages,
    data_error,
    listed,
    scan_source,
)
from tunekit.data.image_folder import find_image_folder, find_image_folders
from tunekit.data.preflight import (
    drop_damaged,
    model_label_issues,
    preflight,
    too_few_to_split,
)
from tunekit.data.spec import DataSpec
from tunekit.data.stratify import draw, split
from tunekit.errors import DataError, Issue, did_you_mean

__all__ = ["Source", "Splits", "UnlabelledImages", "open_data", "open_examples", "open_images"]

_SPLIT_NAMES = {
    "train": "train", "validation": "validation", "val": "validation", "valid": "validation",
    "test": "test",
}  # fmt: skip


def open_data(data: Any, spec: DataSpec, *, seed: int) -> Splits:
    """Returns checked training, validation and test sources.

    Args:
        data: a path, (images, labels), a dict of those by split, a Source or Splits; None takes
            `spec.path`.
        spec: how to read and split it.
        seed: fixes the validation split and `max_examples` where the spec has no `split_seed`.

    Raises:
        DataError: lists everything that is wrong with the data.
    """
    seed = seed if spec.split_seed is None else spec.split_seed
    issues: list[Issue] = []
    sources: dict[str, Source]
    if isinstance(data, Splits):
        sources = dict(data.items())
    elif isinstance(data, Source):
        sources = {"train": data}
    elif isinstance(data, Mapping) and data and all(isinstance(v, Source) for v in data.values()):
        sources = {_split_name(name): source for name, source in data.items()}
    else:
        found = _find(spec.path if data is None else data, spec)
        issues += [issue for one in found.values() for issue in one.issues]
        sources = _bind(found, spec)
    if "train" not in sources:
        raise DataError(f"data: expected a split named train, got {listed(list(sources))}")
    sources = {name: _kept(source, name, spec, seed) for name, source in sources.items()}
    if "validation" not in sources and spec.validation_fraction > 0 and len(sources["train"]):
        issues += too_few_to_split(sources["train"])
        sources |= _held_out(sources["train"], spec, seed)
    splits = Splits(**sources)
    preflight(splits, spec, issues)
    return splits


def open_examples(data: Any, labels: Sequence[str], spec: DataSpec) -> Source:
    """Returns checked labelled examples to evaluate a model on whose labels are `labels`.

    Args:
        data: a path to examples that are not divided in splits, (images, labels), or a Source.
        labels: the model's label names, in the order of its outputs.
        spec: columns and the like; its splits and label order are not used.

    Raises:
        DataError: lists everything that is wrong with the data.
    """
    spec = replace(spec, labels=tuple(labels), train=None, validation=None, test=None)
    issues: list[Issue] = []
    if isinstance(data, Source):
        source = data
    else:
        found = _find_one(data, spec, "data")
        issues += found.issues
        source = _bind({"train": found}, spec)["train"]
    source = _kept(source, "data", replace(spec, max_examples=None), seed=0)
    issues += model_label_issues(source, labels)
    if not len(source):
        issues.append(Issue("data", "has no examples"))
    damaged = [f"{name} ({scan.damage})" for name, scan in scan_source(source) if scan.damage]
    if damaged:
        issues.append(Issue("data", f"{len(damaged)} images cannot be read: {listed(damaged)}"))
    if issues:
        raise data_error(issues)
    return source


def open_images(items: Any) -> UnlabelledImages:
    """Returns unlabelled images by index.

    Args:
        items: a list of paths, PIL images and arrays, an array [N, H, W, 3], or one image alone.

    Raises:
        DataError: an item is no image, or a path does not exist.
    """
    if isinstance(items, (str, Path)) or getattr(items, "ndim", None) == 2:
        items = [items]
    elif not isinstance(items, (list, tuple)) and getattr(items, "ndim", None) != 4:
        items = [items]
    return UnlabelledImages(image_items(items))


def _find(data: Any, spec: DataSpec) -> dict[str, Found]:
    if isinstance(data, Mapping):
        return {
            _split_name(name): _find_one(value, spec, f"data.{name}")
            for name, value in data.items()
        }
    if not isinstance(data, (str, Path)):
        return {"train": _find_one(data, spec, "data.train")}
    kind = _kind(data, spec)
    if kind == "tfds":
        return tfds.find_tfds(_tfds_path(data), spec)
    path = Path(data).expanduser()
    return table.find_tables(path, spec) if kind == "table" else find_image_folders(path, spec)


def _find_one(data: Any, spec: DataSpec, where: str) -> Found:
    """Returns examples that are one split."""
    if isinstance(data, (tuple, list)) and len(data) == 2:
        images, labels = data
        return find_arrays(images, labels, where)
    if not isinstance(data, (str, Path)):
        raise DataError(
            f"{where}: expected a path, (images, labels), or a dict of those under 'train', "
            f"'validation' and 'test'; got {type(data).__name__}. See DataSpec.path"
        )
    kind = _kind(data, spec)
    path = Path(data).expanduser()
    if kind == "folder":
        return find_image_folder(path, where)
    if kind == "table" and path.is_file():
        return table.find_table([path], spec, where)
    found = _find(data, spec)
    if len(found) > 1:
        raise DataError(f"{where}: {data} holds splits ({listed(list(found))}); name one of them")
    return found["train"]


def _kind(data: str | Path, spec: DataSpec) -> str:
    """Returns "tfds", "table" or "folder"; the spec's kind where it names one."""
    if spec.kind not in ("auto", "arrays"):
        kind = "table" if spec.kind in ("csv", "parquet") else spec.kind
    elif str(data).startswith(tfds.TFDS_PREFIX):
        kind = "tfds"
    else:
        kind = None
    path = Path(data).expanduser()
    if kind != "tfds" and not path.exists():
        near = [str(p) for p in path.parent.iterdir()] if path.parent.is_dir() else []
        raise DataError(
            f"data.path: no such file or folder: {path}.{did_you_mean(str(path), near)}"
        )
    if kind:
        return kind
    if path.is_dir():
        if tfds.prepared_folder(path):
            return "tfds"
        return "table" if table.split_files(path) else "folder"
    if path.suffix.lower() in table.TABLE_SUFFIXES:
        return "table"
    raise DataError(
        f"data.path: expected a folder or a file of "
        f"{listed(sorted(table.TABLE_SUFFIXES))}, got {path}"
    )


def _tfds_path(data: str | Path) -> str | Path:
    if str(data).startswith(tfds.TFDS_PREFIX):
        return str(data)
    path = Path(data).expanduser()
    folder = tfds.prepared_folder(path) if path.is_dir() else None
    return folder or f"{tfds.TFDS_PREFIX}{data}"


def _split_name(name: Any) -> str:
    if name not in _SPLIT_NAMES:
        hint = did_you_mean(str(name), _SPLIT_NAMES)
        raise DataError(f"data: expected splits train, validation and test, got {name!r}.{hint}")
    return _SPLIT_NAMES[name]


def _bind(found: dict[str, Found], spec: DataSpec) -> dict[str, Source]:
    names = spec.labels or found["train"].names() if "train" in found else ()
    multi_label = any(one.multi_label for one in found.values())
    occurring = {name for one in found.values() for labels in one.labels for name in labels}
    if spec.labels and not occurring & set(names) and _are_numbers(occurring, len(names)):
        found = {name: _renamed(one, names) for name, one in found.items()}
    return {name: one.bind(names, multi_label=multi_label) for name, one in found.items()}


def _are_numbers(names: set[str], below: int) -> bool:
    return all(name.isdecimal() and int(name) < below for name in names)


def _renamed(found: Found, names: Sequence[str]) -> Found:
    """Returns the split with class numbers replaced by the names they stand for."""
    labels = tuple(tuple(names[int(label)] for label in one) for one in found.labels)
    return replace(found, labels=labels)


def _kept(source: Source, name: str, spec: DataSpec, seed: int) -> Source:
    """Returns the examples that the spec keeps of a split."""
    if spec.max_examples is not None and spec.max_examples < len(source):
        source = source.select(draw(source.label_array, spec.max_examples, seed))
    if spec.on_unreadable == "skip" and isinstance(source, LabelledImages):
        source = drop_damaged(source, f"data.{name}")
    return source


def _held_out(train: Source, spec: DataSpec, seed: int) -> dict[str, Source]:
    digests = [scan.digest or f"damaged {i}" for i, (_, scan) in enumerate(scan_source(train))]
    kept, held_out = split(train.label_array, digests, spec.validation_fraction, seed)
    if not len(held_out):
        return {}
    return {"train": train.select(kept), "validation": train.select(held_out)}
