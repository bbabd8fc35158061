"""KerasHub's own backbones of tokens, and its causal language models: objects and presets."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import keras
from keras import ops

from tunekit.errors import ModelError
from tunekit.models import hub, masked_head, text_decoder
from tunekit.models.backbone import Backbone
from tunekit.models.hub_tokenizer import converted
from tunekit.models.initialisation import seeded, without_values
from tunekit.models.spec import BackboneSpec
from tunekit.models.token_graph import TiedHead, token_inputs
from tunekit.models.tokenizing import Tokenizer
from tunekit.names import canonical_name, structural_names


def takes_tokens(model: Any) -> bool:
    """Returns whether `model`, of KerasHub, or its backbone takes token ids."""
    inputs = getattr(model, "backbone", model).input
    return isinstance(inputs, dict) and any(name.endswith("token_ids") for name in inputs)


def is_preset(name: str) -> bool:
    """Returns whether `name`, of a preset or its folder, is of a backbone of tokens."""
    if name in hub.text_preset_names():
        return True
    if "://" not in name and not Path(name).is_dir():
        return False
    from keras_hub.src.utils.preset_utils import load_json

    try:
        with hub.tensorflow_hidden():
            registered = load_json(name, "config.json")["registered_name"]
    except Exception:
        return False  # whoever loads it says why it cannot be
    found = getattr(hub.keras_hub().models, registered.rpartition(">")[2], None)
    return found in _bodies("CausalLM", "MaskedLM", "TextClassifier", "TextEmbedder")


def load_preset(name: str, spec: BackboneSpec, *, seed: int) -> Backbone:
    """Returns the backbone of a KerasHub preset that takes tokens, with its tokenizer.

    Decoders come as the language models that they are.

    Args:
        name: of a preset, a "kaggle://..." handle, or a preset folder.
        spec: as for `load_object`.
        seed: of fresh weights.

    Raises:
        ModelError: it cannot be fetched, or is incomplete.
    """

    def read() -> Any:
        reader = hub.keras_hub().models.Backbone
        return reader.from_preset(name, load_weights=spec.pretrained, dtype=spec.dtype)

    body = hub.preset_by(read, name, spec, seed)
    try:
        with hub.tensorflow_hidden():
            tokenizer = hub.keras_hub().tokenizers.Tokenizer.from_preset(name)
    except FileNotFoundError:
        tokenizer = None
    backbone = _copied(body, spec, seed, tokenizer, is_language_model=_is_decoder(body))
    return replace(backbone, source=name)


def load_object(model: Any, spec: BackboneSpec, *, seed: int) -> Backbone:
    """Returns a copy of a KerasHub backbone of tokens, or of a task's; `model` stays as it was.

    A causal or masked language model brings its head. Segment ids are zeros.

    Raises:
        ModelError: it takes or gives something else than tokens and hidden states, or `spec` has
            an image size or a number of blocks.
    """
    body: Any = getattr(model, "backbone", model)
    tokenizer = getattr(getattr(model, "preprocessor", None), "tokenizer", None)
    is_language_model = model is not body and "CausalLM" in type(model).__name__
    backbone = _copied(body, spec, seed, tokenizer, is_language_model=is_language_model)
    if "MaskedLM" in type(model).__name__ and spec.pretrained:
        backbone = masked_head.with_hub_head(backbone, model.masked_lm_head)
    return replace(backbone, source=model.name)


def _copied(
    body: Any, spec: BackboneSpec, seed: int, tokenizer: Any, *, is_language_model: bool
) -> Backbone:
    if spec.image_size is not None:
        raise ModelError(f"'{body.name}' takes tokens: leave image_size ({spec.image_size}) out.")
    if spec.blocks is not None:
        raise ModelError(
            f"backbone.blocks: '{body.name}' is a model of KerasHub's that takes tokens, which is "
            "kept whole; of a Hugging Face folder the first blocks can be kept."
        )
    with without_values() if spec.pretrained else seeded(seed):
        copy = _fresh(body, spec)
    if spec.pretrained:
        theirs = structural_names(body).values()
        for ours, value in zip(structural_names(copy).values(), theirs, strict=True):
            ours.assign(value)
    embedding = getattr(copy, "token_embedding", None)
    head = None
    if is_language_model and isinstance(embedding, keras.layers.ReversibleEmbedding):
        # The kernel of an untied head is the embedding's as well.
        head = TiedHead(embedding, dtype=embedding.dtype_policy, name="lm_head")
    reader, reason = _reader(tokenizer)
    return Backbone(
        keras=_plain(copy),
        preprocessing=None,
        features="decoder_states" if _is_decoder(body) else "encoder_states",
        family=type(body).__name__.removesuffix("Backbone").lower(),
        source=body.name,
        takes="tokens",
        vocabulary=getattr(body, "vocabulary_size", None),
        max_length_tokens=getattr(body, "max_sequence_length", None),
        tokenizer=reader,
        without_tokenizer=reason,
        language_head=head,
    )


def _reader(theirs: Any) -> tuple[Tokenizer | None, str]:
    """What reads texts in the place of KerasHub's tokenizer, or why nothing does."""
    if theirs is None:
        return None, "it came without a tokenizer. Give token ids."
    try:
        return converted(theirs), ""
    except ModelError as error:
        return None, str(error)


def _is_decoder(body: Any) -> bool:
    """Whether KerasHub has a causal language model on such a backbone."""
    return isinstance(body, _bodies("CausalLM"))


def _bodies(*tasks: str) -> tuple[type, ...]:
    """The classes of the backbones that KerasHub has such tasks on."""
    models = hub.keras_hub().models
    kinds = tuple(getattr(models, task) for task in tasks)
    classes = [cls for cls in vars(models).values() if isinstance(cls, type)]
    found = [cls.backbone_cls for cls in classes if issubclass(cls, kinds)]
    return tuple(body for body in found if body is not None)


def _fresh(body: Any, spec: BackboneSpec) -> Any:
    """The same architecture on variables of its own."""
    config = body.get_config()
    if getattr(body, "tie_word_embeddings", False) and "tie_word_embeddings" not in config:
        # KerasHub's Llama would come back untied when a saved model is built again.
        return text_decoder.Decoder(
            **_llama_shape(body), dtype=spec.dtype, name=canonical_name(body)
        )
    return type(body).from_config({**config, "dtype": spec.dtype, "name": canonical_name(body)})


def _llama_shape(body: Any) -> dict[str, Any]:
    scaling = None
    if body.rope_low_freq_factor is not None:
        scaling = {
            "factor": body.rope_frequency_adjustment_factor,
            "low_freq_factor": body.rope_low_freq_factor,
            "high_freq_factor": body.rope_high_freq_factor,
            "original_max_position_embeddings": body.rope_pretraining_sequence_length,
        }
    return {
        "block": "llama",
        "vocabulary": body.vocabulary_size,
        "dim": body.hidden_dim,
        "layers": body.num_layers,
        "heads": body.num_query_heads,
        "key_value_heads": body.num_key_value_heads,
        "head_dim": body.hidden_dim // body.num_query_heads,
        "mlp_dim": body.intermediate_dim,
        "epsilon": body.layer_norm_epsilon,
        "rope_theta": body.rope_max_wavelength,
        "rope_llama3": scaling,
        "dropout": body.dropout,
    }


def _plain(body: Any) -> keras.Model:
    """From token ids and padding mask to one tensor, on the layers of `body`."""
    given = set(body.input)
    unknown = given - {"token_ids", "padding_mask", "segment_ids"}
    outputs = body.output
    is_tensor = not isinstance(outputs, dict)
    if unknown or not (is_tensor or "sequence_output" in outputs):
        raise ModelError(
            f"'{body.name}' takes {sorted(given)} and gives "
            f"{'one tensor' if is_tensor else sorted(outputs)}; expected token_ids and padding_mask"
            ", and one tensor of hidden states."
        )
    if given == {"token_ids", "padding_mask"} and is_tensor:
        return body
    inputs = token_inputs()
    arguments = {**inputs, "segment_ids": ops.zeros_like(inputs["token_ids"])}
    # Its call, and not itself: the layers are then this graph's own, under their own names.
    hidden = body.call({name: arguments[name] for name in given})
    return keras.Model(inputs, hidden if is_tensor else hidden["sequence_output"], name=body.name)
