"""The files that a tokenizer is made of: read from a folder, or built from bare vocabularies."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from tunekit.errors import ModelError

Json = dict[str, Any]

FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "generation_config.json",
)
"""What a folder may say of its tokenizer."""

Split = Literal["gpt-2", "smollm", "llama-bpe", "qwen2"]
"""How a family cuts a text into words, by llama.cpp's names."""

_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def read(folder: Path, kind: str | None = None) -> dict[str, str]:
    """Returns the contents of a Hugging Face folder's tokenizer files by name.

    Folders older than tokenizer.json have a vocabulary, which one is built from.

    Args:
        folder: to look in.
        kind: the folder's model_type, which says how a bare vocabulary is meant.

    Raises:
        ModelError: there is no tokenizer that can be read.
    """
    paths = {name: folder / name for name in FILES}
    files = {name: _text(path) for name, path in paths.items() if path.is_file()}
    if "tokenizer.json" not in files:
        settings = json.loads(files.get("tokenizer_config.json", "{}"))
        files["tokenizer.json"] = json.dumps(_built(folder, kind, settings))
    config = folder / "config.json"
    if "generation_config.json" not in files and config.is_file():
        found = json.loads(_text(config))
        ids = {key: found.get(key) for key in ("bos_token_id", "eos_token_id", "pad_token_id")}
        files["generation_config.json"] = json.dumps(ids)
    return files


def _built(folder: Path, kind: str | None, settings: Mapping[str, Any]) -> Json:
    words, numbers, merges = (folder / f for f in ("vocab.txt", "vocab.json", "merges.txt"))
    if kind in ("bert", "distilbert") and words.is_file():
        return word_pieces(
            _text(words).splitlines(),
            lowercase=settings.get("do_lower_case", True),
            strip_accents=settings.get("strip_accents"),
        )
    if kind in ("gpt2", "roberta") and numbers.is_file() and merges.is_file():
        vocabulary = json.loads(_text(numbers))
        pairs = [line for line in _text(merges).split("\n") if line and line[:8] != "#version"]
        special = ["<|endoftext|>"] if kind == "gpt2" else ROBERTA
        ends = sequence_ends("Roberta", vocabulary, "<s>", "</s>") if kind == "roberta" else None
        return byte_pairs(vocabulary, pairs, "gpt-2", added(vocabulary, special), ends=ends)
    found = ", ".join(sorted(path.name for path in folder.iterdir())[:12]) or "nothing"
    raise ModelError(
        f"{folder} has no tokenizer.json, which texts are cut into tokens by; it holds {found}. "
        "Copy it there from where the weights came from."
    )


ROBERTA = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")
"""RoBERTa's special tokens."""


def word_pieces(
    vocabulary: Sequence[str], *, lowercase: bool, strip_accents: bool | None = None
) -> Json:
    """Returns the tokenizer.json of a BERT.

    Args:
        vocabulary: tokens in the order of their numbers.
        lowercase: whether letters lose their case.
        strip_accents: whether they lose their accents; `None` where they lose their case.
    """
    numbers = {token: index for index, token in enumerate(vocabulary)}
    names = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
    normalizer = {
        "type": "BertNormalizer",
        "clean_text": True,
        "handle_chinese_chars": True,
        "strip_accents": strip_accents,
        "lowercase": lowercase,
    }
    model = {
        "type": "WordPiece",
        "unk_token": "[UNK]",
        "continuing_subword_prefix": "##",
        "max_input_chars_per_word": 100,
        "vocab": numbers,
    }
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added(numbers, names),
        "normalizer": normalizer,
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "post_processor": sequence_ends("Bert", numbers, "[CLS]", "[SEP]"),
        "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": True},
        "model": model,
    }


def byte_pairs(
    vocabulary: Mapping[str, int],
    merges: Sequence[str],
    split: Split,
    added_tokens: list[Json],
    *,
    ends: Json | None = None,
) -> Json:
    """Returns the tokenizer.json of a byte-level BPE, as of GPT-2, RoBERTa, Llama 3 or Qwen2.

    Args:
        vocabulary: numbers by token.
        merges: pairs "left right", the first to be merged first.
        split: how texts are cut into words.
        added_tokens: those found before any splitting, from `added`.
        ends: what is put round a text, as a post_processor; `None` puts nothing.
    """
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added_tokens,
        "normalizer": {"type": "NFC"} if split == "qwen2" else None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": SPLITS[split]},
        "post_processor": ends,
        "decoder": _bytes(splits=True),
        "model": {
            **_BPE,
            "ignore_merges": split == "llama-bpe",
            "vocab": dict(vocabulary),
            "merges": list(merges),
        },
    }


def sentence_pieces(
    vocabulary: Mapping[str, int],
    scores: Mapping[str, float],
    added_tokens: list[Json],
    *,
    space_first: bool = True,
    ends: Json | None = None,
) -> Json:
    """Returns the tokenizer.json of a SentencePiece BPE with bytes, as of Llama 2 or Mistral.

    Args:
        vocabulary: numbers by token, "<unk>" and "<0x00>" to "<0xFF>" among them.
        scores: of the pieces that are made by merging; the highest is made first.
        added_tokens: as for `byte_pairs`.
        space_first: whether a text is read as if a space stood before it.
        ends: as for `byte_pairs`.
    """
    merges = [
        (-score, vocabulary[piece[:cut]], vocabulary[piece[cut:]], piece[:cut], piece[cut:])
        for piece, score in scores.items()
        for cut in range(1, len(piece))
        if piece[:cut] in scores and piece[cut:] in scores
    ]
    prefix = [{"type": "Prepend", "prepend": "▁"}] if space_first else []
    spaces = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
    back = {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}
    strip = [{"type": "Strip", "content": " ", "start": 1, "stop": 0}] if space_first else []
    decoders = [back, {"type": "ByteFallback"}, {"type": "Fuse"}, *strip]
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added_tokens,
        "normalizer": {"type": "Sequence", "normalizers": [*prefix, spaces]},
        "pre_tokenizer": None,
        "post_processor": ends,
        "decoder": {"type": "Sequence", "decoders": decoders},
        "model": {
            **_BPE,
            "unk_token": "<unk>",
            "fuse_unk": True,
            "byte_fallback": True,
            "vocab": dict(vocabulary),
            "merges": [merge[3:] for merge in sorted(merges)],
        },
    }


_BPE: Json = {
    "type": "BPE",
    "dropout": None,
    "unk_token": None,
    "continuing_subword_prefix": None,
    "end_of_word_suffix": None,
    "fuse_unk": False,
    "byte_fallback": False,
    "ignore_merges": False,
}


def added(
    vocabulary: Mapping[str, int], tokens: Iterable[str], *, special: bool = True
) -> list[Json]:
    """Returns entries of tokenizer.json for those of the tokens that there are."""
    exact = {"single_word": False, "rstrip": False, "normalized": False, "special": special}
    return [
        # RoBERTa's mask takes the space before it along.
        {"id": vocabulary[token], "content": token, "lstrip": token == "<mask>", **exact}
        for token in tokens
        if token in vocabulary
    ]


def sequence_ends(
    kind: Literal["Bert", "Roberta"], vocabulary: Mapping[str, int], first: str, last: str
) -> Json:
    """Returns the post_processor that puts `first` before a text and `last` behind it."""
    tokens = {"cls": [first, vocabulary[first]], "sep": [last, vocabulary[last]]}
    # RoBERTa's offsets leave the space before a word out.
    spaces = {"trim_offsets": True, "add_prefix_space": False} if kind == "Roberta" else {}
    return {"type": f"{kind}Processing", **tokens, **spaces}


def begins_with(token: str, index: int) -> Json:
    """Returns the post_processor that puts one token before a text."""
    first = {"SpecialToken": {"id": token, "type_id": 0}}
    text, pair = ({"Sequence": {"id": name, "type_id": i}} for i, name in enumerate("AB"))
    return {
        "type": "TemplateProcessing",
        "single": [first, text],
        "pair": [first, text, {"SpecialToken": {"id": token, "type_id": 1}}, pair],
        "special_tokens": {token: {"id": token, "ids": [index], "tokens": [token]}},
    }


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


SPLITS: dict[Split, list[Json]] = {
    "gpt-2": [_bytes(splits=True)],
    "smollm": [{"type": "Digits", "individual_digits": True}, _bytes(splits=True)],
    "llama-bpe": _split(_WORDS % "{1,3}"),
    "qwen2": _split(_WORDS % ""),
}
"""Each as in the families' own tokenizer.json."""


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8")
