"""The measured peak of this machine: plausible, kept, and measured again where asked."""

import dataclasses
import json

import pytest

from tunekit.training import device_peak as module
from tunekit.training.device_peak import device_peak


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(module, "SECONDS", 0.02)
    monkeypatch.setattr(module, "_SIDE", {"cpu": 256})
    monkeypatch.setattr(module, "_COPIED_BYTES", 2**22)
    return tmp_path / "tunekit" / "peaks"


def test_a_peak_is_a_rate_for_each_dtype_and_one_for_memory(cache):
    peak = device_peak()
    assert set(peak.flops) == {"float32", "bfloat16"}
    # A pocket calculator and a data centre: whatever this machine is, it is between them.
    assert all(1e8 < rate < 1e16 for rate in peak.flops.values())
    assert 1e8 < peak.bandwidth < 1e14
    assert peak.device


def test_what_was_measured_is_kept_until_it_is_asked_anew(cache):
    measured = device_peak()
    (file,) = cache.iterdir()
    told = dataclasses.asdict(measured) | {"bandwidth": 5.0}
    file.write_text(json.dumps(told))
    assert device_peak().bandwidth == 5.0
    assert device_peak(anew=True).bandwidth > 5.0
    assert json.loads(file.read_text())["bandwidth"] > 5.0


def test_a_file_cut_short_is_measured_again(cache):
    device_peak()
    (file,) = cache.iterdir()
    file.write_text(file.read_text()[:20])
    assert device_peak().bandwidth > 0
    assert json.loads(file.read_text())["device"]


def test_a_folder_that_cannot_be_written_to_is_no_error(cache):
    cache.parent.mkdir()
    cache.write_text("a file in the folder's place")
    assert device_peak().bandwidth > 0
