from __future__ import annotations

import json

import keras
import numpy as np
import pytest

import tunekit
from tunekit.data.source import open_data
from tunekit.data.spec import DataSpec
from tunekit.methods.spec import IA3, LoRA
from tunekit.models.backbone import Backbone
from tunekit.models.model import Model
from tunekit.models.preprocessing import ImagePreprocessing
from tunekit.report.run import run_report, versions

SMALL = {"frozen": 8, "trained": 1, "optimizer": 2, "activations": None}
LARGE = {"frozen": 1, "trained": 8, "optimizer": 16, "activations": 4}
PHASES = [{"label": "head", "memory": SMALL}, {"label": "all", "memory": LARGE}]
RECORD = {"phases": PHASES, "audit": {"groups": []}}


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


def test_of_packed_kernels_the_report_counts_the_weights_that_they_stand_for(model):
    inputs = keras.Input((8, 8, 3))
    hidden = keras.layers.Dense(128, name="up")(inputs)
    body = keras.Model(inputs, keras.layers.Dense(2, name="down")(hidden))
    packed = Model(Backbone(body, ImagePreprocessing((8, 8)), "map", "plain", "tiny"), ("a", "b"))
    splits = open_data((images(2), ["a", "b"]), DataSpec(validation_fraction=0), seed=0)
    kinds = {"trained": (), "seconds": 0.0, "compiles": 0}
    before = run_report(packed, splits, **kinds, **RECORD)["parameters"]
    packed.quantize("nf4")
    assert run_report(packed, splits, **kinds, **RECORD)["parameters"] == before


def test_a_reports_memory_is_that_of_the_phase_that_held_most(model):
    splits = open_data((images(2), ["cat", "dog"]), DataSpec(validation_fraction=0), seed=0)
    kinds = {"trained": (), "seconds": 0.0, "compiles": 0}
    assert run_report(model, splits, **kinds, **RECORD)["memory"] == LARGE
    assert run_report(model, splits, **kinds, phases=[], audit={})["memory"] == {}


@pytest.mark.parametrize(
    ("spec", "method", "parameters"),
    [
        (LoRA(rank=2), {"name": "lora", "rank": 2}, 27 * 2 + 2 * 2),
        ("dora", "dora", (27 * 8 + 8 * 2) + 2),
        (IA3(), "ia3", 2),
    ],
)
def test_a_report_names_the_adapters_and_the_layers_that_they_are_on(
    model, spec, method, parameters
):
    splits = open_data((images(2), ["cat", "dog"]), DataSpec(validation_fraction=0), seed=0)
    model.add_adapter("mine", spec)
    try:
        report = run_report(model, splits, trained=(), seconds=0.0, compiles=0, **RECORD)
    finally:
        model.remove_adapter("mine")
    (found,) = report["adapters"]
    said = found.pop("method")
    assert said == method if isinstance(method, str) else method.items() <= said.items()
    assert found == {
        "name": "mine",
        "active": True,
        "parameters": parameters,
        "targets": ["backbone/stem"],
    }
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
