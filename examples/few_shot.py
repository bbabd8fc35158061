"""A classifier from eight tweets a mood: contrastive pairs, then a head (SetFit).

    python -m examples.few_shot  # from the root of the repository

Pairs of the same mood are drawn together and others pushed apart; a logistic regression on the
vectors is the head.
"""

from __future__ import annotations

import tunekit
from examples.corpora import tweets
from examples.fetched import minilm


def main() -> None:
    """Trains on 24 tweets and prints the accuracy on 300."""
    data = tweets(train=8, test=100)
    result = tunekit.finetune(
        minilm(),
        data / "train.jsonl",
        validation=data / "test.jsonl",
        task=tunekit.EmbeddingSpec(contrast="labels", pairs_per_text=20),
        epochs=1,
        learning_rate=2e-5,
        batch_size=16,
        max_length=64,
    )
    print(f"accuracy {result.metrics['accuracy']:.3f} from 24 tweets")
    print(result.predict(["What a lovely day!"])[0])


if __name__ == "__main__":
    main()
