"""KerasHub's own backbones of tokens, and its causal language models, given as objects."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from tunekit.errors import ModelError
from tunekit.models import hub, text_decoder
from tunekit.models.backbone import Backbone
from tunekit.models.initialisation import seeded, without_values
from tunekit.models.spec import BackboneSpec
from tunekit.models.token_graph import TiedHead, token_inputs
from tunekit.names import canonical_name, structural_names


def takes_tokens(model: Any) -> bool:
    """Returns whether `model`, of KerasHub, or its backbone takes token ids."""
    inputs = getattr(model, "backbone", model).input
    return isinstance(inputs, dict) and any(name.endswith("token_ids") for name in inputs)


def load_object(model: Any, spec: BackboneSpec, *, seed: int) -> Backbone:
    """Returns a copy of a KerasHub backbone of tokens, or of a task's; `model` stays as it was.

    A causal language model brings its head. Segment ids are zeros.

    Raises:
        ModelError: it takes or gives something else than tokens and hidden states, or `spec` has
            an image size or a number of blocks.
    """
    body: Any = getattr(model, "backbone", model)
    if spec.image_size is not None:
        raise ModelError(f"'{model.name}' takes tokens: leave image_size ({spec.image_size}) out.")
    if spec.blocks is not None:
        raise ModelError(
            f"backbone.blocks: '{model.name}' is a model of KerasHub's that takes tokens, which is "
            "kept whole; of a Hugging Face folder the first blocks can be kept."
        )
    with without_values() if spec.pretrained else seeded(seed):
        copy = _fresh(body, spec)
    if spec.pretrained:
        theirs = structural_names(body).values()
        for ours, value in zip(structural_names(copy).values(), theirs, strict=True):
            ours.assign(value)
    embedding = getattr(copy, "token_embedding", None)
    is_language_model = model is not body and "CausalLM" in type(model).__name__
    head = None
    if is_language_model and isinstance(embedding, keras.layers.ReversibleEmbedding):
        # The kernel of an untied head is the embedding's as well.
        head = TiedHead(embedding, dtype=embedding.dtype_policy, name="lm_head")
    return Backbone(
        keras=_plain(copy),
        preprocessing=None,
        features="decoder_states" if _is_decoder(body) else "encoder_states",
        family=type(body).__name__.removesuffix("Backbone").lower(),
        source=model.name,
        takes="tokens",
        vocabulary=getattr(body, "vocabulary_size", None),
        max_length_tokens=getattr(body, "max_sequence_length", None),
        language_head=head,
    )


def _is_decoder(body: Any) -> bool:
    """Whether KerasHub has a causal language model on such a backbone."""
    models = hub.keras_hub().models
    causal = [
        cls
        for cls in vars(models).values()
        if isinstance(cls, type) and issubclass(cls, models.CausalLM) and cls.backbone_cls
    ]
    return any(isinstance(body, cls.backbone_cls) for cls in causal)


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
