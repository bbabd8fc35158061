"""The memory that a plan tells of this machine, beside what a real run takes; real weights.

ViTs of a few blocks, which compile soon; ``benchmarks/plan_memory.py`` runs whole ones, and
SmolLM2 under LoRA, which takes 4.5 GB; it says what is measured.
"""

import subprocess
import sys

import pytest

from benchmarks.plan_memory import compared
from tests.assets import smollm2

SMALLER = {
    "ViT head": ["backbone.blocks=3", "batch.size=96"],
    "ViT full": ["backbone.blocks=3", "batch.size=32"],
}

# Prints the bytes that a process takes for a model, and those of its weights.
LOADED = """
import sys
import tunekit, tunekit.models.loading
from tunekit.models.cpu_memory import _resident_bytes
before = _resident_bytes()
model = tunekit.load_model(sys.argv[1])
print(_resident_bytes() - before, sum(v.value.nbytes for v in model.variables().values()))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="Linux alone can begin its record anew")
@pytest.mark.parametrize("case", SMALLER)
def test_a_plan_tells_the_memory_of_a_real_run(case):
    told, measured = compared(case, SMALLER[case])
    assert told == pytest.approx(measured, rel=0.15)


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's malloc alone can be told to")
def test_what_loading_took_for_itself_is_given_back():
    command = [sys.executable, "-c", LOADED, str(smollm2())]
    told = subprocess.run(command, capture_output=True, text=True, check=True)
    taken, weights = map(int, told.stdout.split())
    assert weights > 500e6
    # Three times as much lies there otherwise: the file, its tensors unpacked, and they by name.
    assert taken < 1.7 * weights
