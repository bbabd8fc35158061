from __future__ import annotations

import subprocess
import sys

import pytest

from tunekit.data.spec import AugmentSpec, BatchSpec, DataSpec


@pytest.mark.parametrize("spec", [DataSpec(), AugmentSpec(), BatchSpec(), BatchSpec(accumulate=4)])
def test_defaults_have_no_issues(spec):
    assert spec.issues() == []


@pytest.mark.parametrize(
    ("spec", "path", "message"),
    [
        (DataSpec(path="x", kind="arrays"), "kind", "not from path 'x'"),
        (DataSpec(labels=("a", "b", "a")), "labels", "expected each name once, but ['a'] repeat"),
        (DataSpec(labels=("a",)), "labels", "expected at least 2 names, got ['a']"),
        (DataSpec(train="a", validation="a"), "validation", "'a' is also train"),
        (DataSpec(train="a", test="a"), "test", "'a' is also train"),
        (DataSpec(validation="a", test="a"), "test", "'a' is also validation"),
        (AugmentSpec(random_resized_crop=(0.5, 0.2)), "random_resized_crop", "0.5, 0.2"),
        (AugmentSpec(random_resized_crop=(0.0, 1.0)), "random_resized_crop", "0 < smallest"),
        (BatchSpec(size=32, accumulate=3), "accumulate", "32 does not divide into 3"),
    ],
)
def test_fields_that_cannot_go_together_are_issues(spec, path, message):
    ((found_path, found_message),) = spec.issues()
    assert found_path == path and message in found_message


def test_specs_are_importable_without_heavy_libraries():
    code = (
        "import sys, tunekit.data.spec\n"
        "heavy = {'jax', 'keras', 'PIL', 'numpy', 'grain', 'tensorflow', 'pydantic'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_opening_data_leaves_tensorflow_out():
    code = (
        "import sys, tunekit.data.source, tunekit.data.pipeline\n"
        "loaded = {'tensorflow', 'tensorflow_datasets', 'pyarrow'} & set(sys.modules)\n"
        "assert not loaded, loaded"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
