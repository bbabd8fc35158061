"""What each layer with a kernel is for, told from the names that networks give their layers.

A layer goes by its own name and by that of the attribute which holds it: KerasHub's MiT calls all
projections ``dense`` and keeps them as ``q``, ``k`` and ``v``.
"""

from __future__ import annotations

import re

import keras

from tunekit.methods.part import LayerRole
from tunekit.names import layer_names

_SUFFIX = r"(_?(proj|projector|projection|dense|lin))?"
_ATTENTION = re.compile(r"attention|attn|mha", re.IGNORECASE)
_MLP = re.compile(r"mlp|ffn|feed_?forward|intermediate", re.IGNORECASE)
_ROUTER = re.compile(r"sparse_.*|.*expert_gate.*|.*router.*|per_layer_.*")
"""Dense layers that choose experts or gate whole layers: not a part of an MLP."""

# The first match wins.
_ANYWHERE: tuple[tuple[LayerRole, str], ...] = (
    ("qkv", r"(.*_)?(qkv|query_key_value)"),
    ("query", r"(.*_)?query"),
    ("key", r"(.*_)?key"),
    ("value", r"(.*_)?value"),
    ("attention_output", r"(.*_)?attention_output"),
    ("mlp_up", r"(.*_)?(feedforward_intermediate|mlp_intermediate|shared_expert_intermediate)"),
    ("mlp_up", r"(.*_)?(ffw_gating_2|dense_h_to_4h|fc1|c_fc|pointwise_conv_1|mlp_dense_1)"),
    ("mlp_gate", r"(.*_)?(feedforward_gate|ffw_gating)"),
    ("mlp_down", r"(.*_)?(feedforward_output|mlp_output|ffw_linear|shared_expert_output)"),
    ("mlp_down", r"(.*_)?(dense_4h_to_h|fc2|pointwise_conv_2|mlp_dense_2)"),
)
# Inside an attention layer short names say enough.
_IN_ATTENTION: tuple[tuple[LayerRole, str], ...] = (
    ("qkv", r"(.*_)?(qkv|query_key_value|c_attn|in)"),
    ("query", r"(.*_)?(query|q|wq)"),
    ("key", r"(.*_)?(key|k|wk)"),
    ("value", r"(.*_)?(value|v|wv)"),
    ("attention_output", r"(attention_)?(output|out|o|wo|c|attention)?"),
)
# Inside a block these belong to its MLP; at the top of a network they may be anything.
_IN_BLOCK: tuple[tuple[LayerRole, str], ...] = (
    ("mlp_gate", r"gate"),
    ("mlp_up", r"up|input"),
    ("mlp_down", r"down|output"),
)
_IN_MLP: tuple[tuple[LayerRole, str], ...] = (
    ("mlp_up", r"dense_1|linear_1"),
    ("mlp_down", r"dense_2|linear_2|c"),
)
_NO_TOKENS = re.compile(r"(.*_)?(pos|position|positional|segment|type|relative|rel|class)(_.*)?")


def layer_roles(model: keras.Model) -> dict[str, LayerRole]:
    """Returns the role of every layer that an adapter can sit on, by structural name.

    Those are Dense, EinsumDense, Conv1D and Conv2D unless depthwise, and the embeddings of tokens;
    heads are left out, for they train whole, but for a language head, which came with the weights.
    """
    layers = layer_names(model)
    roles: dict[str, LayerRole] = {}
    for name, layer in layers.items():
        parent = layers.get(name.rpartition("/")[0], model)
        fresh = name.startswith("heads/") and name != "heads/lm_head"
        if not fresh and (role := _role(name, layer, parent)):
            roles[name] = role
    return roles


def _role(name: str, layer: keras.Layer, parent: keras.Layer) -> LayerRole | None:
    leaf = name.rpartition("/")[2]
    if isinstance(layer, keras.layers.Embedding):
        return None if _NO_TOKENS.fullmatch(leaf) else "embedding"
    if isinstance(layer, (keras.layers.Conv1D, keras.layers.Conv2D)):
        depthwise = layer.groups > 1 and layer.kernel.shape[-2] == 1
        return None if depthwise else "convolution"
    if not isinstance(layer, (keras.layers.Dense, keras.layers.EinsumDense)):
        return None
    inside = not isinstance(parent, (keras.Model, keras.Sequential))
    words = [*(_attributes(parent, layer) if inside else ()), leaf]
    parent_words = " ".join([type(parent).__name__, name.rpartition("/")[0].rpartition("/")[2]])
    in_mlp = inside and bool(_MLP.search(parent_words))
    if any(_ROUTER.fullmatch(word) for word in words):
        return "linear"
    tables = [_ANYWHERE]
    if inside:
        attends = bool(_ATTENTION.search(parent_words))
        tables += [_IN_ATTENTION] * attends + [_IN_BLOCK] + [_IN_MLP] * in_mlp
    for table in tables:
        for word in words:
            for role, pattern in table:
                if re.fullmatch(f"({pattern}){_SUFFIX}", word):
                    return role
    if in_mlp:
        return "mlp_up"
    return "linear"


def _attributes(parent: keras.Layer, layer: keras.Layer) -> list[str]:
    """The names by which `parent` holds `layer`."""
    return [name.lstrip("_") for name, value in vars(parent).items() if value is layer]
