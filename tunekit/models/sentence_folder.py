"""What a folder of sentence-transformers says of how a text becomes one vector."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

from tunekit.models.torch_weights import read_json

SentencePooling = Literal["avg", "token", "max", "last"]

_MODES: dict[str, SentencePooling] = {
    "pooling_mode_mean_tokens": "avg",
    # Divided by the root of the number of tokens: the mean, once vectors have length 1.
    "pooling_mode_mean_sqrt_len_tokens": "avg",
    "pooling_mode_cls_token": "token",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_lasttoken": "last",
}


def sentence_pooling(folder: Path) -> SentencePooling | None:
    """Returns how hidden states become a sentence's vector, which is then of length 1.

    `None` where the folder is of no sentence encoder, or of one that pools in another way.
    """
    modules = folder / "modules.json"
    listed = json.loads(modules.read_text(encoding="utf-8")) if modules.is_file() else []
    paths = [entry["path"] for entry in listed if entry["type"].endswith(".Pooling")]
    if len(paths) != 1:
        return None
    config = read_json(folder / paths[0] / "config.json")
    asked = [mode for mode, on in config.items() if mode.startswith("pooling_mode_") and on is True]
    return _MODES.get(asked[0]) if len(asked) == 1 else None


def longest_sentence(folder: Path) -> int | None:
    """Returns how many tokens the sentence encoder was made for; `None` where it is not said."""
    return read_json(folder / "sentence_bert_config.json").get("max_seq_length")
