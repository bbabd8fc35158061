"""A tiny BERT and a tiny Llama as folders on disk, and a file of data for every task of texts.

All read words of one vocabulary, and no text is longer than `LENGTH`: one shape for all programs.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tokenizers
from safetensors.numpy import save_file
from tokenizers import models, pre_tokenizers, processors

from tests.reference import text_folders

LENGTH = 24
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "<s>", "</s>", "user", "assistant")
WORDS = tuple(
    "a bad big bread cheese cold cook film fish food fresh good hot in is it long made not of old"
    " place salt she short soup tea the they this very was we what where who why with you"
    " red green blue one two three four five six seven eight".split()
)
CHAT = (
    "{% for m in messages %}{{ m.role }} {{ m.content }} </s>{% endfor %}"
    "{% if add_generation_prompt %}assistant {% endif %}"
)
BERT_TOKENS = {"pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]"} | {
    "mask_token": "[MASK]",
    "unk_token": "[UNK]",
}
LLAMA_TOKENS = {"pad_token": "[PAD]", "bos_token": "<s>", "eos_token": "</s>"} | {
    "chat_template": CHAT,
    "unk_token": "[UNK]",
}


def bert(folder: Path, *, dropout: float = 0.1) -> Path:
    """Writes an encoder of one block with a head for hidden tokens; returns its folder."""
    _write(folder, "bert-masked-lm", hidden_dropout_prob=dropout, pad_token_id=0)
    return _write_tokenizer(folder, ("[CLS]", "[SEP]"), BERT_TOKENS)


def llama(folder: Path, *, dropout: float = 0.0) -> Path:
    """Writes a causal language model of one block, which has no dropout; returns its folder."""
    assert not dropout
    _write(folder, "llama", bos_token_id=5, eos_token_id=6, pad_token_id=0)
    return _write_tokenizer(folder, ("<s>", None), LLAMA_TOKENS)


def _write(folder: Path, name: str, **changes: Any) -> None:
    config = {**text_folders.CONFIGS[name], "num_hidden_layers": 1, **changes}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    kept = {key: x for key, x in text_folders.tensors(name).items() if ".1." not in key}
    save_file(kept, folder / "model.safetensors")


def _write_tokenizer(folder: Path, ends: tuple[str, str | None], told: Mapping[str, str]) -> Path:
    vocabulary = {token: index for index, token in enumerate((*SPECIAL, *WORDS))}
    core = tokenizers.Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()  # type: ignore[assignment]
    core.add_special_tokens(list(SPECIAL))
    begin, end = ends
    behind = f" {end}" if end else ""
    pair = f"{begin} $A{behind} $B:1 {end}:1" if end else None
    marks = [(token, vocabulary[token]) for token in ends if token]
    core.post_processor = processors.TemplateProcessing(  # type: ignore[assignment]
        f"{begin} $A{behind}", pair, marks
    )
    (folder / "tokenizer.json").write_text(core.to_str())
    (folder / "tokenizer_config.json").write_text(json.dumps(told))
    return folder


FAMILIES = {"bert": bert, "llama": llama}

_GOOD = ("good", "bad")


def _texts(count: int) -> list[str]:
    """Texts of words, no two alike, the first of which says the label."""
    return [
        " ".join((_GOOD[i % 2], *(WORDS[(7 * i + 3 * j) % len(WORDS)] for j in range(2 + i % 5))))
        for i in range(count)
    ]


def rows(task: str, count: int = 8) -> list[dict[str, Any]]:
    """Returns rows as a user would have them for one of `TASKS`."""
    texts, others = _texts(count), _texts(2 * count)[count:]
    label = [_GOOD[i % 2] for i in range(count)]
    makers = {
        "classification": lambda i: {"text": texts[i], "label": label[i]},
        "multi_label": lambda i: {"text": texts[i], "label": [label[i], "old"][: 1 + i % 3 // 2]},
        "pairs": lambda i: {"sentence1": texts[i], "sentence2": others[i], "label": label[i]},
        "regression": lambda i: {"text": texts[i], "score": i / 3},
        "tokens": lambda i: {
            "tokens": texts[i].split(),
            "tags": ["B-X" if word in _GOOD else "O" for word in texts[i].split()],
        },
        "span_qa": lambda i: {
            "question": "what is it",
            "context": f"{others[i]} {texts[i]}",
            "answers": {"text": [label[i]], "answer_start": [len(others[i]) + 1]},
        },
        "embedding": lambda i: {"anchor": texts[i], "positive": others[i]},
        "embedding_labels": lambda i: {"text": texts[i], "label": label[i]},
        "masked_lm": lambda i: {"text": texts[i]},
        "causal_lm": lambda i: {"text": texts[i]},
        "sft": lambda i: {"prompt": texts[i], "response": others[i]},
    }
    return [makers[task](i) for i in range(count)]


def write_rows(task: str, folder: Path, count: int = 8) -> Path:
    """Writes the rows of a task as a JSONL file; returns its path."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{task}.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows(task, count)))
    return file
