"""Memory while a large JSONL file is read in shuffled order, and trained on: flat within 5 %.

    python -m benchmarks.streaming [--gigabytes 1] [--examples 200000] [--seconds 120] [--steps 300]

Rows are written to a temporary folder, opened (each is checked once), and read by index as training
reads them; then MiniLM trains on them through `tunekit.finetune`. The resident memory of the
process is that of Python, of the network and of the index, 64 bytes a row, not that of the file.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from examples.fetched import minilm
from tunekit import session
from tunekit.data.pipeline import Batches
from tunekit.data.spec import DataSpec
from tunekit.data.text_source import open_text
from tunekit.training.progress import PlainReporter

WORDS, BATCH, WARM_UP = 5_000, 64, 0.2
TRAINING_BATCH = 16


def main() -> None:
    """Prints sizes, times and resident memory; exits with 1 where memory grows by over 5 %."""
    arguments = _arguments()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "reviews.jsonl"
        since = time.perf_counter()
        rows = write_rows(path, int(arguments.gigabytes * 1e9))
        size = path.stat().st_size
        print(
            f"{rows:,} rows, {size / 1e6:,.0f} MB, written in {time.perf_counter() - since:.0f} s"
        )
        since, before = time.perf_counter(), resident()
        source = open_text(path, DataSpec(validation_fraction=0.01), "labelled", seed=0).train
        print(
            f"opened and checked in {time.perf_counter() - since:.0f} s; resident memory "
            f"{before / 1e6:,.0f} MB before, {resident() / 1e6:,.0f} MB after"
        )
        warm, end, count, seconds = read_shuffled(source, arguments.examples, arguments.seconds)
        print(f"{count:,} examples read in shuffled order, {count / seconds:,.0f} a second")
        grew = _told(warm, end)
        if arguments.steps:
            source = open_text(path, DataSpec(validation_fraction=0), "labelled", seed=0).train
            warm, end = trained(source, arguments.steps)
            print(f"{arguments.steps:,} steps of {TRAINING_BATCH} texts trained")
            grew |= _told(warm, end)
    sys.exit(grew)


def _told(warm: int, end: int) -> bool:
    print(
        f"resident memory {warm / 1e6:,.1f} MB after warm-up, {end / 1e6:,.1f} MB at the end: "
        f"ratio {end / warm:.3f}"
    )
    return end > 1.05 * warm


def write_rows(path: Path, total: int) -> int:
    """Writes labelled rows of 10 to 300 words, `total` bytes in all; returns how many."""
    rng = np.random.default_rng(0)
    letters = np.array(list("etaoinshrdlucmfwypvbgkqjxzéü"))
    words = ["".join(rng.choice(letters, size)) for size in rng.integers(1, 12, WORDS)]
    count = written = 0
    with path.open("w", encoding="utf-8") as file:
        while written < total:
            chosen = rng.integers(0, WORDS, rng.integers(10, 300))
            text = " ".join([words[i] for i in chosen])
            row = {"id": count, "text": text, "stars": int(rng.integers(1, 6))}
            written += file.write(json.dumps(row) + "\n")
            count += 1
    return count


def read_shuffled(source, examples: int, seconds: float) -> tuple[int, int, int, float]:
    """Returns resident bytes after warm-up and at the end, examples read, and seconds for those."""

    def encode(example, rng):
        return {"length": np.int32(len(example["text"])), "label": np.int32(example["label"])}

    batches = Batches(source, encode, BATCH, seed=0, shuffle=True, workers=2)
    steps = min(examples // BATCH, batches.steps_per_epoch)
    warm, step, since = 0, 0, time.perf_counter()
    stream = batches.epoch(0)
    for step in range(1, steps + 1):
        next(stream)
        elapsed = time.perf_counter() - since
        if not warm and (step >= WARM_UP * steps or elapsed >= WARM_UP * seconds):
            warm = resident()
        if elapsed >= seconds:
            break
    return warm, resident(), step * BATCH, time.perf_counter() - since


def trained(source, steps: int) -> tuple[int, int]:
    """Returns resident bytes after the first fifth of the steps, and at the last one."""
    import tunekit

    read: list[int] = []

    class Watched(PlainReporter):
        def step(self, **told) -> None:
            read.append(resident())

    session.reporter = lambda mode: Watched(sys.stdout)
    tunekit.finetune(
        minilm(),
        {"train": source},
        task="text_classification",
        method="head",
        max_length=64,
        batch_size=TRAINING_BATCH,
        validation=0.0,
        plan=tunekit.Phase(steps=steps, learning_rate=1e-3),
        progress="plain",
    )
    return read[int(WARM_UP * len(read))], read[-1]


def resident() -> int:
    """Returns the bytes of physical memory that the process holds (Linux)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("VmRSS"))) * 1024


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gigabytes", type=float, default=1.0)
    parser.add_argument("--examples", type=int, default=200_000)
    parser.add_argument("--seconds", type=float, default=120.0)
    parser.add_argument("--steps", type=int, default=300, help="of training; 0 trains nothing")
    return parser.parse_args()


if __name__ == "__main__":
    main()
