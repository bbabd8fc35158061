"""A Llama of 99 tokens that reads characters, and dialogues for it."""

from __future__ import annotations

import json
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import tokenizers

from tests.reference import text_folders
from tunekit.models.loading import load_backbone
from tunekit.models.model import Model
from tunekit.models.spec import BackboneSpec
from tunekit.models.tokenizing import Tokenizer

SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
END, TURN_END = 0, 2
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def tokenizer(
    *, chat: str | None = CHATML, eos: str | None = SPECIAL[0], bos: str | None = None
) -> Tokenizer:
    """One token a character, but " y" is one of its own."""
    characters = "\n !#&*,.:;<>?|[]_'" + "abcdefghijklmnopqrstuvwxyz" + "AIQRY0123456789"
    vocabulary = {token: index for index, token in enumerate((*SPECIAL, *characters, " y"))}
    core = tokenizers.Tokenizer(tokenizers.models.BPE(vocabulary, [(" ", "y")]))
    core.add_special_tokens(list(SPECIAL))
    core.decoder = tokenizers.decoders.Fuse()
    if bos:
        core.post_processor = tokenizers.processors.TemplateProcessing(
            single=f"{bos} $A", special_tokens=[(bos, vocabulary[bos])]
        )
    config: dict[str, Any] = {"eos_token": eos, "bos_token": bos, "chat_template": chat}
    told = {name: value for name, value in config.items() if value is not None}
    return Tokenizer({"tokenizer.json": core.to_str(), "tokenizer_config.json": json.dumps(told)})


def dialogue(*contents: str, system: str | None = None, **columns: Any) -> dict[str, Any]:
    """Messages of user and assistant in turn."""
    roles = ("user", "assistant")
    messages = [{"role": roles[i % 2], "content": each} for i, each in enumerate(contents)]
    if system is not None:
        messages.insert(0, {"role": "system", "content": system})
    return {"id": "chat.jsonl:1", "messages": messages, **columns}


def model(**options: Any) -> Model:
    """A fresh Llama with the tokenizer."""
    with tempfile.TemporaryDirectory() as folder:
        backbone = load_backbone(text_folders.write("llama", Path(folder)), BackboneSpec())
    return Model(replace(backbone, tokenizer=tokenizer(**options)))
