"""Prepares tiny TensorFlow datasets in the folder it is given and prints what tunekit opens.

Run in a process of its own, since it brings TensorFlow in.
"""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds

from tunekit.data.source import open_data
from tunekit.data.spec import DataSpec
from tunekit.data.text_source import open_text, recognised
from tunekit.errors import DataError


class Pets(tfds.core.GeneratorBasedBuilder):
    """Six training images and two without labels."""

    VERSION = tfds.core.Version("1.0.0")
    label = tfds.features.ClassLabel(names=["dog", "cat"])

    def _info(self):
        features = {"image": tfds.features.Image(shape=(None, None, 3)), "label": self.label}
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples(6), "test": self._generate_examples(2)}

    def _generate_examples(self, count):
        for i in range(count):
            yield (
                i,
                {
                    "image": np.full((4, 5, 3), 30 * i + count, np.uint8),
                    "label": self.value(i, count),
                },
            )

    def value(self, i, count):
        return i % 2 if count == 6 else -1


class Tags(Pets):
    """The same with any number of labels."""

    label = tfds.features.Sequence(tfds.features.ClassLabel(names=["red", "big"]))

    def value(self, i, count):
        return list(range(i % 3))


class Reviews(Pets):
    """Six texts, their words, and two without labels."""

    def _info(self):
        features = {
            "text": tfds.features.Text(),
            "label": self.label,
            "words": tfds.features.Sequence(tfds.features.Text()),
        }
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _generate_examples(self, count):
        for i in range(count):
            row = {
                "text": f"café {i} of {count}",
                "label": self.value(i, count),
                "words": ["é", "b"],
            }
            yield i, row


def prepared(builder, folder: Path, file_format: str) -> str:
    made = builder(data_dir=str(folder / file_format), file_format=file_format)
    made.download_and_prepare()
    return str(made.data_dir)


def described(path: str, **fields) -> dict:
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            splits = open_data(path, DataSpec(validation_fraction=0, **fields), seed=0)
    except DataError as error:
        return {"error": str(error)}
    train = splits.train
    return {
        "names": train.label_names,
        "labels": train.label_array.tolist(),
        "pixels": [int(np.asarray(train[i]["image"])[0, 0, 0]) for i in range(len(train))],
        "shape": np.shape(train[0]["image"]),
        "id": train[0]["id"],
        "test": splits.test and len(splits.test),
        "warnings": [str(w.message) for w in caught if w.category is UserWarning],
    }


def read(path: str, **fields) -> dict:
    spec = DataSpec(validation_fraction=0, **fields)
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            train = open_text(path, spec, "labelled", seed=0).train
    except DataError as error:
        return {"error": str(error)}
    return {
        "names": train.label_names,
        "examples": sorted((train[i]["text"], train[i]["label"]) for i in range(len(train))),
        "id": train[0]["id"],
        "words": train.rows.rows.read(0)["words"],
        "kind": recognised(path, spec),
        "warnings": [str(w.message) for w in caught if w.category is UserWarning],
    }


def main(folder: Path) -> None:
    pets = prepared(Pets, folder, "array_record")
    records = prepared(Pets, folder, "tfrecord")
    reviews = prepared(Reviews, folder, "tfrecord")
    found = {
        "array_record": described(pets),
        "name": described("tfds:pets:1.0.0", train="train[:4]"),
        "dataset's folder": described(str(folder / "array_record" / "pets"), label_column="label"),
        "tfrecord": described(records),
        "tags": described(prepared(Tags, folder, "array_record")),
        "two datasets": described(str(folder / "array_record")),
        "texts": read(reviews),
        "texts of a wrong split": read(reviews, train="tran"),
        "no texts": {"kind": recognised(pets, DataSpec())},
        "wrong column": described(pets, label_column="labels"),
        "wrong split": described(pets, validation="tets"),
        "wrong name": described("tfds:mnits"),
    }
    print("\n" + json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
