"""How likely texts are to a language model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from tunekit.errors import DataError
from tunekit.tasks.text_items import Items, opening


@dataclass(frozen=True)
class Likelihood:
    """How likely a model finds one text, or the responses of one dialogue."""

    id: str
    loss: float | None
    """-log p, mean over the tokens that count; None where there are none."""
    tokens: int

    @property
    def perplexity(self) -> float | None:
        """E to the loss: among how many tokens the model seemed to choose."""
        return None if self.loss is None else perplexity(self.loss)

    def __str__(self) -> str:
        """Returns one line."""
        if self.perplexity is None:
            return f"{self.id}: no token to judge"
        return f"{self.id}: perplexity {self.perplexity:.2f} over {self.tokens} tokens"

    def to_json(self) -> dict[str, Any]:
        """Returns the likelihood in JSON's types."""
        return {**asdict(self), "perplexity": self.perplexity}


def perplexity(loss: float) -> float:
    """Returns e to the loss, the largest float where that is too large for one."""
    return float(np.exp(min(loss, np.log(np.finfo(np.float64).max))))


def likelihood(name: str, losses: np.ndarray, weights: np.ndarray) -> Likelihood:
    """Returns how likely one text is, by the loss and the weight of each token, [T]."""
    tokens = int(weights.sum())
    total = np.where(weights > 0, losses, 0.0).sum(dtype=np.float64)
    return Likelihood(name, float(total) / tokens if tokens else None, tokens)


def dialogue_items(items: Any) -> Items:
    """Returns texts, lists of messages or examples, one or several, as examples with names.

    Raises:
        DataError: an item is none of these.
    """
    examples = tuple(_example(item, place) for place, item in enumerate(_listed(items)))
    sizes = [len(str(each.get("text") or each["messages"])) for each in examples]
    return Items(examples, np.asarray(sizes, np.int64))


def _listed(items: Any) -> list[Any]:
    if isinstance(items, str | Mapping):
        return [items]
    items = list(items)
    return [items] if items and _is_message(items[0]) else items


def _example(item: Any, place: int) -> dict[str, Any]:
    if isinstance(item, str):
        return {"id": opening(item), "text": item}
    if isinstance(item, Mapping) and ("messages" in item or "text" in item):
        return {"id": f"item {place}", **item}
    if isinstance(item, list | tuple) and item and all(map(_is_message, item)):
        return {"id": opening(str(item[-1]["content"])), "messages": list(item)}
    raise DataError(
        f"items[{place}]: expected a text, a list of messages {{'role': …, 'content': …}}, or an "
        f"example with 'text' or 'messages', got {item!r:.80}."
    )


def _is_message(item: Any) -> bool:
    return isinstance(item, Mapping) and "role" in item and "content" in item
