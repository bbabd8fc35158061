"""A tiny WordPiece tokenizer and sources of texts, for the tests of tasks on labelled texts."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import tokenizers
from tokenizers import models, normalizers, pre_tokenizers, processors

from tunekit.data.examples import Splits
from tunekit.data.sequences import SequenceBatches, buckets
from tunekit.models.tokenizing import Tokenizer

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


def wordpiece(words: Iterable[str]) -> Tokenizer:
    """A lower-casing BERT tokenizer of these pieces ("##s" continues a word), and of its marks."""
    pieces = dict.fromkeys([*SPECIAL, *words])
    vocabulary = {piece: index for index, piece in enumerate(pieces)}
    core = tokenizers.Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    core.normalizer = normalizers.BertNormalizer(lowercase=True)  # type: ignore[assignment]
    core.pre_tokenizer = pre_tokenizers.BertPreTokenizer()  # type: ignore[assignment]
    ends = [(mark, vocabulary[mark]) for mark in ("[CLS]", "[SEP]")]
    core.post_processor = processors.TemplateProcessing(  # type: ignore[assignment]
        "[CLS] $A [SEP]", "[CLS] $A [SEP] $B:1 [SEP]:1", ends
    )
    core.add_special_tokens(list(SPECIAL))
    config = {"pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    return Tokenizer({"tokenizer.json": core.to_str(), "tokenizer_config.json": json.dumps(config)})


@dataclass(frozen=True, eq=False)
class Texts:
    """Examples in memory, as a source of texts gives them."""

    examples: Sequence[Mapping[str, Any]]
    label_names: tuple[str, ...] = ()
    multi_label: bool = False
    fingerprint: str = "texts"
    label_array: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int32))

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"id": self.name(index), **self.examples[index]}

    def name(self, index: int) -> str:
        return f"texts:{index + 1}"

    def select(self, indices: Sequence[int] | np.ndarray) -> Texts:
        raise NotImplementedError

    @property
    def sizes(self) -> np.ndarray:
        return np.asarray([len(str(example)) for example in self.examples], np.int64)


def labelled(
    texts: Sequence[Any], labels: Sequence[Any], names: tuple[str, ...] = (), **fields: Any
) -> Texts:
    examples = [{"text": t, "label": y} for t, y in zip(texts, labels, strict=True)]
    return Texts(examples, names, label_array=np.asarray(labels), **fields)


def splits(source: Texts) -> Splits:
    return Splits(train=source)


def batches_of(
    source: Any, task: Any, tokenizer: Tokenizer, max_length: int = 16, batch_size: int = 4
) -> Iterator[dict[str, np.ndarray]]:
    """The source's batches for judging, as a run makes them."""
    return SequenceBatches(
        source,
        task.encoder(tokenizer, max_length),
        batch_size=batch_size,
        seed=0,
        shuffle=False,
        buckets=buckets(max_length),
        pad_id=tokenizer.pad_id,
        workers=0,
    ).epoch(0)
