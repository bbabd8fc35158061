"""From counts to a range of time: by hand."""

import pytest

from tunekit.planning.roofline import SLOWER, Speeds, sent_bytes, step_time

SPEEDS = Speeds(flops=100.0, bandwidth=10.0, link_bandwidth=5.0)
ALL_REDUCE = {"kind": "all-reduce", "count": 1, "bytes": 40}


def timed(**changes):
    given = {
        "flops": 800.0,
        "least_bytes": 20.0,
        "bytes_accessed": 60.0,
        "collectives": [],
        "devices": 4,
        "speeds": SPEEDS,
    }
    return step_time(**{**given, **changes})


def test_the_lower_end_is_the_slowest_of_arithmetic_memory_and_links():
    time = timed(collectives=[ALL_REDUCE])
    # 800 / 4 / 100; 20 / 10; 2 x 3/4 x 40 / 5.
    assert (time.compute, time.memory, time.links) == (2.0, 2.0, 12.0)
    assert time.lower == 12.0 and time.bound == "links"
    assert timed(flops=8000.0).bound == "compute"
    assert timed(flops=8.0).bound == "memory"


def test_the_upper_end_counts_all_traffic_that_the_compiler_does():
    assert timed().upper == SLOWER * 6.0
    assert timed(flops=80_000.0).upper == SLOWER * 200.0
    assert timed(collectives=[ALL_REDUCE]).upper == SLOWER * 12.0


def test_a_compiler_that_counts_nothing_leaves_arguments_and_results():
    assert timed(bytes_accessed=None, flops=8.0).upper == SLOWER * 2.0


def test_a_machine_without_links_sends_nothing():
    alone = Speeds(flops=100.0, bandwidth=10.0)
    assert timed(collectives=[ALL_REDUCE], speeds=alone).links == 0.0
    assert sent_bytes([ALL_REDUCE], devices=1) == 0.0


@pytest.mark.parametrize(
    ("kind", "sent"),
    [("all-reduce", 60), ("all-gather", 30), ("reduce-scatter", 30), ("all-to-all", 30),
     ("collective-permute", 40), ("ragged-all-to-all", 40)],
)  # fmt: skip
def test_each_collective_sends_what_a_ring_does(kind, sent):
    assert sent_bytes([{"kind": kind, "count": 2, "bytes": 40}], devices=4) == sent
