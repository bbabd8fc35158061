"""Perplexity: how likely held-out tokens are to a language model."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from tunekit.data.examples import Source
from tunekit.errors import DataError, ModelError
from tunekit.tasks.language_modelling import LanguageModelling
from tunekit.tasks.likelihood import perplexity
from tunekit.tasks.text_task import Outputs


def evaluate(
    task: LanguageModelling,
    source: Source,
    batches: Iterable[Mapping[str, Any]],
    outputs: Outputs,
) -> dict[str, Any]:
    """Returns loss, perplexity, bits_per_token, tokens, examples and examples_without_loss.

    The loss is the mean over all tokens that count, of all examples at once: a long response
    weighs more than a short one, as it does in training.

    Args:
        task: whose tokens count.
        source: the examples.
        batches: of them, each once; rows of weight 0 are padding.
        outputs: the loss of each token, [B, T], of a batch's inputs.

    Raises:
        DataError: there is no example, or none has a token that counts.
        ModelError: the loss is not finite.
    """
    total, tokens, examples, without = 0.0, 0, 0, 0
    for batch in batches:
        real = np.asarray(batch["weight"]) > 0
        weights = np.asarray(batch["loss_weights"])[real]
        losses = np.asarray(outputs(task.inputs(batch)), np.float64)[real]
        total += float(losses[weights > 0].sum())
        tokens += int(weights.sum())
        examples += int(real.sum())
        without += int((weights.sum(axis=1) == 0).sum())
    if not examples:
        raise DataError("expected at least one example to evaluate on, got none")
    if not tokens:
        raise DataError(
            f"expected tokens to learn, and none of the {examples} examples, such as "
            f"{source[0]['id']}, has one: prompts fill all of batch.max_length. Raise it, or "
            "shorten the prompts."
        )
    if not math.isfinite(total):
        raise ModelError(
            "the loss is not finite: the weights have diverged. Train again with a lower learning "
            "rate, or with clip_norm."
        )
    loss = total / tokens
    return {
        "loss": loss,
        "perplexity": perplexity(loss),
        "bits_per_token": loss / math.log(2),
        "tokens": tokens,
        "examples": examples,
        "examples_without_loss": without,
    }
