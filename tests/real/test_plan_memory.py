"""The memory that a plan tells of this machine, beside what a real run takes; real weights.

ViTs of a few blocks, which compile soon; ``benchmarks/plan_memory.py`` runs whole ones, and
SmolLM2 under LoRA, which takes 6 GB; it says what is measured.
"""

import sys

import pytest

from benchmarks.plan_memory import compared

SMALLER = {
    "ViT head": ["backbone.blocks=3", "batch.size=96"],
    "ViT full": ["backbone.blocks=3", "batch.size=32"],
}


@pytest.mark.skipif(sys.platform != "linux", reason="Linux alone can begin its record anew")
@pytest.mark.parametrize("case", SMALLER)
def test_a_plan_tells_the_memory_of_a_real_run(case):
    told, measured = compared(case, SMALLER[case])
    assert told == pytest.approx(measured, rel=0.15)
