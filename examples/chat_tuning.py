"""A language model learns to answer, by LoRA, and its answers stand beside the base's.

    python -m examples.chat_tuning [FOLDER]  # from the root of the repository

SmolLM2-135M-Instruct reads prompts and responses of the ChatterBot corpus. The model is saved in
FOLDER (``chat_out``); talk with it by ``tunekit chat FOLDER``.
"""

from __future__ import annotations

import sys

import tunekit
from examples.fetched import chatterbot, smollm2


def main() -> None:
    """Trains, prints base and tuned side by side, and saves the result."""
    data = chatterbot()
    result = tunekit.finetune(
        smollm2(),
        data / "train.jsonl",
        validation=data / "test.jsonl",
        task=tunekit.LanguageModellingSpec(samples=16, max_new_tokens=32),
        method="lora",
        epochs=1,
        learning_rate=5e-4,
        warmup="10%",
        batch_size=8,
        max_length=128,
    )
    tuned, base = result.metrics, result.metrics["base"]
    for name in ("perplexity", "bleu", "chrf", "rougeL"):
        print(f"{name:10}  base {base[name]:6.2f}  tuned {tuned[name]:6.2f}")
    for row in result.report["samples"][:3]:
        print(f"\n{row['prompt']}\n  base   {row['base']}\n  tuned  {row['tuned']}")
    print(f"\nsaved in {result.save(sys.argv[1] if len(sys.argv) > 1 else 'chat_out')}")


if __name__ == "__main__":
    main()
