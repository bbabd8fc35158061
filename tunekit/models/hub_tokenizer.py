"""KerasHub's tokenizers as those of ``tokenizers``, which cut texts as the models were trained.

KerasHub's own, where TensorFlow is absent, split every family's text as Llama 3 does, and those of
uncased BERTs keep accents that their vocabularies lack (0.32).
"""

from __future__ import annotations

import json
from typing import Any

from tunekit.errors import ModelError
from tunekit.models import tokenizer_files
from tunekit.models.tokenizer_files import Json, Split
from tunekit.models.tokenizing import Tokenizer

_WORD_PIECES = ("BertTokenizer", "DistilBertTokenizer", "ElectraTokenizer")
_BYTE_PAIRS: dict[str, Split] = {
    "GPT2Tokenizer": "gpt-2",
    "RobertaTokenizer": "gpt-2",
    "Llama3Tokenizer": "llama-bpe",
    "QwenTokenizer": "qwen2",
}
_NAMES = {"cls": "cls", "sep": "sep", "mask": "mask", "pad": "pad", "bos": "start", "eos": "end"}


def converted(theirs: Any) -> Tokenizer:
    """Returns the tokenizer of a KerasHub tokenizer's vocabulary.

    Raises:
        ModelError: it is of a kind that cannot be rebuilt exactly.
    """
    kind = type(theirs).__name__
    if kind in _WORD_PIECES and theirs.split and theirs.suffix_indicator == "##":
        content = tokenizer_files.word_pieces(
            theirs.vocabulary,
            lowercase=theirs.lowercase,
            strip_accents=theirs.strip_accents or None,
        )
    elif kind in _BYTE_PAIRS and not theirs.add_prefix_space:
        content = _byte_pairs(theirs, kind)
    else:
        known = ", ".join((*_WORD_PIECES, *_BYTE_PAIRS))
        raise ModelError(
            f"a {kind} of KerasHub cannot be rebuilt exactly (expected one of {known}, split "
            "as its family splits). Give token ids, or the Hugging Face folder of the model."
        )
    named = {ours: getattr(theirs, f"{name}_token", None) for ours, name in _NAMES.items()}
    if kind in _WORD_PIECES:
        del named["bos"], named["eos"]
    files = {
        "tokenizer.json": content,
        "tokenizer_config.json": {f"{use}_token": token for use, token in named.items() if token},
        "generation_config.json": {"eos_token_id": _ends(theirs) or None},
    }
    return Tokenizer({name: json.dumps(value) for name, value in files.items()})


def _byte_pairs(theirs: Any, kind: str) -> Json:
    vocabulary = dict(theirs.vocabulary)
    ends = None
    if kind == "RobertaTokenizer":
        ends = tokenizer_files.sequence_ends("Roberta", vocabulary, "<s>", "</s>")
    elif kind == "Llama3Tokenizer":
        start = theirs.start_token
        ends = tokenizer_files.begins_with(start, vocabulary[start])
    return tokenizer_files.byte_pairs(
        vocabulary,
        [merge for merge in theirs.merges if "#version:" not in merge],
        _BYTE_PAIRS[kind],
        tokenizer_files.added(vocabulary, sorted(theirs.special_tokens)),
        ends=ends,
    )


def _ends(theirs: Any) -> list[int]:
    """Numbers of the tokens that end a text: Llama 3 has two."""
    names = ("end_token", "end_token2") if hasattr(theirs, "merges") else ()
    tokens = [getattr(theirs, name, None) for name in names]
    return [theirs.token_to_id(token) for token in tokens if token]
