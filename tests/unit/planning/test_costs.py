"""From what a compiler says of two depths to what the whole needs: lines, by hand."""

from tunekit.planning.compiled import CompiledPhase
from tunekit.planning.costs import Costs, extrapolated, phase_cost
from tunekit.planning.hardware import target

TPU, HERE = target("v5e-1"), target("this")


def compiled(blocks: int, **changes) -> CompiledPhase:
    """A network whose every figure is so much, and so much a block."""
    frozen, temporary = 100 + 10 * blocks, 50 + 20 * blocks
    given = {
        "label": "all",
        "argument_bytes": frozen + 6,
        "output_bytes": 7,
        "alias_bytes": 4,
        "temp_bytes": temporary,
        "peak_bytes": frozen + 6 + temporary,
        "state": {"frozen": frozen, "trained": 2, "optimizer": 4},
        "flops": 1000.0 * blocks,
        "bytes_accessed": 30.0 + 5 * blocks,
        "collectives": [{"kind": "all-gather", "count": 1 + 2 * blocks, "bytes": 64 * blocks}],
        "compile_seconds": 1.5,
    }
    return CompiledPhase(**{**given, **changes})


def cost(blocks, machine=TPU, **changes):
    return phase_cost(compiled(blocks, **changes), machine)


def test_two_depths_give_every_figure_of_the_whole():
    found, whole = extrapolated(cost(2), cost(4), 32), cost(32)
    assert found.held == whole.held
    assert (found.flops, found.bytes_accessed) == (whole.flops, whole.bytes_accessed)
    assert found.collectives == whole.collectives
    assert found.least_bytes == whole.least_bytes
    assert found.compile_seconds == 3.0


def test_what_a_device_holds_adds_up_to_the_compilers_peak():
    assert cost(4).held.total == compiled(4).peak_bytes


def test_a_cpu_holds_all_temporaries_beside_arguments_and_results():
    held = cost(4, HERE, peak_bytes=0).held
    assert held.total == 146 + (7 - 4) + 130


def test_a_figure_that_shrinks_with_depth_is_never_below_what_was_compiled():
    falling = extrapolated(cost(2), cost(4, bytes_accessed=10.0), 32)
    assert falling.bytes_accessed == 10.0


def test_a_refusal_of_a_part_is_one_of_the_whole():
    assert extrapolated(cost(2), cost(4, refusal="too large"), 32).refusal == "too large"


def test_a_compiler_that_counts_no_bytes_leaves_them_unknown():
    assert extrapolated(cost(2, bytes_accessed=None), cost(4), 32).bytes_accessed is None


def test_the_worst_phase_is_the_one_that_holds_most():
    assert Costs((cost(2), cost(8), cost(4))).worst == cost(8)
