"""The torch contestant of ``benchmarks/generation.py``; needs torch and transformers.

    python benchmarks/reference/generate_tokens.py WORK

WORK is the folder that the benchmark prepares: model and prompts.npy.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import time
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForCausalLM

PROMPT, NEW, BATCHES, REPEATS = 448, 96, (1, 4), 3


def main() -> None:
    """Prints seconds to read and to write, and the tokens, for each batch, as JSON."""
    work = Path(sys.argv[1])
    torch.set_num_threads(os.cpu_count() or 1)
    model = AutoModelForCausalLM.from_pretrained(work / "model", dtype=torch.float32).eval()
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 0
    prompts = torch.from_numpy(np.load(work / "prompts.npy"))

    def write(batch: torch.Tensor, new: int) -> list[list[int]]:
        mask = torch.ones_like(batch)
        found = model.generate(batch, attention_mask=mask, max_new_tokens=new, do_sample=False)
        return found[:, PROMPT:].tolist()

    found = []
    for count in BATCHES:
        batch, since = prompts[:count], time.perf_counter()
        tokens = write(batch, NEW + 1)
        first = time.perf_counter() - since
        reads, wholes = [], []
        for _ in range(REPEATS):
            for seconds, new in ((reads, 1), (wholes, NEW + 1)):
                since = time.perf_counter()
                write(batch, new)
                seconds.append(time.perf_counter() - since)
        read, whole = statistics.median(reads), statistics.median(wholes)
        found.append({"first": first, "read": read, "write": whole - read, "tokens": tokens})
    print(json.dumps(found))


if __name__ == "__main__":
    main()
