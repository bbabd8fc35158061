"""Depth groups: every variable of a model in one group, the groups in the order they run.

A block is one residual block, dense layer or transformer layer. The graph decides what the
blocks are; layer names only help where a graph has no branch to see, as in the blocks of an
EfficientNet that change their width.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import keras

from tunekit.methods.adapter import Adapter
from tunekit.methods.part import layer_of
from tunekit.models.graph import Link, chain, is_block_sized, leaves, sublayers
from tunekit.names import Role, layer_names, structural_names, variable_roles

if TYPE_CHECKING:
    from tunekit.models.model import Model

GroupKind = Literal["stem", "block", "top", "head"]

_BLOCK_NAME = re.compile(
    r"(.*?(?<![a-z])(?:expanded_conv(?:_\d+)?|(?:block|layer|unit)_?\d+[a-z]?))(?:_|$)"
)
_STAGE_NAME = re.compile(r"(?:stage|stack)_?(\d+)|conv(\d+)_block|block(\d+)[a-z](?:_|$)")


@dataclass(frozen=True)
class Group:
    """A part of the model that trains or rests as one."""

    name: str
    """The selector that selects it: "stem", "blocks[3]", "top", "heads/label"."""
    kind: GroupKind
    """The "top" is what stands between the last block and the heads, such as a final norm."""
    variables: tuple[str, ...]
    """Structural names; running statistics and seeds included."""
    layers: tuple[str, ...]
    """Structural names of its layers; those inside them are not listed again."""
    stage: int | None
    """From 1, growing where the resolution falls; `None` where a backbone has no stages."""
    parameters: int
    """Numbers that can be trained."""
    weights: tuple[str, ...]
    """Those of the variables that can be trained: neither statistics nor seeds."""
    added: int = 0
    """How many of its parameters are adapters'."""


# Padding is for the kernel that follows. Dropout changes nothing in inference, and an encoder may
# hold it after its blocks but run it before them.
_NO_ENDS = (keras.layers.ZeroPadding2D, keras.layers.Dropout)


@dataclass(frozen=True)
class _Part:
    """Consecutive links that stay together, on their way to becoming a group."""

    layers: tuple[keras.Layer, ...]
    block: bool
    end: keras.Operation
    """The operation whose output is what goes on."""
    key: str | None = None
    """What the layers' names say of the block they are in."""

    def joined(self, other: _Part) -> _Part:
        """Both parts as one; what either knows of itself holds for it."""
        key = self.key if self.block else other.key or self.key
        end = self.end if isinstance(other.end, _NO_ENDS) else other.end
        return _Part(self.layers + other.layers, self.block or other.block, end, key)


def depth_groups(model: Model) -> tuple[Group, ...]:
    """Returns stem, blocks, top and heads of `model`: together every variable, none twice."""
    root = model.keras
    sorter = _Sorter(root)
    body = root.get_layer("backbone")
    parts = _backbone_parts(body)
    first = next((i for i, part in enumerate(parts) if part.block), len(parts))
    blocks = [part.layers for part in parts if part.block]
    last = first + len(blocks)
    stem = [layer for part in parts[:first] for layer in part.layers]
    top = [layer for part in parts[last:] for layer in part.layers]

    # In running order, so that a layer used twice belongs where it is used first.
    groups = [sorter.group("stem", "stem", stem)]
    groups += [sorter.group(f"blocks[{i}]", "block", block) for i, block in enumerate(blocks)]
    groups.append(sorter.group("top", "top", top))
    if heads := next((child for child in sublayers(root) if child.name == "heads"), None):
        inside = [child for child in sublayers(heads) if any(True for _ in leaves(child))]
        groups += [sorter.group(f"heads/{head.name}", "head", [head]) for head in inside]
    groups[0] = sorter.with_rest(groups[0])
    stages = iter(_stages(blocks, sorter.layer_name))
    groups = [replace(g, stage=next(stages)) if g.kind == "block" else g for g in groups]
    return tuple(group for group in groups if group.variables or group.kind == "block")


def with_adapters(groups: Sequence[Group], adapters: Mapping[str, Adapter]) -> tuple[Group, ...]:
    """Returns the groups with what adapters add to each: where a part sits, its arrays are.

    Args:
        groups: of the network itself.
        adapters: by the prefix of their arrays' names.
    """
    owner = {layer: index for index, group in enumerate(groups) for layer in group.layers}
    added: dict[int, list[tuple[str, Role, int]]] = {}
    for prefix, adapter in adapters.items():
        for part, leaf in ((p, leaf) for p in adapter.parts for leaf in p.leaves):
            # What sits on no layer of a group, such as on the whole network, comes first.
            around = _enclosing(layer_of(part, leaf) or "")
            index = next((owner[layer] for layer in around if layer in owner), 0)
            name = f"{prefix}/{part.name}/{leaf.name}"
            added.setdefault(index, []).append((name, leaf.role, math.prod(leaf.shape)))
    return tuple(_with_added(group, added.get(index, ())) for index, group in enumerate(groups))


def _with_added(group: Group, added: Iterable[tuple[str, Role, int]]) -> Group:
    added = tuple(added)
    weights = [(name, size) for name, role, size in added if role == "weight"]
    return replace(
        group,
        variables=group.variables + tuple(name for name, _, _ in added),
        weights=group.weights + tuple(name for name, _ in weights),
        parameters=group.parameters + sum(size for _, size in weights),
        added=sum(size for _, size in weights),
    )


def _enclosing(name: str) -> Iterator[str]:
    """The name, and those of the layers it is inside of, the nearest first."""
    parts = name.split("/")
    return ("/".join(parts[:length]) for length in range(len(parts), 0, -1))


def block_ends(body: keras.Model) -> tuple[keras.Operation, ...]:
    """Returns the operation that ends each block of `body`: its output is what goes on."""
    parts = _backbone_parts(body)
    return tuple(part.end for part in parts if part.block)


class _Sorter:
    """Hands every variable and layer of a model out once."""

    def __init__(self, root: keras.Model) -> None:
        self.variables = structural_names(root)
        self.layer_name = {id(layer): name for name, layer in layer_names(root).items()}
        self.roles = variable_roles(root)
        self.left = dict(self.variables)

    def group(self, name: str, kind: GroupKind, layers: Iterable[keras.Layer]) -> Group:
        names = tuple(dict.fromkeys(self.layer_name[id(layer)] for layer in layers))
        prefixes = tuple(f"{name}/" for name in names)
        mine = tuple(v for v in self.left if v.startswith(prefixes))
        for variable in mine:
            del self.left[variable]
        return self.made(name, kind, mine, names)

    def made(
        self, name: str, kind: GroupKind, variables: tuple[str, ...], layers: tuple[str, ...]
    ) -> Group:
        weights = tuple(name for name in variables if self.roles[name] == "weight")
        parameters = sum(math.prod(self.variables[name].shape) for name in weights)
        return Group(name, kind, variables, layers, None, parameters, weights)

    def with_rest(self, stem: Group) -> Group:
        """Adds to `stem` what no layer of the chain owns, such as an encoder's own weights.

        There it trains last, and only together with everything above it.
        """
        return self.made(stem.name, stem.kind, (*self.left, *stem.variables), stem.layers)


def _backbone_parts(body: keras.Layer) -> list[_Part]:
    """The chain of `body` with its blocks marked: loose parts, then blocks, then loose parts."""
    links = chain(body)
    classes = Counter(type(link.layers[0]) for link in links if _is_single_composite(link))
    repeated = {cls for cls, count in classes.items() if count > 1}
    if not repeated and not any(_is_branched(link) for link in links):
        repeated = set(classes)
    parts = [_part(link, repeated) for link in links]
    parts = _name_blocks(_pair_attention(_join_loose(parts)))
    if not any(part.block for part in parts):
        return _units(parts)
    return _attach_loose(parts)


def _part(link: Link, block_classes: Collection[type]) -> _Part:
    composite = any(type(layer) in block_classes for layer in link.layers[:1])
    return _Part(link.layers, composite or _is_branched(link), link.end, _key(link.layers))


def _is_branched(link: Link) -> bool:
    """Whether branches meet here, other than embeddings of tokens, positions and segments."""
    weighted = [layer for layer in link.layers if layer.variables]
    return link.branched and not all("Embedding" in type(layer).__name__ for layer in weighted)


def _is_single_composite(link: Link) -> bool:
    return len(link.layers) == 1 and is_block_sized(link.layers[0])


def _key(layers: Iterable[keras.Layer]) -> str | None:
    for layer in layers:
        if layer.variables and (found := _BLOCK_NAME.match(layer.name)):
            return found[1]
    return None


def _join_loose(parts: Sequence[_Part]) -> list[_Part]:
    """Joins neighbours that are no blocks, where their names agree or one has no weights."""
    joined: list[_Part] = []
    for part in parts:
        before = joined[-1] if joined else None
        weightless = not _weighted(part)
        loose = before is not None and not before.block
        if before and not part.block and (weightless or (loose and _agree(before, part))):
            joined[-1] = replace(before.joined(part), key=before.key or part.key)
        else:
            joined.append(part)
    return joined


def _agree(before: _Part, part: _Part) -> bool:
    return before.key == part.key or not _weighted(before)


def _pair_attention(parts: Sequence[_Part]) -> list[_Part]:
    """Joins a residual branch with attention to the residual branch without that follows it."""
    paired: list[_Part] = []
    for part in parts:
        half = bool(paired) and paired[-1].block and _attends(paired[-1])
        if half and part.block and len(part.layers) > 1 and not _attends(part):
            paired[-1] = paired[-1].joined(part)
        else:
            paired.append(part)
    return paired


def _attends(part: _Part) -> bool:
    """Whether the part is a bare attention branch: with attention beside it, not inside a block."""
    return len(part.layers) > 1 and any("Attention" in type(x).__name__ for x in part.layers)


def _name_blocks(parts: Sequence[_Part]) -> list[_Part]:
    """Makes blocks of loose parts that bear a name of their own, or are long enough without."""
    named: list[_Part] = []
    for i, part in enumerate(parts):
        between = any(p.block for p in parts[:i]) and any(p.block for p in parts[i:])
        alone = part.key not in {p.key for p in (*parts[max(i - 1, 0) : i], *parts[i + 1 : i + 2])}
        kernels = len(_kernels(part))
        is_block = kernels > 0 if part.key else between and kernels > 1
        named.append(replace(part, block=part.block or (alone and is_block)))
    return named


def _attach_loose(parts: Sequence[_Part]) -> list[_Part]:
    """Joins what is loose between two blocks to the block it leads into, or is named after."""
    attached: list[_Part] = []
    for part in parts:
        before = attached[-1] if attached else None
        if before and before.block and not part.block and part.key and part.key == before.key:
            attached[-1] = before.joined(part)
        elif before and not before.block and part.block and _leads_into(attached, part):
            attached[-1] = before.joined(part)
        else:
            attached.append(part)
    return attached


def _leads_into(before: Sequence[_Part], block: _Part) -> bool:
    """A loose part is the stem's until the first block, unless it bears the block's name."""
    return any(part.block for part in before) or before[-1].key == block.key is not None


def _units(parts: Sequence[_Part]) -> list[_Part]:
    """A plain chain: every kernel opens a block, unless a depthwise one has; the first: stem."""
    units: list[_Part] = []
    for unit in (unit for part in parts for unit in _single_layers(part)):
        if units and (not _kernels(unit) or not _kernels(units[-1]) or _is_depthwise(units[-1])):
            units[-1] = units[-1].joined(unit)
        else:
            units.append(unit)
    if len(units) > 1:
        units[0] = replace(units[0], block=False)
    return units


def _single_layers(part: _Part) -> list[_Part]:
    """A part for each layer; the last ends as `part` does."""
    units = [_Part((layer,), block=True, end=layer) for layer in part.layers]
    return [*units[:-1], *(replace(unit, end=part.end) for unit in units[-1:])]


def _is_depthwise(part: _Part) -> bool:
    """Whether the last kernel mixes no channels: the one after it, which does, completes it."""
    kernels = _kernels(part)
    return bool(kernels) and isinstance(kernels[-1], keras.layers.DepthwiseConv2D)


def _weighted(part: _Part) -> bool:
    return any(layer.variables for layer in part.layers)


def _kernels(part: _Part) -> list[keras.Layer]:
    """Layers in `part` with a weight matrix: convolutions and dense layers, not norms."""
    inside = (leaf for layer in part.layers for leaf in leaves(layer))
    return [leaf for leaf in inside if any(len(v.shape) > 1 for v in leaf.variables)]


def _stages(
    blocks: Sequence[tuple[keras.Layer, ...]], layer_name: dict[int, str]
) -> list[int | None]:
    """The stage of each block: from the names where all of them say, else from the strides."""
    said = [_said_stage(layer_name[id(x)] for x in block if x.variables) for block in blocks]
    if None not in said:
        order = list(dict.fromkeys(said))
        numbers = [order.index(stage) + 1 for stage in said]
    else:
        numbers, stage = [], 1
        for i, block in enumerate(blocks):
            stage += i > 0 and any(_strided(layer) for layer in block)
            numbers.append(stage)
    return list(numbers) if len(set(numbers)) > 1 else [None] * len(blocks)


def _said_stage(names: Iterable[str]) -> str | None:
    # The last name: what is attached before a block may still be named after the stage it leaves.
    found = [match for name in names if (match := _STAGE_NAME.search(name))]
    return found[-1][found[-1].lastindex or 0] if found else None


def _strided(layer: keras.Layer) -> bool:
    if "Attention" in type(layer).__name__:
        return False  # Strides inside thin out keys and values, not the output.
    strides = getattr(layer, "strides", 1)
    largest = strides if isinstance(strides, int) else max(strides, default=1)
    return largest > 1 or any(_strided(child) for child in sublayers(layer))
