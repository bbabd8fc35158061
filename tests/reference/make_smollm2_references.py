"""Writes smollm2.npz: what transformers and PEFT compute with the real SmolLM2-135M-Instruct.

The adapter that PEFT is asked about is written by tunekit, in its own environment, beforehand:

    KERAS_BACKEND=jax python -m tests.reference.make_smollm2_references adapter
    python -m tests.reference.make_smollm2_references

The second needs torch, transformers 5, peft and gguf; transformers reads the GGUF file itself.
"""

from __future__ import annotations

import dataclasses
import shutil
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from tests.assets import smollm2

HERE = Path(__file__).parent
EXPECTED, ADAPTER = HERE / "smollm2.npz", HERE / "smollm2_adapter"
PROMPTS = (
    "The old lighthouse keeper climbed the stairs every evening because",
    "def area(width, height):\n    return",
    "<|im_start|>user\nName three primary colours.<|im_end|>\n<|im_start|>assistant\n",
)
GREEDY = 8
"""Tokens that follow each prompt; the ids in the file hold them already."""
SAMPLED = 61
"""Of the vocabulary's logits, evenly spread; the likeliest are kept as well."""
LIKELIEST = 8


def answers(model: Any, ids: np.ndarray, mask: np.ndarray) -> dict[str, np.ndarray]:
    """Logits of some of the vocabulary [B, T, .], and the norms of hidden states [B, T]."""
    import torch

    inputs = {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(mask)}
    with torch.no_grad():
        found = model(**inputs, output_hidden_states=True)
    logits, hidden = found.logits.numpy(), found.hidden_states[-1].numpy()
    likeliest = np.argsort(-logits, axis=-1)[..., :LIKELIEST].astype(np.int32)
    return {
        "likeliest": likeliest,
        "top_logits": np.take_along_axis(logits, likeliest, axis=-1),
        "logits": logits[..., :: logits.shape[-1] // SAMPLED],
        "hidden_norms": np.linalg.norm(hidden, axis=-1),
    }


def main() -> None:
    """Writes the answers of transformers, and of PEFT with the adapter."""
    import peft
    import torch
    import transformers

    path = smollm2()
    read: dict[str, Any] = {"gguf_file": path.name, "dtype": torch.float32}
    tokenizer = transformers.AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    base = transformers.AutoModelForCausalLM.from_pretrained(path.parent, **read).eval()
    prompts = [tokenizer(text).input_ids for text in PROMPTS]
    rows = []
    for prompt in prompts:
        given = torch.tensor([prompt])
        options: dict[str, Any] = {"do_sample": False, "eos_token_id": -1, "pad_token_id": 0}
        rows.append(base.generate(given, max_new_tokens=GREEDY, **options)[0].tolist())
    length = max(map(len, rows))
    ids = np.array([row + [0] * (length - len(row)) for row in rows], np.int32)
    mask = np.array([[1] * len(row) + [0] * (length - len(row)) for row in rows], np.int32)
    expected = {"ids": ids, "mask": mask, "prompt_lengths": np.array([*map(len, prompts)])}
    expected |= {f"base/{name}": value for name, value in answers(base, ids, mask).items()}
    with warnings.catch_warnings():
        # PEFT warns of a tensor that it has no place for, and goes on.
        warnings.filterwarnings("error", message=".*adapter keys.*")
        adapted = peft.PeftModel.from_pretrained(base, str(ADAPTER)).eval()
    expected |= {f"adapter/{name}": value for name, value in answers(adapted, ids, mask).items()}
    moved = np.abs(expected["adapter/logits"] - expected["base/logits"]).max()
    print(tokenizer.batch_decode(rows), f"the adapter moved logits by up to {moved:.2f}")
    np.savez_compressed(EXPECTED, **expected)


def write_adapter() -> None:
    """Writes the adapter: a DoRA with rsLoRA's scale, and PEFT's two files alone of it."""
    from tests.real.test_smollm2 import PEFT_SPEC, drawn_adapter
    from tunekit.models.loading import load_model

    model = load_model(smollm2())
    model.backbone = dataclasses.replace(model.backbone, source="SmolLM2-135M-Instruct")
    drawn_adapter(model, "drawn", PEFT_SPEC)
    ADAPTER.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        whole = model.save_adapter(Path(scratch) / "drawn")
        for name in ("adapter_config.json", "adapter_model.safetensors"):
            shutil.copyfile(whole / name, ADAPTER / name)


if __name__ == "__main__":
    write_adapter() if sys.argv[1:] == ["adapter"] else main()
