"""Writes generation.json: what transformers generates, and what its logits processors give.

    python -m tests.reference.make_generation_references

Needs torch, transformers 5 and gguf; transformers reads SmolLM2-135M-Instruct's GGUF file itself.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from tests.assets import smollm2

EXPECTED = Path(__file__).parent / "generation.json"
TOKENS = 32
DIALOGUES: tuple[tuple[tuple[str, str], ...], ...] = (
    (("user", "Name three primary colours."),),
    (("user", "Write a Python function that reverses a string."),),
    (("system", "You answer in one short sentence."), ("user", "Why is the sky blue?")),
    (
        ("user", "My name is Ada."),
        ("assistant", "Hello Ada, how can I help you?"),
        ("user", "What is my name, and what is 7 times 6?"),
    ),
    (("user", "Traduis « où est la gare ? » en anglais, puis en japonais 🚉."),),
    (("user", "Summarise: " + "The ferry left the harbour before the fog had lifted. " * 6),),
)
"""Each a list of (role, content)."""
SAMPLERS: tuple[dict[str, float | int], ...] = (
    {"temperature": 0.7},
    {"temperature": 1.0, "top_k": 5},
    {"temperature": 1.0, "top_p": 0.6},
    {"temperature": 1.0, "min_p": 0.2},
    {"temperature": 1.0, "repetition_penalty": 1.3},
    {
        "temperature": 1.7,
        "top_k": 12,
        "top_p": 0.8,
        "min_p": 0.05,
        "repetition_penalty": 1.2,
    },
)
"""Arguments of `Sampling`."""


def logits_and_texts() -> tuple[np.ndarray, np.ndarray]:
    """Logits float32 [4, 30], and the tokens int64 [4, 6] that came before."""
    rng = np.random.default_rng(7)
    logits = (3 * rng.standard_normal((4, 30))).astype(np.float32)
    return logits, rng.integers(0, 30, (4, 6))


def processed(sampler: dict[str, float | int]) -> list[list[float]]:
    """Log-probabilities after the processors, in the order in which transformers runs them."""
    import torch
    from transformers.generation import logits_process as steps

    logits, texts = (torch.tensor(x) for x in logits_and_texts())
    order: list[tuple[str, Any]] = [
        ("repetition_penalty", steps.RepetitionPenaltyLogitsProcessor),
        ("temperature", steps.TemperatureLogitsWarper),
        ("top_k", steps.TopKLogitsWarper),
        ("top_p", steps.TopPLogitsWarper),
        ("min_p", steps.MinPLogitsWarper),
    ]
    for name, step in order:
        if name in sampler:
            logits = step(sampler[name])(texts, logits)
    return torch.log_softmax(logits, -1).tolist()


def generated() -> list[dict[str, list[int]]]:
    """The token ids of each dialogue, and the likeliest ones to follow, end of turn or not."""
    import torch
    import transformers

    path = smollm2()
    read: dict[str, Any] = {"gguf_file": path.name, "dtype": torch.float32}
    tokenizer = transformers.AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    model = transformers.AutoModelForCausalLM.from_pretrained(path.parent, **read).eval()
    rows = []
    for dialogue in DIALOGUES:
        messages = [{"role": role, "content": content} for role, content in dialogue]
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        prompt = tokenizer(text, add_special_tokens=False).input_ids
        options: dict[str, Any] = {"do_sample": False, "eos_token_id": -1, "pad_token_id": 0}
        row = model.generate(torch.tensor([prompt]), max_new_tokens=TOKENS, **options)[0].tolist()
        rows.append({"prompt": prompt, "new": row[len(prompt) :]})
        print(repr(tokenizer.decode(row)))
    return rows


def main() -> None:
    """Writes the file."""
    found = {"smollm2": generated(), "processed": [processed(sampler) for sampler in SAMPLERS]}
    # JSON has no infinity.
    text = json.dumps(found).replace("-Infinity", "null")
    EXPECTED.write_text(text.replace("]], ", "]],\n") + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
