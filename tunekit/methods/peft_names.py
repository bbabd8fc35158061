"""What the layers of a network are called in the Hugging Face model that it came from.

PEFT names an adapter's tensors by the modules of that model. Most are one layer here; GPT-2's fused
``c_attn`` is three. A family is a table: the layers on the left, below "backbone/"; the modules on
the right, below the attribute that holds the body in a model with a head. ``{}`` is a number, the
same on both sides.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from tunekit.errors import ModelError, did_you_mean


@dataclass(frozen=True)
class Module:
    """A module of a Hugging Face model, and the layers that it is here."""

    path: str
    """Its name in transformers 5: "bert.encoder.layer.0.output.dense"."""
    spellings: frozenset[str]
    """Every name that files have for it: older ones, and those without the body's prefix."""
    layers: tuple[str | None, ...]
    """Structural names. Several share the module's outputs in this order; `None` is one that the
    network lacks."""
    in_block: bool
    """Whether each block of the network has one."""


@dataclass(frozen=True)
class Family:
    """The names of one ``model_type``."""

    body: str
    """The attribute of the body in a model with a head."""
    names: Mapping[str, str]
    """Layer to module; layers of one module are its parts, in this order."""
    head: tuple[str, ...]
    """Modules of the task's head."""
    older: tuple[tuple[str, str], ...] = ()
    """(pattern, replacement) that turn a module's name into that of transformers 4."""
    first_block: int = 0
    """The number of the first block's layers here; of its modules it is 0."""
    transposed: bool = False
    """Whether its dense modules keep their weights as [in, out] ("fan_in_fan_out")."""


_DECODER_BLOCK = {
    "self_attention/query": "self_attn.q_proj",
    "self_attention/key": "self_attn.k_proj",
    "self_attention/value": "self_attn.v_proj",
    "self_attention/attention_output": "self_attn.o_proj",
    "feedforward_gate_dense": "mlp.gate_proj",
    "feedforward_intermediate_dense": "mlp.up_proj",
    "feedforward_output_dense": "mlp.down_proj",
}
_GEMMA_BLOCK = {
    "attention/query": "self_attn.q_proj",
    "attention/key": "self_attn.k_proj",
    "attention/value": "self_attn.v_proj",
    "attention/attention_output": "self_attn.o_proj",
    "ffw_gating": "mlp.gate_proj",
    "ffw_gating_2": "mlp.up_proj",
    "ffw_linear": "mlp.down_proj",
}
_GPT2_BLOCK = {
    "self_attention/query": "attn.c_attn",
    "self_attention/key": "attn.c_attn",
    "self_attention/value": "attn.c_attn",
    "self_attention/attention_output": "attn.c_proj",
    "feedforward_intermediate_dense": "mlp.c_fc",
    "feedforward_output_dense": "mlp.c_proj",
    "self_attention_layer_norm": "ln_1",
    "feedforward_layer_norm": "ln_2",
}
_BERT_BLOCK = {
    "self_attention_layer/query": "attention.self.query",
    "self_attention_layer/key": "attention.self.key",
    "self_attention_layer/value": "attention.self.value",
    "self_attention_layer/attention_output": "attention.output.dense",
    "self_attention_layer_norm": "attention.output.LayerNorm",
    "feedforward_intermediate_dense": "intermediate.dense",
    "feedforward_output_dense": "output.dense",
    "feedforward_layer_norm": "output.LayerNorm",
}
_DISTILBERT_BLOCK = {
    "self_attention_layer/query": "attention.q_lin",
    "self_attention_layer/key": "attention.k_lin",
    "self_attention_layer/value": "attention.v_lin",
    "self_attention_layer/attention_output": "attention.out_lin",
    "self_attention_layer_norm": "sa_layer_norm",
    "feedforward_intermediate_dense": "ffn.lin1",
    "feedforward_output_dense": "ffn.lin2",
    "feedforward_layer_norm": "output_layer_norm",
}
_VIT_BLOCK = {
    "ln_1": "layernorm_before",
    "mha/query": "attention.q_proj",
    "mha/key": "attention.k_proj",
    "mha/value": "attention.v_proj",
    "mha/attention_output": "attention.o_proj",
    "ln_2": "layernorm_after",
    "mlp/dense": "mlp.fc1",
    "mlp/dense_1": "mlp.fc2",
}
_DINOV2_BLOCK = {
    "norm1": "norm1",
    "attention/attention/query": "attention.q_proj",
    "attention/attention/key": "attention.k_proj",
    "attention/attention/value": "attention.v_proj",
    "attention/attention/attention_output": "attention.o_proj",
    "norm2": "norm2",
    "mlp/fc1": "mlp.fc1",
    "mlp/fc2": "mlp.fc2",
}
# Renamed in transformers 5 (its conversion_mapping.py); the rest of ViT's names follow below.
_OLDER_ATTENTION = (
    (r"attention\.q_proj$", "attention.attention.query"),
    (r"attention\.k_proj$", "attention.attention.key"),
    (r"attention\.v_proj$", "attention.attention.value"),
    (r"attention\.o_proj$", "attention.output.dense"),
)
_STAGES = "encoder.stages.{}.layers.{}."


def _blocks(ours: str, theirs: str, block: Mapping[str, str]) -> dict[str, str]:
    return {f"{ours}/{layer}": f"{theirs}.{module}" for layer, module in block.items()}


def _decoder(block: Mapping[str, str]) -> Family:
    blocks = _blocks("transformer_layer_{}", "layers.{}", block)
    return Family("model.", {"token_embedding": "embed_tokens"} | blocks, head=("score",))


def _bert(body: str) -> Family:
    names = {
        "token_embedding": "embeddings.word_embeddings",
        "segment_embedding": "embeddings.token_type_embeddings",
        "embeddings_layer_norm": "embeddings.LayerNorm",
        "pooled_dense": "pooler.dense",
    }
    blocks = _blocks("transformer_layer_{}", "encoder.layer.{}", _BERT_BLOCK)
    return Family(body, names | blocks, head=("classifier",))


def _dinov2(body: str) -> Family:
    patches = "embeddings.patch_embeddings.projection"
    names = {"embeddings/patch_embeddings/projection": patches, "layernorm": "layernorm"}
    blocks = _blocks("encoder/layers_{}", "encoder.layer.{}", _DINOV2_BLOCK)
    return Family(body, names | blocks, head=("classifier",), older=_OLDER_ATTENTION)


FAMILIES = {
    **dict.fromkeys(("llama", "mistral", "qwen2"), _decoder(_DECODER_BLOCK)),
    "gemma": _decoder(_GEMMA_BLOCK),
    "gpt2": Family(
        "transformer.",
        {"token_embedding": "wte", "final_norm": "ln_f"}
        | _blocks("transformer_layer_{}", "h.{}", _GPT2_BLOCK),
        head=("score",),
        transposed=True,
    ),
    "bert": _bert("bert."),
    "roberta": _bert("roberta."),
    "distilbert": Family(
        "distilbert.",
        {
            "token_embedding": "embeddings.word_embeddings",
            "embeddings_layer_norm": "embeddings.LayerNorm",
        }
        | _blocks("transformer_layer_{}", "transformer.layer.{}", _DISTILBERT_BLOCK),
        head=("pre_classifier", "classifier"),
    ),
    "vit": Family(
        "vit.",
        {
            "vit_patching_and_embedding/patch_embedding": "embeddings.patch_embeddings.projection",
            "vit_encoder/ln": "layernorm",
        }
        | _blocks("vit_encoder/transformer_block_{}", "layers.{}", _VIT_BLOCK),
        head=("classifier",),
        older=(
            *_OLDER_ATTENTION,
            (r"^layers(\.\d+)\.mlp\.fc1$", r"layers\1.intermediate.dense"),
            (r"^layers(\.\d+)\.mlp\.fc2$", r"layers\1.output.dense"),
            (r"^layers\.", "encoder.layer."),
        ),
        first_block=1,
    ),
    "dinov2": _dinov2("dinov2."),
    "dinov2_with_registers": _dinov2("dinov2_with_registers."),
    "resnet": Family(
        "resnet.",
        {
            "conv1_conv": "embedder.embedder.convolution",
            "conv1_bn": "embedder.embedder.normalization",
        }
        | {
            f"stack{{}}_block{{}}_{number}_{ours}": f"{_STAGES}{place}.{theirs}"
            for number, place in enumerate(("shortcut", "layer.0", "layer.1", "layer.2"))
            for ours, theirs in (("conv", "convolution"), ("bn", "normalization"))
        },
        head=("classifier.1",),
    ),
}
# KerasHub's own classes, of presets: their names for families and for layers.
_KERAS_HUB_FAMILIES = {"llama3": "llama", "qwen": "qwen2", "xlmroberta": "roberta"}
_KERAS_HUB_LAYERS = (
    (r"^decoder_block_", "transformer_layer_"),
    (r"^(embeddings|token_and_position_embedding)/token_embedding$", "token_embedding"),
    (r"^layer_norm$", "final_norm"),
)
_LANGUAGE_HEAD = "heads/lm_head"


def is_known(name: str) -> bool:
    """Whether the names of the family are known."""
    return _KERAS_HUB_FAMILIES.get(name, name) in FAMILIES


def family_of(name: str) -> Family:
    """Returns the names of the family.

    Raises:
        ModelError: they are not known.
    """
    name = _KERAS_HUB_FAMILIES.get(name, name)
    if name not in FAMILIES:
        raise ModelError(
            f"PEFT's files name modules of Hugging Face models, and for the family '{name}' the "
            f"names are not known; they are for {', '.join(FAMILIES)}."
            f"{did_you_mean(name, FAMILIES)} Save the whole model instead: result.save(path)."
        )
    return FAMILIES[name]


def modules_of(family: Family, layers: Iterable[str]) -> list[Module]:
    """Returns the modules of the family's Hugging Face model that the layers are.

    Args:
        family: of the backbone.
        layers: structural names; those that no module has a name for are left out.
    """
    found: dict[str, list[str | None]] = {}
    in_block = set()
    rows = _rows(family)
    for layer in layers:
        if layer == _LANGUAGE_HEAD:
            found["lm_head"] = [layer]
        if not layer.startswith("backbone/"):
            continue
        for shape, module, part, parts in rows:
            if match := shape.fullmatch(_plain(layer)):
                path = module.format(*(int(text) - family.first_block for text in match.groups()))
                found.setdefault(path, [None] * parts)[part] = layer
                in_block.update([path] if match.groups() else [])
    return [
        _module(family, path, tuple(parts), in_block=path in in_block)
        for path, parts in found.items()
    ]


def _rows(family: Family) -> list[tuple[re.Pattern[str], str, int, int]]:
    """(pattern of layers, module, which part of the module, of how many) for each name."""
    rows, seen, parts = [], Counter(), Counter(family.names.values())
    for layer, module in family.names.items():
        shape = re.compile(re.escape(layer).replace(r"\{\}", r"(\d+)"))
        rows.append((shape, module, seen[module], parts[module]))
        seen[module] += 1
    return rows


def _plain(layer: str) -> str:
    name = layer.removeprefix("backbone/")
    for pattern, replacement in _KERAS_HUB_LAYERS:
        name = re.sub(pattern, replacement, name)
    return name


def _module(family: Family, path: str, layers: tuple[str | None, ...], *, in_block: bool) -> Module:
    if path == "lm_head":
        return Module(path, frozenset([path]), layers, in_block)
    older = path
    for pattern, replacement in family.older:
        older = re.sub(pattern, replacement, older)
    bare = {path, older}
    whole = {family.body + name for name in bare}
    return Module(family.body + path, frozenset(bare | whole), layers, in_block)
