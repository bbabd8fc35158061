"""What stands in for data and a tokenizer that are not at hand: all that a batch's shape needs.

Examples are all alike, and long enough that a text is cut at its longest. The tasks' own code
makes batches of them, so that the columns are those of a run.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from tunekit.data.text_kinds import TextKind
from tunekit.models.tokenizer_files import word_pieces
from tunekit.models.tokenizing import Tokenizer

WORD = "word"
"""One token of `stand_in_tokenizer`."""
_CHAT = (
    "{% for message in messages %}{{ message.role }} {{ message.content }}{{ eos_token }}"
    "{% endfor %}{% if add_generation_prompt %}assistant {% endif %}"
)
_TAGS = ("O", "B-X", "I-X")


def stand_in_tokenizer() -> Tokenizer:
    """Returns a tokenizer that does all that tasks ask for: pairs, dialogues, hidden tokens."""
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "user", "assistant", WORD]
    config = {"eos_token": "[SEP]", "pad_token": "[PAD]", "chat_template": _CHAT}
    return Tokenizer(
        {
            "tokenizer.json": json.dumps(word_pieces(vocabulary, lowercase=True)),
            "tokenizer_config.json": json.dumps(config),
        }
    )


@dataclass(frozen=True, eq=False)
class StandIn:
    """So many examples, all alike but for their labels, which take turns."""

    example: Mapping[str, Any]
    """Its label or score, where it has one, is that of no other."""
    count: int
    kind: TextKind | None = None
    """What texts are; `None` of images."""
    label_names: tuple[str, ...] = ()
    multi_label: bool = False
    fingerprint: str = ""

    def __len__(self) -> int:
        """Returns the number of examples."""
        return self.count

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Returns one example."""
        found = {**self.example, "id": self.name(index)}
        if "label" in found:
            label = self.label_array[index]
            found["label"] = label if label.ndim else label.item()
        return found

    def name(self, index: int) -> str:
        """Returns what a message calls the example."""
        return f"stand-in {index}"

    def select(self, indices: Sequence[int] | np.ndarray) -> StandIn:
        """Returns as many examples as are asked for."""
        return replace(self, count=len(indices))

    @cached_property
    def label_array(self) -> np.ndarray:
        """Of the labels in turn: int32 [N], or float32 [N, C]; of numbers float32 [N]."""
        if "label" not in self.example:
            return np.zeros(0, np.int32)
        turns = np.arange(self.count) % max(2, len(self.label_names))
        if self.kind == "number":
            return turns.astype(np.float32)
        if self.multi_label:
            return np.eye(len(self.label_names), dtype=np.float32)[turns]
        return turns.astype(np.int32)

    @cached_property
    def sizes(self) -> np.ndarray:
        """Small, so that nobody cuts a text in pieces: int64 [N]."""
        return np.ones(self.count, np.int64)


def stand_in_images(
    size_px: tuple[int, int], count: int, labels: tuple[str, ...], *, multi_label: bool
) -> StandIn:
    """Returns black images (height, width) with labels.

    Args:
        size_px: of each.
        count: how many.
        labels: that take turns.
        multi_label: whether an image may have several.
    """
    image = np.zeros((*size_px, 3), np.uint8)
    example = {"image": image, "label": 0}
    return StandIn(example, count, label_names=labels, multi_label=multi_label)


def stand_in_texts(
    kind: TextKind,
    words: int,
    count: int,
    labels: tuple[str, ...],
    *,
    multi_label: bool,
    columns: Sequence[str] = (),
    score: float | None = None,
) -> StandIn:
    """Returns texts of `words` words.

    Args:
        kind: of examples; a question has a context that one window holds.
        words: of each text.
        count: how many.
        labels: that take turns; of tags.
        multi_label: whether a text may have several.
        columns: further columns of text, which a template has gaps for.
        score: of each pair.
    """
    text = _text(words)
    example: dict[str, Any] = {
        "labelled": {"text": text, "label": 0},
        "number": {"text": text, "label": 0},
        "tagged": {"words": [WORD] * words, "tags": [0] * words},
        "answers": {"question": WORD, "context": WORD, "answers": [(WORD, 0)]},
        "pairs": {"texts": (text, text), "score": score},
        "dialogue": {"messages": _messages(words)},
        "plain": {"text": text},
    }[kind]
    example |= {name: WORD for name in columns}
    if kind == "tagged":
        labels = labels or _TAGS
    return StandIn(example, count, kind, labels, multi_label)


def like(source: Any, words: int, count: int) -> StandIn:
    """Returns texts of `words` words with the columns and labels of a source of texts.

    Args:
        source: whose first example is looked at.
        words: of each text.
        count: how many.
    """
    example = {n: _lengthened(n, x, words) for n, x in source[0].items() if n != "id"}
    return StandIn(example, count, source.kind, source.label_names, source.multi_label)


def _lengthened(name: str, value: Any, words: int) -> Any:
    if name in ("question", "context"):
        return WORD
    if name == "answers":
        return [(WORD, 0)] if value else []
    if name == "words":
        return [WORD] * words
    if name == "tags":
        return [0] * words
    if name == "messages":
        return _messages(words, system=any(each["role"] == "system" for each in value))
    if isinstance(value, str):
        return _text(words)
    if isinstance(value, tuple) and all(isinstance(each, str) for each in value):
        return tuple(_text(words) for _ in value)
    return value


def _messages(words: int, *, system: bool = False) -> list[dict[str, str]]:
    first = [{"role": "system", "content": WORD}] if system else []
    answer = {"role": "assistant", "content": _text(words)}
    return [*first, {"role": "user", "content": WORD}, answer]


def _text(words: int) -> str:
    return " ".join([WORD] * words)
