"""From texts to columns, and from Python values to what a task predicts on."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tunekit.data.sequences import SequenceBatches, buckets
from tunekit.errors import DataError
from tunekit.models.tokenizing import Tokenizer
from tunekit.tasks.text_task import Outputs, TextTask

Text = str | tuple[str, str]

_INPUTS = ("token_ids", "padding_mask", "token_types", "positions", "documents")
"""The last two where several texts share a row."""


@dataclass(frozen=True)
class Items:
    """Examples to predict on, without labels; a source of batches."""

    examples: tuple[dict[str, Any], ...]
    sizes: np.ndarray
    """How long each is, in any unit: int64 [N]."""

    def __len__(self) -> int:
        """Returns the number of examples."""
        return len(self.examples)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Returns one example."""
        return self.examples[index]

    def name(self, index: int) -> str:
        """Returns what a message calls the example."""
        return self.examples[index]["id"]


def text_items(items: Sequence[Any], *, pairs: bool) -> Items:
    """Returns texts, or pairs of texts, as examples to predict on.

    Args:
        items: a text each, or two; one text may come without a list.
        pairs: whether the task is of pairs.

    Raises:
        DataError: an item is none of these, or empty.
    """
    items = [items] if isinstance(items, str) else list(items)
    expected = "a pair of texts, (text, text)" if pairs else "a text"
    for place, item in enumerate(items):
        texts = item if pairs else [item]
        right = isinstance(texts, tuple | list) and len(texts) == 1 + pairs
        if not right or not all(isinstance(text, str) for text in texts):
            raise DataError(f"items[{place}]: expected {expected}, got {item!r:.80}.")
        if not all(text.strip() for text in texts):
            raise DataError(f"items[{place}]: expected {expected}, got an empty one.")
    texts = [tuple(item) if pairs else item for item in items]
    examples = tuple({"id": opening(text), "text": text} for text in texts)
    sizes = [len(text) if isinstance(text, str) else sum(map(len, text)) for text in texts]
    return Items(examples, np.asarray(sizes, np.int64))


def opening(text: Text) -> str:
    """Returns how a text, or each of two, begins: what a prediction is called."""
    texts = (text,) if isinstance(text, str) else text
    return " / ".join(textwrap.shorten(one, 60, placeholder="…") for one in texts)


def outputs_of(
    task: TextTask,
    items: Any,
    tokenizer: Tokenizer,
    max_length: int,
    outputs: Outputs,
    batch_size: int,
) -> Iterator[tuple[int, dict[str, np.ndarray], np.ndarray]]:
    """Yields (place among the items, columns, outputs) of each, in any order.

    Texts of similar length share batches, each padded to one of few lengths.
    """
    if not len(items):
        return
    batches = SequenceBatches(
        items,
        task.encoder(tokenizer, max_length),
        batch_size=min(batch_size, len(items)),
        seed=0,
        shuffle=False,
        buckets=buckets(max_length),
        pad_id=tokenizer.pad_id,
    )
    for batch in batches.epoch(0):
        for columns, row in real_rows(batch, outputs(task.inputs(batch))):
            yield int(columns["index"]), columns, row


def real_rows(
    batch: Mapping[str, np.ndarray], outputs: np.ndarray
) -> Iterator[tuple[dict[str, np.ndarray], np.ndarray]]:
    """Yields (columns, outputs) of each row of a batch that is no padding."""
    rows = np.asarray(outputs)
    for row in np.flatnonzero(np.asarray(batch["weight"]) > 0):
        yield {name: column[row] for name, column in batch.items()}, rows[row]


def text_inputs(batch: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what a model of tokens takes of a batch."""
    return {name: batch[name] for name in _INPUTS if name in batch}


def text_columns(tokenizer: Tokenizer, text: Text, max_length: int) -> dict[str, np.ndarray]:
    """Returns "token_ids" int32 [T] of at most `max_length`; of a pair also "token_types"."""
    if isinstance(text, str):
        return {"token_ids": tokenizer.encode(text, max_length=max_length).ids}
    encoded = tokenizer.encode(text[0], text[1], max_length=max_length)
    return {"token_ids": encoded.ids, "token_types": encoded.types}
