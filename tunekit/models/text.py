"""Hugging Face folders of models that take tokens: config.json and model.safetensors."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import keras

from tunekit.errors import ModelError
from tunekit.models import (
    masked_head,
    text_decoder,
    text_encoder,
    text_gpt2,
    text_heads,
    tokenizer_files,
)
from tunekit.models.backbone import Backbone, HiddenLayer, PretrainedHead
from tunekit.models.head_names import HEADS
from tunekit.models.initialisation import seeded, without_values
from tunekit.models.sentence_folder import longest_sentence, sentence_pooling
from tunekit.models.spec import BackboneSpec
from tunekit.models.token_graph import language_head
from tunekit.models.tokenizing import Tokenizer
from tunekit.models.torch_weights import TorchWeights

Config = Mapping[str, Any]


@dataclass(frozen=True)
class _Family:
    """How one model_type becomes a Keras model."""

    prefix: str
    """Of the body's tensors in the folder of a model with a head."""
    build: Callable[[Config], keras.Model]
    fill: Callable[[Any, Config, TorchWeights], None]
    ignored: str
    """Pattern of the tensors that have no part in the hidden states."""
    block: str
    """What the tensors of a block begin with, `{}` being its index."""
    depth: str = "num_hidden_layers"
    """Key of the config that says how many blocks there are."""
    max_length: str = "max_position_embeddings"
    """Key of the config that says the longest sequence."""
    tied: bool | None = None
    """Whether a language head shares the embedding where the config is silent; None has none."""
    epsilon: Callable[[Config], float] | None = None
    """Of the normalisations of an encoder; None where it is no encoder."""


def load_folder(folder: Path, config: Config, spec: BackboneSpec, *, seed: int) -> Backbone:
    """Returns the backbone in a Hugging Face folder whose model_type is one of `FAMILIES`.

    The classifier of whole texts, BERT's pooler and the head of a causal or masked language model
    come with it; heads for other tasks are left out.

    Raises:
        ModelError: the folder is incomplete, asks for what is not built here, or `spec` has an
            image size.
    """
    backbone = from_config(folder, config, spec, seed=seed)
    tokenizer, reason = _tokenizer(folder, config["model_type"])
    longest = longest_sentence(folder) or sys.maxsize
    return replace(
        backbone,
        max_length_tokens=min(longest, backbone.max_length_tokens or sys.maxsize),
        tokenizer=tokenizer,
        without_tokenizer=reason,
        sentence_pooling=sentence_pooling(folder),
    )


def from_config(source: Path, config: Config, spec: BackboneSpec, *, seed: int) -> Backbone:
    """Returns the backbone that a config.json describes, without a tokenizer.

    Args:
        source: the folder of the weights; without pretrained ones it is a name and never read.
        config: of one of `FAMILIES`.
        spec: how it is built; its `name` is not read.
        seed: of fresh weights.

    Raises:
        ModelError: as `load_folder` does.
    """
    kind = config["model_type"]
    family = FAMILIES[kind]
    if spec.image_size is not None:
        raise ModelError(
            f"{source} holds a '{kind}', which takes tokens: leave image_size ({spec.image_size}) "
            "out."
        )
    try:
        parts = _built(source, config, family, spec, seed)
        longest = config[family.max_length]
    except KeyError as error:
        raise ModelError(
            f"{source / 'config.json'} has no {error}, which a '{kind}' is built by; copy it whole."
        ) from error
    first = config.get("pad_token_id", 1) + 1 if kind == "roberta" else 0
    return Backbone(
        keras=parts.body,
        preprocessing=None,
        features="encoder_states" if family.tied is None else "decoder_states",
        family=kind,
        source=str(source),
        takes="tokens",
        vocabulary=config["vocab_size"],
        max_length_tokens=longest - first,
        without_tokenizer="it came without a tokenizer. Give token ids.",
        language_head=parts.language_head,
        pretrained_head=parts.classifier,
        pooler=parts.pooler,
    )


def _tokenizer(folder: Path, kind: str) -> tuple[Tokenizer | None, str]:
    """The folder's tokenizer, or why there is none: token ids can be given all the same."""
    try:
        return Tokenizer(tokenizer_files.read(folder, kind)), ""
    except ModelError as error:
        return None, str(error)


@dataclass(frozen=True, eq=False)
class _Parts:
    """What a folder holds."""

    body: keras.Model
    language_head: keras.layers.Layer | None
    classifier: PretrainedHead | None = None
    pooler: HiddenLayer | None = None


def _built(folder: Path, config: Config, family: _Family, spec: BackboneSpec, seed: int) -> _Parts:
    """The body of `spec.blocks` blocks, with the heads that stand on all of them."""
    tied, ignored = _tied(config, family), family.ignored
    is_whole = spec.blocks is None or spec.blocks >= config[family.depth]
    if spec.blocks is not None and not is_whole:
        tied, dropped = None, range(spec.blocks, config[family.depth])
        ignored = "|".join([ignored, *(re.escape(family.block.format(i)) + ".*" for i in dropped)])
        config = {**config, family.depth: spec.blocks}
    if not spec.pretrained:
        with seeded(seed):
            body = family.build(config)
            head = None if tied is None else language_head(body, tied=tied)
            if is_whole and family.epsilon is not None and _is_masked_lm(config):
                head = masked_head.build(body, config, family.epsilon(config))
            return _Parts(body, head)
    weights = TorchWeights(folder, prefix=family.prefix)
    if tied is False and "lm_head.weight" not in weights:
        if _is_language_model(config):
            raise ModelError(
                f"{folder} holds no 'lm_head.weight', and its config.json does not tie the head to "
                "the embedding; set tie_word_embeddings: true if the model is so."
            )
        tied = None
    with without_values() as placeholders:
        body = family.build(config)
        head = None if tied is None else language_head(body, tied=tied)
    family.fill(body, config, weights)
    missing = placeholders.left_in(body)
    if head is not None and not tied:
        weights.dense(head, "lm_head")
        missing += placeholders.left_in(head)
    own, layer = None, None
    if is_whole:
        names = HEADS[family.prefix]
        own = text_heads.classifier(weights, config, names, family.prefix)
        layer = text_heads.pooler(weights, names, family.prefix)
        if family.epsilon is not None:
            head = masked_head.load(body, config, weights, family.epsilon(config))
    weights.finish(body, missing, ignored=ignored)
    return _Parts(body, head, own, layer)


def _tied(config: Config, family: _Family) -> bool | None:
    """Whether the folder's language head shares the embedding; None where it has no such head."""
    if family.tied is None:
        return None
    if config.get("architectures") and not _is_language_model(config):
        return None
    return config.get("tie_word_embeddings", family.tied)


def _is_masked_lm(config: Config) -> bool:
    return any("ForMaskedLM" in name for name in config.get("architectures") or ())


def _is_language_model(config: Config) -> bool:
    names = config.get("architectures") or ()
    return any("ForCausalLM" in name or "LMHead" in name for name in names)


def _build_bert(config: Config) -> keras.Model:
    return text_encoder.build(text_encoder.bert_shape(config), config["model_type"])


def _fill_bert(body: keras.Model, config: Config, weights: TorchWeights) -> None:
    text_encoder.fill(body, text_encoder.bert_shape(config), weights, text_encoder.BERT)


def _build_distilbert(config: Config) -> keras.Model:
    return text_encoder.build(text_encoder.distilbert_shape(config), "distilbert")


def _fill_distilbert(body: keras.Model, config: Config, weights: TorchWeights) -> None:
    shape = text_encoder.distilbert_shape(config)
    text_encoder.fill(body, shape, weights, text_encoder.DISTILBERT)


def _build_decoder(config: Config) -> keras.Model:
    return text_decoder.build(text_decoder.decoder_shape(config), config["model_type"])


def _fill_decoder(body: keras.Model, config: Config, weights: TorchWeights) -> None:
    text_decoder.fill(body, text_decoder.decoder_shape(config), weights)


def _build_gpt2(config: Config) -> keras.Model:
    return text_gpt2.build(config, "gpt2")


def _encoder(prefix: str) -> _Family:
    block = text_encoder.BERT.block
    return _Family(
        prefix, _build_bert, _fill_bert, text_encoder.HEADS, block, epsilon=_bert_epsilon
    )


def _bert_epsilon(config: Config) -> float:
    return text_encoder.bert_shape(config).epsilon


def _decoder(*, tied: bool) -> _Family:
    ignored = text_decoder.IGNORED
    return _Family("model.", _build_decoder, _fill_decoder, ignored, "layers.{}.", tied=tied)


FAMILIES = {
    "bert": _encoder("bert."),
    "roberta": _encoder("roberta."),
    "distilbert": _Family(
        "distilbert.",
        _build_distilbert,
        _fill_distilbert,
        text_encoder.HEADS,
        text_encoder.DISTILBERT.block,
        depth="n_layers",
        epsilon=lambda config: text_encoder.distilbert_shape(config).epsilon,
    ),
    "llama": _decoder(tied=False),
    "mistral": _decoder(tied=False),
    "qwen2": _decoder(tied=False),
    "gemma": _decoder(tied=True),
    "gpt2": _Family(
        "transformer.",
        _build_gpt2,
        text_gpt2.fill,
        text_gpt2.IGNORED,
        "h.{}.",
        depth="n_layer",
        max_length="n_positions",
        tied=True,
    ),
}
"""The families read here, by the model_type of their config.json."""
