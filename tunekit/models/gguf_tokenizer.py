"""The tokenizer inside a GGUF file as the files of Hugging Face's ``tokenizers``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tunekit.errors import ModelError, did_you_mean
from tunekit.models.tokenizer_files import (
    SPLITS,
    Json,
    Split,
    added,
    begins_with,
    byte_pairs,
    sentence_pieces,
)

_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED = 1, 2, 3, 4
"""llama.cpp's types of tokens; the last three are found before any splitting."""

_SPLITS: dict[str, Split] = {"default": "gpt-2", **{name: name for name in SPLITS}}
"""By the file's key ``tokenizer.ggml.pre``."""


def tokenizer_files(metadata: Mapping[str, Any], where: str, *, rebuild: bool) -> dict[str, Json]:
    """Returns tokenizer_config.json and, to `rebuild`, tokenizer.json: contents by name.

    Args:
        metadata: keys and values of the file.
        where: the file, for the message.
        rebuild: whether the vocabulary is asked for.

    Raises:
        ModelError: `rebuild`, and the file's vocabulary is of a kind that is not known.
    """
    tokens = metadata.get("tokenizer.ggml.tokens", [])
    config: Json = {"tokenizer_class": "PreTrainedTokenizerFast"}
    for ours, theirs in {"bos": "bos", "eos": "eos", "pad": "padding", "unk": "unknown"}.items():
        index = metadata.get(f"tokenizer.ggml.{theirs}_token_id")
        if index is not None:
            config[f"{ours}_token"] = tokens[index]
    if "tokenizer.chat_template" in metadata:
        config["chat_template"] = metadata["tokenizer.chat_template"]
    files = {"tokenizer_config.json": config}
    if rebuild:
        files["tokenizer.json"] = _tokenizer(metadata, tokens, where)
    return files


def _tokenizer(metadata: Mapping[str, Any], tokens: list[str], where: str) -> Json:
    model = metadata.get("tokenizer.ggml.model")
    kind = metadata.get("tokenizer.ggml.pre", "default")
    if model != "llama" and (model != "gpt2" or kind not in _SPLITS):
        near = did_you_mean(kind, _SPLITS) if model == "gpt2" else ""
        raise ModelError(
            f"{where}: its tokenizer is '{model}' with splitting '{kind}'; rebuilt are "
            f"SentencePiece's ('llama') and byte-level BPE ('gpt2') with {', '.join(_SPLITS)}."
            f"{near} Put the model's own tokenizer.json beside the file."
        )
    kinds = metadata.get("tokenizer.ggml.token_type") or [_NORMAL] * len(tokens)
    vocabulary = {token: index for index, token in enumerate(tokens)}
    found = [
        entry
        for token, index in vocabulary.items()
        if kinds[index] in (_UNKNOWN, _CONTROL, _USER_DEFINED)
        for entry in added(vocabulary, [token], special=kinds[index] != _USER_DEFINED)
    ]
    adds_bos = metadata.get("tokenizer.ggml.add_bos_token", model == "llama" or kind == "llama-bpe")
    bos = metadata.get("tokenizer.ggml.bos_token_id")
    ends = begins_with(tokens[bos], bos) if adds_bos and bos is not None else None
    if model == "gpt2":
        merges = metadata.get("tokenizer.ggml.merges", [])
        return byte_pairs(vocabulary, merges, _SPLITS[kind], found, ends=ends)
    scores = metadata["tokenizer.ggml.scores"]
    pieces = {token: scores[i] for token, i in vocabulary.items() if kinds[i] == _NORMAL}
    space_first = metadata.get("tokenizer.ggml.add_space_prefix", True)
    return sentence_pieces(vocabulary, pieces, found, space_first=space_first, ends=ends)
