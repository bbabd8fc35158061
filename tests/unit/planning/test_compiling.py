"""Steps compiled in a process of their own: what comes back, and what goes wrong."""

from __future__ import annotations

import importlib.util
import json
import math
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from tunekit.errors import RecipeError
from tunekit.planning import compiling, topology
from tunekit.planning.arithmetic import step_flops
from tunekit.planning.compiled import needed_bytes
from tunekit.planning.compiling import CompileError, compile_phases
from tunekit.planning.hardware import target
from tunekit.planning.shapes import planned
from tunekit.planning.topology import CompilerMissing, environment, require_compiler
from tunekit.recipe import Recipe


@pytest.fixture(scope="module")
def recipe() -> Recipe:
    return Recipe.load("vision/linear_probe")


def test_a_phase_compiled_for_this_machine_says_what_it_needs(recipe: Recipe) -> None:
    (phase,) = compile_phases(recipe, target("this"), examples=640, labels=10)
    run = planned(recipe, examples=640, labels=10)
    carried, frozen, *_ = run.programs().arguments(0)
    head = sum(math.prod(value.shape) * 4 for value in carried.trainable.values())
    assert phase.label == run.phases[0].label and phase.refusal is None
    assert phase.state["trained"] == head
    assert phase.state["frozen"] == sum(
        math.prod(v.shape) * np.dtype(v.dtype).itemsize for v in frozen.values()
    )
    assert head < phase.peak_bytes < 2**30
    assert phase.alias_bytes >= head
    assert phase.flops == step_flops(run, 0, "cpu")
    assert phase.collectives == []
    json.dumps(phase.to_json())


def test_a_mistake_in_the_recipe_is_told_as_here(recipe: Recipe) -> None:
    wrong = Recipe.load("vision/linear_probe", ["runtime.mesh={data: 5, fsdp: 3}"])
    with pytest.raises(RecipeError, match="runtime.mesh: data 5 x fsdp 3 x tensor 1 is not"):
        compile_phases(wrong, target("this"), examples=640, labels=10)


def _worker_that(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, does: str) -> None:
    """Another program in the worker's place: one that a crashing compiler would leave like it."""
    program = tmp_path / "python"
    program.write_text(f"#!{sys.executable}\nimport json, os, pathlib, sys, time\n{does}\n")
    program.chmod(0o755)
    monkeypatch.setattr(compiling.sys, "executable", str(program))


AT_PHASE_2 = (
    "folder = pathlib.Path(sys.argv[-1]); "
    'folder.joinpath("result.json").write_text(json.dumps({"phases": [], "at": "phase 2 (all)"}))'
)


def test_a_compiler_that_crashes_is_one_clear_error(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _worker_that(tmp_path, monkeypatch, f"{AT_PHASE_2}\nos.kill(os.getpid(), {signal.SIGSEGV})")
    expected = (
        r"CPU of this machine.* crashed \(SIGSEGV\) at phase 2 \(all\). What may help: exact="
    )
    with pytest.raises(CompileError, match=expected):
        compile_phases(recipe, target("this"))


def test_a_compiler_that_does_not_end_is_given_up(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _worker_that(tmp_path, monkeypatch, f"{AT_PHASE_2}\ntime.sleep(600)")
    with pytest.raises(CompileError, match="did not end within 1 s at phase 2"):
        compile_phases(recipe, target("this"), timeout_seconds=1)


def test_a_worker_that_fails_says_its_last_words(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _worker_that(tmp_path, monkeypatch, "sys.exit('no room on the disk')")
    with pytest.raises(CompileError, match="failed, its last words being: no room on the disk at"):
        compile_phases(recipe, target("this"))


CHILD = """
import time
from tunekit.planning.worker import end_with_parent
end_with_parent()
print("ready", flush=True)
time.sleep(600)
"""
PARENT = """
import subprocess, sys
child = subprocess.Popen([sys.executable, "-c", sys.argv[1]], stdout=subprocess.PIPE, text=True)
child.stdout.readline()
print(child.pid, flush=True)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process of the death")
def test_a_worker_does_not_outlive_the_process_that_asked() -> None:
    command = [sys.executable, "-c", PARENT, CHILD]
    child = int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    until = time.monotonic() + 60
    while time.monotonic() < until and not _is_gone(child):
        time.sleep(0.05)
    assert _is_gone(child)


def _is_gone(pid: int) -> bool:
    """Whether a process has ended, be it that nobody has asked for its status yet."""
    status = Path(f"/proc/{pid}/stat")
    return not status.exists() or status.read_text().rpartition(")")[2].split()[0] == "Z"


@pytest.mark.parametrize(
    ("name", "module", "extra"),
    [("v5e-8", "libtpu", "tpu-plan"), ("h100-4", "jax_cuda12_plugin", "gpu-plan")],
)
def test_a_missing_compiler_is_named_with_its_extra(
    recipe: Recipe, monkeypatch: pytest.MonkeyPatch, name: str, module: str, extra: str
) -> None:
    here = importlib.util.find_spec
    monkeypatch.setattr(
        topology.importlib.util, "find_spec", lambda asked: None if asked == module else here(asked)
    )
    with pytest.raises(CompilerMissing, match=rf"{module}: pip install 'tunekit\[{extra}\]'"):
        compile_phases(recipe, target(name))
    require_compiler(target("this"))


def test_a_worker_has_the_environment_that_its_compiler_reads() -> None:
    here = {"PATH": "/bin", "XLA_FLAGS": "--xla_force_host_platform_device_count=8 --xla_dump_to=x"}
    tpu, gpu, this = (environment(target(n), here) for n in ("v6e-4", "h100-1", "this"))
    assert tpu["JAX_PLATFORMS"] == gpu["JAX_PLATFORMS"] == "cpu"
    assert tpu["JAX_OPTIMIZATION_LEVEL"] == "O0" and "JAX_OPTIMIZATION_LEVEL" not in gpu
    assert tpu["XLA_FLAGS"] == "--xla_dump_to=x"
    assert gpu["XLA_FLAGS"].split() == ["--xla_dump_to=x", "--xla_gpu_enable_triton_gemm=false"]
    assert this["XLA_FLAGS"] == here["XLA_FLAGS"] and "JAX_PLATFORMS" not in this
    assert {s["JAX_ENABLE_COMPILATION_CACHE"] for s in (tpu, gpu, this)} == {"false"}


@pytest.mark.parametrize(
    ("message", "gib"),
    [
        (
            "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO "
            "temporaries (21.30G) exceeds available HBM (15.75G).",
            21.30,
        ),
        (
            "RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory "
            "space hbm. Used 34.33G of 15.75G hbm. Exceeded hbm capacity by 18.58G.",
            34.33,
        ),
    ],
)
def test_a_refusal_says_how_much_is_needed(message: str, gib: float) -> None:
    assert needed_bytes(message) == int(gib * 2**30)


@pytest.mark.parametrize(
    "message", ["INTERNAL: Used 34.33G of 15.75G hbm", "RESOURCE_EXHAUSTED: too many threads"]
)
def test_another_error_is_no_refusal(message: str) -> None:
    assert needed_bytes(message) is None
