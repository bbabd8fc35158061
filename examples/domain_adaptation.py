"""An encoder learns the language of tweets, without labels, by finding hidden words.

    python -m examples.domain_adaptation  # from the root of the repository

What it learns is kept in a folder, which `finetune` takes as its model.
"""

from __future__ import annotations

import json
from pathlib import Path

import tunekit
from examples.corpora import tweets
from examples.fetched import minilm


def texts(path: Path) -> list[str]:
    """Returns the texts of a .jsonl, without their labels."""
    return [json.loads(line)["text"] for line in path.read_text(encoding="utf-8").splitlines()]


def main() -> None:
    """Trains for an epoch, and prints among how many words the model still hesitates."""
    data = tweets()
    result = tunekit.finetune(
        minilm(),
        texts(data / "train.jsonl"),
        validation=texts(data / "test.jsonl"),
        task="masked_lm",
        epochs=1,
        learning_rate=1e-4,
        warmup="10%",
        max_length=64,
    )
    print(f"pseudo-perplexity {result.metrics['pseudo_perplexity']:.1f}")
    result.save("adapted")


if __name__ == "__main__":
    main()
