from __future__ import annotations

import json

import keras
import numpy as np
import pytest

import tunekit
from tunekit.data.source import open_data
from tunekit.data.spec import DataSpec
from tunekit.models.backbone import Backbone
from tunekit.models.model import Model
from tunekit.models.preprocessing import ImagePreprocessing
from tunekit.report.run import run_report, versions

RECORD = {"phases": [{"label": "head"}], "audit": {"groups": []}}


@pytest.fixture(scope="module")
def model():
    inputs = keras.Input((8, 8, 3))
    body = keras.Model(inputs, keras.layers.Conv2D(2, 3, name="stem")(inputs))
    backbone = Backbone(body, ImagePreprocessing((8, 8)), "map", "plain", "tiny")
    return Model(backbone, ("cat", "dog"))


def images(count):
    return np.random.default_rng(0).integers(0, 256, (count, 8, 8, 3), np.uint8)


def test_a_report_has_data_parameters_and_cost(model):
    labels = ["cat"] * 4 + ["dog"] * 2
    splits = open_data((images(6), labels), DataSpec(validation_fraction=0), seed=0)
    head = [name for name in model.weight_names() if name.startswith("heads/")]
    report = run_report(model, splits, trained=head, seconds=2.5, compiles=1, **RECORD)
    assert report["parameters"] == {"trained": 2 * 2 + 2, "frozen": 3 * 3 * 3 * 2 + 2}
    assert report["data"]["train"] == {
        "fingerprint": splits.train.fingerprint,
        "examples": 6,
        "examples_by_label": {"cat": 4, "dog": 2},
    }
    assert (report["seconds"], report["compiles"]) == (2.5, 1)
    assert report["device"]["platform"] == "cpu"
    assert (report["phases"], report["audit"]) == (RECORD["phases"], RECORD["audit"])
    assert json.loads(json.dumps(report)) == report


def test_multi_label_examples_count_for_each_of_their_labels(model):
    labels = [["cat", "dog"], ["dog"], ["cat"], []]
    splits = open_data((images(4), labels), DataSpec(validation_fraction=0), seed=0)
    report = run_report(model, splits, trained=(), seconds=0.0, compiles=0, **RECORD)
    assert report["data"]["train"]["examples_by_label"] == {"cat": 2, "dog": 2}


def test_versions_name_what_decides_the_numbers():
    assert versions()["tunekit"] == tunekit.__version__
    assert versions()["keras"] == keras.version()
    assert set(versions()) == {"tunekit", "keras", "keras_hub", "jax", "numpy"}
