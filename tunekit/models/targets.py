"""Where an adapter sits, in words: what each layer of a network is for, and targets to layers.

| target | layers |
|---|---|
| ``auto`` | the method's own choice, never empty |
| ``attention`` | ``query``, ``key``, ``value``, ``qkv`` (the three in one) and ``output`` |
| ``mlp`` | ``mlp.up``, ``mlp.gate`` and ``mlp.down`` |
| ``linear`` | every dense layer of the backbone: no head, no language head |
| ``convolutions`` | every one that mixes channels: no depthwise |
| ``embeddings`` | of tokens |
| ``q_proj``, ``mlp/fc1`` | layers whose names end so; else what PEFT's users call so |
| ``backbone/.*/query`` | names that the pattern (a regular expression) matches whole |

Several, in a list or separated by commas, are united; ``!mlp`` takes away from what stands before
it. ``within`` keeps those in some depth: ``last 4``, ``blocks[2:]``, as in `resolve_selection`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from tunekit.errors import SelectionError, did_you_mean
from tunekit.methods import spec as methods
from tunekit.methods.part import LayerRole, Places
from tunekit.models.layer_roles import layer_roles
from tunekit.models.selection import selected_groups, split_selectors

if TYPE_CHECKING:
    from tunekit.models.model import Model

_MLP = ("mlp_up", "mlp_gate", "mlp_down")
_ATTENTION = ("query", "key", "value", "qkv", "attention_output")
_WORDS: dict[str, tuple[LayerRole, ...]] = {
    "attention": _ATTENTION,
    "query": ("query",),
    "key": ("key",),
    "value": ("value",),
    "qkv": ("qkv",),
    "output": ("attention_output",),
    "mlp": _MLP,
    "mlp.up": ("mlp_up",),
    "mlp.gate": ("mlp_gate",),
    "mlp.down": ("mlp_down",),
    "linear": (*_ATTENTION, *_MLP, "linear"),
    "convolutions": ("convolution",),
    "embeddings": ("embedding",),
}
# What Hugging Face's models call their modules, and so the target_modules of PEFT.
_ALIASES: dict[str, tuple[LayerRole, ...]] = {
    **dict.fromkeys(("q_proj", "q_lin", "q", "query_proj", "query_dense"), ("query",)),
    **dict.fromkeys(("k_proj", "k_lin", "k", "key_proj", "key_dense"), ("key",)),
    **dict.fromkeys(("v_proj", "v_lin", "v", "value_proj", "value_dense"), ("value",)),
    **dict.fromkeys(("c_attn", "query_key_value", "qkv_proj"), ("query", "key", "value", "qkv")),
    **dict.fromkeys(("o_proj", "out_proj", "out_lin", "o"), ("attention_output",)),
    **dict.fromkeys(("up_proj", "fc1", "lin1", "c_fc", "intermediate.dense"), ("mlp_up",)),
    **dict.fromkeys(("down_proj", "fc2", "lin2", "wo", "mlp.c_proj"), ("mlp_down",)),
    **dict.fromkeys(("dense_h_to_4h", "wi"), ("mlp_up",)),
    "dense_4h_to_h": ("mlp_down",),
    "gate_proj": ("mlp_gate",),
    "c_proj": ("attention_output", "mlp_down"),
    "all-linear": _WORDS["linear"],
    **dict.fromkeys(("embed_tokens", "word_embeddings", "wte"), ("embedding",)),
}
_AUTO: dict[type, tuple[str, ...]] = {
    methods.LoRA: ("query, value, qkv", "convolutions, linear", "embeddings"),
    methods.VeRA: ("query, value, qkv", "linear"),
    methods.IA3: ("key, value, qkv, mlp.down", "convolutions, linear"),
    methods.Bottleneck: ("output, mlp", "convolutions, linear"),
    methods.PrefixTuning: ("key, value",),
    methods.PromptTuning: ("embeddings",),
}


def resolve_targets(
    targets: str | Sequence[str],
    model: Model,
    *,
    within: str | Sequence[str] = "all",
    default: Sequence[str] = _AUTO[methods.LoRA],
) -> tuple[str, ...]:
    """Returns the structural names of the layers that `targets` name, in running order.

    Args:
        targets: one target, several separated by commas, or a list of such.
        model: whose heads are never a target.
        within: selectors of depth; "all" is everywhere.
        default: what "auto" means: the first of these targets that the model has.

    Raises:
        SelectionError: a target names no layer that an adapter can sit on, or none is within.

    Example:
        >>> model = load_model("efficientnet_lite0", labels=["cat", "dog"])
        >>> resolve_targets("convolutions", model, within="blocks[1]")[:1]
        ('backbone/block2a_expand_conv',)
    """
    layers = _Layers(model)
    chosen: set[str] = set()
    pieces = split_selectors(targets)
    if not pieces:
        raise SelectionError("no target is given. Name layers, such as 'attention' or 'auto'.")
    if pieces[0].startswith("!"):
        raise SelectionError(
            f"'{pieces[0]}' has nothing before it to take from. Write 'linear, {pieces[0]}'."
        )
    for piece in pieces:
        bare = piece.removeprefix("!").strip()
        named = layers.first_of(default) if bare == "auto" else layers.named(bare, piece)
        chosen = chosen - named if piece.startswith("!") else chosen | named
    groups = selected_groups(within, model)
    kept = tuple(name for name in layers.order if name in chosen and layers.group[name] in groups)
    if not kept:
        raise SelectionError(_nothing_left(targets, within, [layers.group[x] for x in chosen]))
    return kept


def targets_of(spec: methods.AdapterSpec, model: Model) -> tuple[str, ...]:
    """Returns the layers that the adapter `spec` is for; of a visual prompt there are none.

    Prefixes and prompts have none either on a network that has no place for them.

    Raises:
        SelectionError: its targets name no layer that an adapter can sit on.
    """
    if isinstance(spec, methods.VisualPrompt):
        return ()
    if isinstance(spec, methods.PrefixTuning | methods.PromptTuning):
        wanted = {"key"} if isinstance(spec, methods.PrefixTuning) else {"embedding"}
        if not wanted & set(layer_roles(model.keras).values()):
            return ()  # The method itself says why it has no place here.
    targets, within = getattr(spec, "targets", "auto"), getattr(spec, "within", "all")
    return resolve_targets(targets, model, within=within, default=_AUTO[type(spec)])


def places_of(model: Model, targets: tuple[str, ...]) -> Places:
    """Returns `model` as an adapter sees it.

    Args:
        model: the network with its heads.
        targets: structural names of layers, as `resolve_targets` gives them.
    """
    return Places(
        layers=model._inference.layers,
        targets=targets,
        roles=layer_roles(model.keras),
        blocks=tuple(group.layers for group in model.groups() if group.kind == "block"),
        takes=getattr(model.backbone, "takes", "images"),
        prefix_tokens=model.backbone.prefix_tokens,
        weights={name: variable.value for name, variable in model.variables().items()},
    )


class _Layers:
    """The layers that an adapter can sit on, by every way to name them."""

    def __init__(self, model: Model) -> None:
        self.roles = layer_roles(model.keras)
        owner = {layer: group.name for group in model.groups() for layer in group.layers}
        order = {layer: place for place, layer in enumerate(owner)}
        outermost = {name: _outermost(name, owner) for name in self.roles}
        self.group = {name: owner.get(outer, "stem") for name, outer in outermost.items()}
        # Within one of a group's layers the walk is in running order.
        self.order = sorted(self.roles, key=lambda name: order.get(outermost[name], -1))

    def named(self, target: str, written: str) -> set[str]:
        """Returns the layers of one target; `written` is how the user put it."""
        if target in _WORDS:
            found = self._of(_WORDS[target])
        else:
            found = {x for x in self.roles if f"/{x}".endswith(f"/{target}")}
            found = found or self._of(_ALIASES.get(target, ())) or self._matching(target, written)
        if not found:
            raise SelectionError(f"'{written}' names no layer of this model. {self._hint(target)}")
        return found

    def first_of(self, targets: Sequence[str]) -> set[str]:
        """Returns the layers of the first of the `targets` that there are any of."""
        for target in targets:
            words = [_WORDS[word] for word in split_selectors(target)]
            if found := self._of([role for roles in words for role in roles]):
                return found
        raise SelectionError(f"'auto' is {' or else '.join(targets)}. {self._has()}")

    def _of(self, roles: Iterable[LayerRole]) -> set[str]:
        wanted = set(roles)
        return {
            name
            for name, role in self.roles.items()
            # A language head is of the backbone's kind, but not in it.
            if role in wanted and name.startswith("backbone/")
        }

    def _matching(self, pattern: str, written: str) -> set[str]:
        try:
            compiled = re.compile(pattern)
        except re.error as error:
            raise SelectionError(f"'{written}' is not a regular expression: {error}.") from error
        return {name for name in self.roles if compiled.fullmatch(name)}

    def _hint(self, target: str) -> str:
        if target in ("query", "key", "value") and self._of(("qkv",)):
            return "Here query, key and value are one layer: 'qkv'."
        leaves = {name.rpartition("/")[2] for name in self.roles}
        near = did_you_mean(target, [*_WORDS, *_ALIASES, *leaves]).strip()
        has_all = target in _WORDS or target in _ALIASES
        return self._has() if has_all or not near else f"{near} {self._has()}"

    def _has(self) -> str:
        """What the model offers, and by which words."""
        if not self.roles:
            return "It has no dense, convolution or embedding layer that an adapter can sit on."
        there = set(self.roles.values())
        words = [word for word, roles in _WORDS.items() if there & set(roles)]
        first = next(iter(self.order))
        return f"It has {', '.join(words)}; the first of {len(self.roles)} layers is '{first}'."


def _outermost(name: str, owner: Mapping[str, str]) -> str:
    """The layer of a depth group that `name` is, or is inside of; "" where there is none."""
    while name and name not in owner:
        name = name.rpartition("/")[0]
    return name


def _nothing_left(
    targets: str | Sequence[str], within: str | Sequence[str], groups: Sequence[str]
) -> str:
    where = ", ".join(sorted(set(groups))) or "nowhere, for a '!' took all away"
    return (
        f"targets {targets!r} within {within!r} leave no layer: what the targets name is in "
        f"{where}. Widen within, or name other targets."
    )
