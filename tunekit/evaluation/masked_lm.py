"""How well a model finds hidden tokens."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from tunekit.errors import DataError
from tunekit.tasks.likelihood import perplexity
from tunekit.tasks.masked_lm import MaskedLM
from tunekit.tasks.text_task import Outputs


def evaluate(
    task: MaskedLM, source: Any, batches: Iterable[Mapping[str, np.ndarray]], outputs: Outputs
) -> dict[str, Any]:
    """Returns loss, pseudo_perplexity, tokens (that were to be found) and examples.

    pseudo_perplexity is exp of the loss: among how many tokens the model seemed to choose for a
    hidden one. It is not comparable to the perplexity of a model that reads from left to right.

    Args:
        task: what hid the tokens.
        source: of the batches.
        batches: in which always the same tokens are hidden.
        outputs: the loss of each token of a batch's inputs, [B, T].

    Raises:
        DataError: there is no token to be found.
    """
    total, tokens, examples = 0.0, 0.0, 0
    for batch in batches:
        losses = np.asarray(outputs(task.inputs(batch)), np.float64)
        weights = np.asarray(batch["loss_weights"], np.float64)
        total += float((np.where(weights > 0, losses, 0) * weights).sum())
        tokens += float(weights.sum())
        examples += int((np.asarray(batch["weight"]) > 0).sum())
    if not tokens:
        raise DataError("expected at least one text with a token to hide to evaluate on, got none")
    loss = total / tokens
    return {
        "loss": loss,
        "pseudo_perplexity": perplexity(loss),
        "tokens": int(tokens),
        "examples": examples,
    }
