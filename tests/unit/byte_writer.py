"""A small language model whose tokens are bytes, for tests of what is written."""

from __future__ import annotations

import functools
import json
from dataclasses import replace

from tests.unit.methods import small, texts
from tunekit.models.hub import keras_hub
from tunekit.models.initialisation import without_values
from tunekit.models.loading import load_model
from tunekit.models.model import Model
from tunekit.models.tokenizing import Tokenizer

TEMPLATE = (
    "{% for m in messages %}{{ m.role[0] }}:{{ m.content }}<end>{% endfor %}"
    "{% if add_generation_prompt %}a:{% endif %}"
)


def tokenizer(template: str | None = TEMPLATE, *, ending: bool = False) -> Tokenizer:
    """A token for each byte, "<s>" and "<end>"; `ending` puts "<end>" behind every text."""
    from tokenizers import AddedToken, decoders, models, pre_tokenizers, processors
    from tokenizers import Tokenizer as Core

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Core(models.BPE({letter: index for index, letter in enumerate(letters)}, []))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens([AddedToken(token, special=True) for token in ("<s>", "<end>")])
    if ending:
        tokens = [(token, core.token_to_id(token)) for token in ("<s>", "<end>")]
        core.post_processor = processors.TemplateProcessing("<s> $A <end>", None, tokens)
    config = {"bos_token": "<s>", "eos_token": "<end>"}
    config |= {} if template is None else {"chat_template": template}
    files = {"tokenizer.json": core.to_str(), "tokenizer_config.json": json.dumps(config)}
    return Tokenizer(files)


@functools.cache
def model() -> Model:
    """A Llama of random values; tests leave it as they find it."""
    config = {**texts.NETWORKS["llama"]().get_config(), "vocabulary_size": 258}
    with without_values():
        body = keras_hub().models.LlamaBackbone.from_config(config)
    found = load_model(keras_hub().models.LlamaCausalLM(small.filled(body)))
    found.backbone = replace(found.backbone, tokenizer=tokenizer(), max_length_tokens=48)
    return found
