"""From text to token ids and back, by the tokenizer that came with the weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, eq=False)
class Tokenizer:
    """A model's own tokenizer, with what its files say of special tokens and dialogues."""

    files: Mapping[str, str]
    """Contents of tokenizer.json, tokenizer_config.json… by name: all that it is made of."""
