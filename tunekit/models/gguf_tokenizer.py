"""The tokenizer inside a GGUF file as the files of Hugging Face's ``tokenizers``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tunekit.errors import ModelError, did_you_mean

Json = dict[str, Any]

_CONTROL, _USER_DEFINED = 3, 4
"""llama.cpp's types of tokens that are found before any splitting."""

_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def _bytes(*, splits: bool) -> Json:
    return {
        "type": "ByteLevel",
        "add_prefix_space": False,
        "trim_offsets": True,
        "use_regex": splits,
    }


def _split(pattern: str) -> list[Json]:
    found = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated"}
    return [{**found, "invert": False}, _bytes(splits=False)]


_PRE_TOKENIZERS: dict[str, list[Json]] = {
    "default": [_bytes(splits=True)],
    "gpt-2": [_bytes(splits=True)],
    "smollm": [{"type": "Digits", "individual_digits": True}, _bytes(splits=True)],
    "llama-bpe": _split(_WORDS % "{1,3}"),
    "qwen2": _split(_WORDS % ""),
}
"""By the file's key ``tokenizer.ggml.pre``, each as in the model's own tokenizer.json."""


def tokenizer_files(metadata: Mapping[str, Any], where: str, *, rebuild: bool) -> dict[str, Json]:
    """Returns tokenizer_config.json and, to `rebuild`, tokenizer.json: contents by name.

    Args:
        metadata: keys and values of the file.
        where: the file, for the message.
        rebuild: whether the vocabulary is asked for.

    Raises:
        ModelError: `rebuild`, and the file's vocabulary is not byte-level BPE of a known kind.
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
    if model != "gpt2" or kind not in _PRE_TOKENIZERS:
        near = did_you_mean(kind, _PRE_TOKENIZERS) if model == "gpt2" else ""
        raise ModelError(
            f"{where}: its tokenizer is '{model}' with splitting '{kind}'; rebuilt are byte-level "
            f"BPE ('gpt2') with {', '.join(_PRE_TOKENIZERS)}.{near} Give the model's own "
            "tokenizer.json."
        )
    kinds = metadata.get("tokenizer.ggml.token_type") or [1] * len(tokens)
    llama = kind == "llama-bpe"
    adds_bos = metadata.get("tokenizer.ggml.add_bos_token", llama)
    bos = metadata.get("tokenizer.ggml.bos_token_id")
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            _added(index, tokens[index], special=kinds[index] == _CONTROL)
            for index in range(len(tokens))
            if kinds[index] in (_CONTROL, _USER_DEFINED)
        ],
        "normalizer": {"type": "NFC"} if kind == "qwen2" else None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": _PRE_TOKENIZERS[kind]},
        "post_processor": _begins_with(tokens[bos], bos) if adds_bos and bos is not None else None,
        "decoder": _bytes(splits=True),
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": llama,
            "vocab": {token: index for index, token in enumerate(tokens)},
            "merges": metadata.get("tokenizer.ggml.merges", []),
        },
    }


def _added(index: int, token: str, *, special: bool) -> Json:
    exact = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    return {"id": index, "content": token, "special": special, **exact}


def _begins_with(token: str, index: int) -> Json:
    first = {"SpecialToken": {"id": token, "type_id": 0}}
    text, pair = ({"Sequence": {"id": name, "type_id": i}} for i, name in enumerate("AB"))
    return {
        "type": "TemplateProcessing",
        "single": [first, text],
        "pair": [first, text, {"SpecialToken": {"id": token, "type_id": 1}}, pair],
        "special_tokens": {token: {"id": token, "ids": [index], "tokens": [token]}},
    }
