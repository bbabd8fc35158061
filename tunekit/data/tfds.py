"""Examples from TensorFlow Datasets, by name and version or from a prepared folder.

This is the only module that brings TensorFlow into the process, and only when it is called.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunekit.data.examples import Found, data_error, listed
from tunekit.data.images import EncodedImages
from tunekit.data.rows import ListRows, Rows
from tunekit.data.spec import DataSpec
from tunekit.errors import DataError, Issue, did_you_mean

TFDS_PREFIX = "tfds:"
_USUAL_SPLITS = {"train": ("train",), "validation": ("validation", "val"), "test": ("test",)}


def prepared_folder(path: Path) -> Path | None:
    """Returns the folder of a prepared dataset at a path or one or two levels below it.

    None where there is none.

    Raises:
        DataError: there are several.
    """
    for pattern in ("features.json", "*/features.json", "*/*/features.json"):
        folders = sorted(
            file.parent
            for file in path.glob(pattern)
            if (file.parent / "dataset_info.json").is_file()
        )
        if len(folders) == 1:
            return folders[0]
        if folders:
            raise DataError(
                f"data.path: {path} holds {len(folders)} prepared datasets; name one of "
                f"{listed(folders)}"
            )
    return None


def find_tfds(path: str | Path, spec: DataSpec) -> dict[str, Found]:
    """Returns the splits of a TensorFlow dataset, downloaded and prepared where it is not yet.

    Args:
        path: "tfds:name", "tfds:name:version", or a folder that tfds prepared.
        spec: names the features and, if wanted, the splits ("train[:80%]" too).

    Raises:
        DataError: the dataset, a feature or a split does not exist.
    """
    builder = _builder(path)
    features = builder.info.features
    issues = [
        Issue(
            f"data.{field}",
            f"{builder.info.full_name} has no feature {name!r}.{did_you_mean(name, features)} "
            f"Its features: {listed(sorted(features), 12)}",
        )
        for field, name in (
            ("image_column", spec.image_column),
            ("label_column", spec.label_column),
        )
        if name not in features
    ]
    splits = _split_names(builder, spec, issues)
    if issues:
        raise data_error(issues)
    found = {name: _find_split(builder, split, spec, name) for name, split in splits.items()}
    for name in [name for name in found if name != "train" and not len(found[name].images)]:
        warnings.warn(
            f"data.{name}: no example of {splits[name]!r} has a label, so it is not used",
            stacklevel=2,
        )
        del found[name]
    return found


def text_rows(path: str | Path, spec: DataSpec) -> dict[str, Rows]:
    """Returns the splits of a TensorFlow dataset of texts as rows, class numbers with their names.

    Args:
        path: "tfds:name", "tfds:name:version", or a folder that tfds prepared, or one above it.
        spec: names the splits, if wanted.

    Raises:
        DataError: the dataset or a split does not exist.
    """
    builder = _builder_at(path)
    issues: list[Issue] = []
    splits = _split_names(builder, spec, issues)
    if issues:
        raise data_error(issues)
    names = {
        column: tuple(found)
        for column, feature in builder.info.features.items()
        if (found := getattr(getattr(feature, "feature", feature), "names", None))
    }
    return {
        name: ListRows(
            _Decoded(_records(builder, split, {})), f"{builder.info.full_name} {split}", names
        )
        for name, split in splits.items()
    }


def text_features(path: str | Path) -> tuple[str, ...]:
    """Returns the names of a dataset's features, none where one of them is an image.

    Raises:
        DataError: the dataset does not exist.
    """
    features = _builder_at(path).info.features
    import tensorflow_datasets as tfds

    images = any(isinstance(feature, tfds.features.Image) for feature in features.values())
    return () if images else tuple(features)


@dataclass(frozen=True)
class _Decoded(Sequence[Any]):
    """Records with plain Python values, read when they are asked for."""

    records: Sequence[Mapping[str, Any]]

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: Any) -> Any:
        return {name: _plain(value) for name, value in self.records[index].items()}


def _plain(value: Any) -> Any:
    """Returns a feature's value: bytes as text, arrays as lists, also in what holds others."""
    if isinstance(value, bytes):
        return value.decode()
    if isinstance(value, Mapping):
        return {name: _plain(inner) for name, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(inner) for inner in value]
    return _plain(value.tolist()) if hasattr(value, "tolist") else value


def _builder_at(path: str | Path) -> Any:
    """Returns the builder of a name, or of a prepared folder at a path or below it."""
    bare = str(path).removeprefix(TFDS_PREFIX)
    folder = prepared_folder(Path(bare).expanduser()) if bare == str(path) else None
    return _builder(folder or f"{TFDS_PREFIX}{bare}")


def _builder(path: str | Path) -> Any:
    try:
        import tensorflow_datasets as tfds
    except ImportError as error:
        raise DataError(
            "data.path: TensorFlow Datasets is not installed. pip install 'tunekit[tfds]'"
        ) from error
    if not str(path).startswith(TFDS_PREFIX):
        return tfds.builder_from_directory(path)
    name = str(path).removeprefix(TFDS_PREFIX)
    try:
        builder = tfds.builder(name)
    except tfds.core.DatasetNotFoundError as error:
        hint = did_you_mean(name.split(":")[0], tfds.list_builders())
        raise DataError(f"data.path: tfds has no dataset {name!r}.{hint}") from error
    builder.download_and_prepare(file_format="array_record")
    return builder


def _split_names(builder: Any, spec: DataSpec, issues: list[Issue]) -> dict[str, str]:
    """Returns the dataset's name for each of our splits, adding an issue per unknown one."""
    there = list(builder.info.splits)
    found: dict[str, str] = {}
    for name, usual in _USUAL_SPLITS.items():
        wanted = getattr(spec, name)
        if wanted is not None:
            bare = wanted.split("[")[0]
            if bare in there:
                found[name] = wanted
                continue
            message = f"no split {bare!r}.{did_you_mean(bare, there)} It has {listed(there)}"
            issues.append(Issue(f"data.{name}", message))
        elif at_hand := [split for split in usual if split in there]:
            found[name] = at_hand[0]
    if "train" not in found and not issues:
        issues.append(Issue("data.train", f"name the split to train on: {listed(there)}"))
    return found


def _find_split(builder: Any, split: str, spec: DataSpec, name: str) -> Found:
    import tensorflow_datasets as tfds

    records = _records(builder, split, {spec.image_column: tfds.decode.SkipDecoding()})
    feature = builder.info.features[spec.label_column]
    # A Sequence(ClassLabel) is multi-label, and keeps its names one level down.
    inner = getattr(feature, "feature", feature)
    declared = tuple(getattr(inner, "names", None) or ())
    labels: list[tuple[str, ...]] = []
    unlabelled = 0
    for i in range(len(records)):
        label = records[i][spec.label_column]
        numbers = list(label) if inner is not feature else [label]
        names = tuple(_name(number, declared) for number in numbers)
        unlabelled += None in names
        labels.append(tuple(name for name in names if name is not None))
    issues = (
        (
            Issue(
                f"data.{name}",
                f"{unlabelled} of {len(records)} examples of {split!r} have no label",
            ),
        )
        if unlabelled
        else ()
    )
    rows = [i for i, names in enumerate(labels) if names or inner is not feature]
    images = EncodedImages(
        len(rows),
        lambda i: records[rows[i]][spec.image_column],
        f"{builder.info.full_name} {split}",
    )
    kept = tuple(labels[row] for row in rows)
    return Found(images, kept, inner is not feature, declared, issues)


def _records(builder: Any, split: str, decoders: dict[str, Any]) -> Sequence[Mapping[str, Any]]:
    """Returns the records of a split by index."""
    import tensorflow_datasets as tfds

    formats = tfds.core.FileFormat.with_random_access()
    if builder.info.available_file_formats() & formats:
        return builder.as_data_source(split, decoders=decoders)
    # TFRecord files cannot be read by index, so the encoded records are held in memory.
    import tensorflow

    tensorflow.config.set_visible_devices([], "GPU")  # else TensorFlow takes all of it from JAX
    return list(tfds.as_numpy(builder.as_dataset(split, decoders=decoders, shuffle_files=False)))


def _name(label: Any, declared: tuple[str, ...]) -> str | None:
    """Returns a label's name; None for -1, which tfds gives to what has no label."""
    if isinstance(label, bytes):
        return label.decode() or None
    number = int(label)
    if number < 0:
        return None
    return declared[number] if declared else str(number)
