"""A class for each word: noun, verb, adjective…, learned from the Brown corpus.

    python -m examples.pos_tagging  # from the root of the repository

MiniLM reads 3,000 sentences, and is judged by 600 of documents that it has not seen.
"""

from __future__ import annotations

import tunekit
from examples.corpora import brown
from examples.fetched import minilm


def main() -> None:
    """Trains, prints the accuracy over words, and tags a sentence."""
    data = brown()
    result = tunekit.finetune(
        minilm(),
        data / "train.jsonl",
        validation=data / "test.jsonl",
        epochs=3,
        learning_rate=3e-4,
        warmup="10%",
        max_length=96,
    )
    print(f"accuracy {result.metrics['accuracy']:.3f} of {result.metrics['words']:,} words")
    print(result.predict([["They", "can", "fish", "."]])[0])


if __name__ == "__main__":
    main()
