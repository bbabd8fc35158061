"""Trains small networks as one of several processes, or alone; the first writes what came of it.

A process of its own each: which processes there are is settled when JAX starts.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from tests.contract.families import images, vit
from tests.contract.text_families import WORDS
from tunekit import LoRA, OptimizerSpec, finetune
from tunekit.distributed import initialise, is_first, process_count
from tunekit.result import Result

EXAMPLES, BATCH = 11, 4
"""Three batches a pass, the last with three rows that count: in two processes two and one."""
LORA = LoRA(rank=4, targets="linear")
CASES = ("vit_full", "llama_lora_packed")


def dialogues(folder: Path) -> Path:
    """Writes prompts and answers, some of which need a longer batch than the others."""
    lengths = [4 + 31 * (i % 4 == 1) for i in range(EXAMPLES)]
    rows = [
        {
            "prompt": f"what is {WORDS[i % len(WORDS)]}",
            "response": " ".join(WORDS[(7 * i + 3 * j) % len(WORDS)] for j in range(length)),
        }
        for i, length in enumerate(lengths)
    ]
    path = folder / "dialogues.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def seeded_vit() -> Any:
    """Returns the same network in every process."""
    import keras

    keras.utils.set_random_seed(0)
    return vit()


def finished(case: str, folder: Path, **changes: Any) -> Result:
    """Returns the result of two passes, evaluated after each."""
    keywords: dict[str, Any] = {
        "method": LORA if "lora" in case else "full",
        "epochs": 2,
        "learning_rate": 1e-3,
        "optimizer": OptimizerSpec(ema=0.9),
        "batch_size": BATCH,
        "seed": 3,
        "progress": "plain",
        **changes,
    }
    if case.startswith("vit"):
        return finetune(seeded_vit(), images(EXAMPLES), validation=images(5, seed=1), **keywords)
    return finetune(
        folder / "llama",
        folder / "dialogues.jsonl",
        task="sft",
        max_length=64,
        packing="packed" in case,
        validation=0.25,
        **keywords,
    )


def main(folder: Path, cases: list[str]) -> None:
    """Runs the cases, and writes losses, metrics and values of each into the folder."""
    for case in cases:
        result = finished(case, folder)
        if is_first():
            values = result.model.forward().values()
            np.savez(
                folder / f"{case}-{process_count()}.npz",
                losses=[row["loss"] for row in result.history],
                val_losses=[row["val_loss"] for row in result.history],
                loss=result.metrics["loss"],
                **{name: np.asarray(value) for name, value in values.items()},
            )
            print(case, json.dumps(result.history), flush=True)


if __name__ == "__main__":
    place, where, *asked = sys.argv[1:]
    if place != "alone":
        address, count, index = place.split(",")
        initialise(address, int(count), int(index), wait_seconds=60)
    main(Path(where), asked)
