"""Moods of tweets, three ways: a head alone, LoRA, and the whole encoder.

    python -m examples.text_classification  # from the root of the repository

MiniLM reads 6,000 tweets, each negative, neutral or positive, and is judged by 1,800 others.
"""

from __future__ import annotations

import tunekit
from examples.corpora import tweets
from examples.fetched import minilm

RATES = {"head": 1e-2, "lora": 2e-3, "full": 2e-4}


def main() -> None:
    """Trains each way, prints its accuracy, and lets the last model read two new texts."""
    data = tweets()
    for method, rate in RATES.items():
        result = tunekit.finetune(
            minilm(),
            data / "train.jsonl",
            validation=data / "test.jsonl",
            method=method,
            epochs=3,
            learning_rate=rate,
            warmup="10%",
            max_length=64,
        )
        print(f"{method}: accuracy {result.metrics['accuracy']:.3f}")
    for prediction in result.predict(["What a lovely day!", "My bag is lost again."]):
        print(prediction)


if __name__ == "__main__":
    main()
