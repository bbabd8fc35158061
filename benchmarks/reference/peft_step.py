"""The torch contestant of ``benchmarks/lora_step.py``; needs torch, transformers and peft.

    python benchmarks/reference/peft_step.py WORK

WORK is the folder that the benchmark prepares: model, batch.npy and factors.npz.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from pathlib import Path

import numpy as np
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

RANK, ALPHA, RATE = 8, 16, 1e-3
WARM_UP, STEPS = 3, 7


def main() -> None:
    """Prints the losses, the seconds of each step and the peak memory as JSON."""
    work = Path(sys.argv[1])
    torch.set_num_threads(os.cpu_count() or 1)
    base = AutoModelForCausalLM.from_pretrained(work / "model", dtype=torch.float32)
    factors = np.load(work / "factors.npz")
    targets = sorted({name.rsplit(".", 1)[-1] for name in factors.files})
    config = LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=targets, task_type="CAUSAL_LM")
    model = get_peft_model(base, config).train()
    for name in factors.files:
        layer = model.get_submodule(f"base_model.model.{name}")
        layer.lora_A["default"].weight.data.copy_(torch.from_numpy(factors[name].T))
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=RATE, weight_decay=0.0)
    batch = torch.from_numpy(np.load(work / "batch.npy")).long()

    losses, seconds = [], []
    for _ in range(WARM_UP + STEPS):
        since = time.perf_counter(), time.process_time()
        logits = model(input_ids=batch[:, :-1], use_cache=False).logits
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        seconds.append((time.perf_counter() - since[0], time.process_time() - since[1]))
    peak = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(json.dumps({"losses": losses, "seconds": seconds[WARM_UP:], "peak_bytes": peak}))


if __name__ == "__main__":
    main()
