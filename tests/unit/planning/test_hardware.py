"""Machines by name."""

from __future__ import annotations

import math

import jax
import pytest

from tunekit.planning.chips import CHIPS
from tunekit.planning.hardware import TargetError, target, target_names


@pytest.mark.parametrize(
    ("written", "name"),
    [
        ("v5e-8", "v5e-8"),
        ("v5litepod-8", "v5e-8"),
        ("tpu-v6e-4", "v6e-4"),
        ("V5P-8", "v5p-8"),
        ("h100-1", "h100-1"),
        ("h100", "h100-1"),
        ("4xh100", "h100-4"),
        ("4 x H100", "h100-4"),
        ("h100x8", "h100-8"),
        ("NVIDIA H200", "h200-1"),
        ("a100-80gb-8", "a100-80gb-8"),
        ("a100-80", "a100-80gb-1"),
        ("2xa100-80gb", "a100-80gb-2"),
        ("a100-2", "a100-40gb-2"),
        ("RTX 4090", "rtx4090-1"),
    ],
)
def test_a_machine_is_found_however_its_name_is_spelt(written: str, name: str) -> None:
    assert target(written).name == name


@pytest.mark.parametrize("name", target_names())
def test_every_listed_name_is_of_a_machine(name: str) -> None:
    found = target(name)
    assert found.name == name and found.count >= 1
    if found.grid:
        halves = 2 if found.chip.name == "tpu7x" else 1
        assert found.count == halves * math.prod(found.grid)


def test_slices_counted_in_cores_have_half_as_many_chips() -> None:
    assert (target("v4-8").count, target("v5p-16").count, target("v5e-8").count) == (4, 8, 8)
    assert target("tpu7x-8").count == 8 and math.prod(target("tpu7x-8").grid) == 4


def test_hosts_are_counted() -> None:
    hosts = {name: target(name).hosts for name in ("v5e-8", "v5e-16", "v4-16", "h100-8", "h100-16")}
    assert hosts == {"v5e-8": 1, "v5e-16": 4, "v4-16": 2, "h100-8": 1, "h100-16": 2}


def test_an_unknown_chip_is_refused_with_near_names() -> None:
    with pytest.raises(TargetError, match="'h1000-4'. Did you mean 'h100'.*v5e, .*rtx4090.*'this'"):
        target("h1000-4")


def test_a_size_that_does_not_exist_is_refused_with_those_that_do() -> None:
    with pytest.raises(TargetError, match="no v5e-3. Did you mean 'v5e-4'.*sizes 1, 4, 8, 16"):
        target("v5e-3")
    with pytest.raises(TargetError, match="no v4-4. .*count cores: v4-8 is 4 chips"):
        target("v4-4")
    with pytest.raises(TargetError, match="no h100-12. .*sizes 1, 2, .*8, 16"):
        target("12xh100")


def test_this_machine_is_what_jax_has_here() -> None:
    here = target("this")
    assert here.is_this_machine and here.kind == jax.default_backend()
    assert here.count == jax.device_count() and here.chip.usable_bytes > 2**28


@pytest.mark.parametrize("chip", CHIPS, ids=lambda chip: chip.name)
def test_a_chip_says_what_a_bound_on_time_needs(chip) -> None:
    peaks = [chip.peak(dtype) for dtype in ("float32", "bfloat16", "float16")]
    assert all(peak > 1e12 for peak in peaks) and peaks[2] >= peaks[0]
    assert chip.bandwidth > 1e11 and chip.link_bandwidth < chip.bandwidth
    assert 2**33 < chip.usable_bytes <= chip.memory_bytes
    assert (chip.capability is None) == (chip.kind == "tpu")


def test_float32_runs_at_the_precision_that_jax_has_by_default() -> None:
    peaks = {chip.name: chip.peak("float32") for chip in CHIPS}
    assert peaks["v5e"] == 197e12 and peaks["h100"] == 494.7e12 and peaks["v100"] == 15.7e12
