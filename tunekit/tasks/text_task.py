"""What every task of texts is to the run: examples to columns, outputs to a loss."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal, Protocol

import jax
import numpy as np

from tunekit.data.examples import Source
from tunekit.data.pipeline import Encode
from tunekit.data.text_kinds import TextKind
from tunekit.models.tokenizing import Tokenizer

Stands = Literal["text", "token", "language", "none"]
Outputs = Callable[[Mapping[str, np.ndarray]], np.ndarray]
"""From the inputs of a batch to the model's outputs, in inference mode."""


class TextTask(Protocol):
    """A frozen dataclass of plain values, bound to the training data; JSON can hold its fields.

    Batches have "token_ids" and "padding_mask" int32 [B, T], "weight" float32 [B] (0 on padded
    rows), "index" int32 [B], and the task's own columns.
    """

    @property
    def kind(self) -> TextKind:
        """What its examples are."""
        ...

    @property
    def label_names(self) -> tuple[str, ...]:
        """Labels in the order of the logits; empty for tasks without a head of their own."""
        ...

    @property
    def multi_label(self) -> bool:
        """Whether any number of labels may hold at once."""
        ...

    @property
    def stands_on(self) -> Stands:
        """What the head gives logits for: each text, each token; or the language head; or none."""
        ...

    @property
    def monitor(self) -> str:
        """The metric that says which weights are best."""
        ...

    def prepared(
        self, source: Source, tokenizer: Tokenizer, max_length: int, *, training: bool, seed: int
    ) -> Source:
        """Returns what batches are made of: the source itself, or windows or pairs of it."""
        ...

    def encoder(self, tokenizer: Tokenizer, max_length: int) -> Encode:
        """Returns what turns one example into columns; sequences are arrays [T] of any length."""
        ...

    def augment_batch(self, key: jax.Array, batch: Mapping[str, jax.Array]) -> Any:
        """Returns the batch as the loss takes it; traced."""
        ...

    def inputs(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Returns what the model takes: token ids, padding mask and what else it can be told."""
        ...

    def loss(self, outputs: Any, batch: Mapping[str, jax.Array], /) -> tuple[jax.Array, jax.Array]:
        """Returns the summed loss and the summed weight; traced."""
        ...
