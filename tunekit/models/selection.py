"""What trains, in words: selectors to structural names.

| selector | selects |
|---|---|
| ``all``, ``none``, ``head``, ``backbone`` | what they say |
| ``stem``, ``blocks``, ``top`` | before the blocks; the blocks; between them and the heads |
| ``last 2`` | the last two blocks and the top, not the head |
| ``first 2`` | the first two blocks and the stem |
| ``blocks[3]``, ``blocks[-4:]`` | these blocks alone, counted as in Python |
| ``stage>=3`` | blocks by stage, from 1; also ``>``, ``<``, ``<=``, ``==``, ``!=`` |
| ``norm``, ``bias``, ``embeddings`` | by the kind of variable, everywhere; a norm's beta is both |
| ``adapter`` | what the adapters train; the three kinds above are of the network itself |
| ``backbone/.*/kernel`` | names that the pattern (a regular expression) matches whole |

Several, in a list or separated by commas, are united in order; ``!norm`` takes away from what
stands before it. Only what can be trained is ever selected: no running statistics, no seeds.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from tunekit.errors import SelectionError, did_you_mean
from tunekit.rules import matching

if TYPE_CHECKING:
    from tunekit.models.depth import Group
    from tunekit.models.model import Model

_COUNTED = re.compile(r"(last|first) +(\d+)")
_INDEXED = re.compile(r"blocks\[ *(-?\d*) *(?:(:) *(-?\d*) *)?\]")
_STAGED = re.compile(r"stage *(>=|<=|==|!=|>|<) *(\d+)")
_COMPARE: dict[str, Callable[[int, int], bool]] = {
    ">=": operator.ge,
    "<=": operator.le,
    "==": operator.eq,
    "!=": operator.ne,
    ">": operator.gt,
    "<": operator.lt,
}
_KINDS = {"stem": "stem", "blocks": "block", "top": "top", "head": "head"}
_EMBEDDINGS = re.compile(
    r"(.*_)?(embeddings?|pos_embed|(cls|class|mask|dist|distillation|register)_tokens?)"
)
BIASES = ("bias", "/beta")
"""Ends of the names of biases: what Keras calls beta is the bias of a norm everywhere else."""
_ADAPTERS = "adapters/"
"""What the names of the adapters' variables begin with."""
_WORDS = ("all", "none", "backbone", *_KINDS, "norm", "bias", "embeddings", "adapter")
_EXAMPLES = (*_WORDS, "last 2", "first 2", "blocks[-2:]", "stage>=3")


def resolve_selection(selectors: str | Sequence[str], model: Model) -> frozenset[str]:
    """Returns the structural names of the variables that `selectors` select in `model`.

    Args:
        selectors: one selector, several separated by commas, or a list of such.
        model: its heads included; statistics and seeds are never selected.

    Raises:
        SelectionError: a selector is not of the grammar, or selects nothing.

    Example:
        >>> model = load_model("efficientnet_lite0", labels=["cat", "dog"])
        >>> sorted(resolve_selection("head", model))
        ['heads/label/logits/bias', 'heads/label/logits/kernel']
    """
    return frozenset(_united(_checked(selectors), _Parts(model).select))


def selected_groups(selectors: str | Sequence[str], model: Model) -> frozenset[str]:
    """Returns the names of the depth groups that `selectors` select: "stem", "blocks[3]", "top".

    Args:
        selectors: of depth alone, such as "last 4" or "blocks[2:]".
        model: its heads included.

    Raises:
        SelectionError: a selector is not of the grammar, is not of depth, or selects no group.

    Example:
        >>> model = load_model("efficientnet_lite0", labels=["cat", "dog"])
        >>> sorted(selected_groups("last 2", model))
        ['blocks[14]', 'blocks[15]', 'top']
    """
    return frozenset(_united(_checked(selectors), _Parts(model).select_groups))


def _checked(selectors: str | Sequence[str]) -> list[str]:
    split = split_selectors(selectors)
    if not split:
        raise SelectionError("no selector is given. Name what trains, such as 'head' or 'last 2'.")
    if issues := syntax_issues(split):
        raise SelectionError("\n".join(issues))
    return split


def _united(split: Sequence[str], select: Callable[[str, str], set[str]]) -> set[str]:
    """What the selectors select one after the other, each taken bare and as it was written."""
    chosen: set[str] = set()
    for selector in split:
        if selector.startswith("!"):
            chosen -= select(selector.removeprefix("!").strip(), selector)
        else:
            chosen |= select(selector, selector)
    return chosen


def syntax_issues(selectors: str | Sequence[str]) -> list[str]:
    """Returns what can be said against `selectors` before the model is known; of none, nothing.

    Example:
        >>> syntax_issues("hed")
        ["'hed' is no selector. Did you mean 'head'?"]
    """
    split = split_selectors(selectors)
    issues = [issue for selector in split if (issue := _syntax_issue(selector))]
    if split and split[0].startswith("!"):
        issues.append(f"'{split[0]}' has nothing before it to take from. Write 'all, {split[0]}'.")
    return issues


def _syntax_issue(selector: str) -> str | None:
    bare = selector.removeprefix("!").strip()
    if bare in _WORDS or _INDEXED.fullmatch(bare) and bare != "blocks[]":
        return None
    if counted := _COUNTED.fullmatch(bare) or _STAGED.fullmatch(bare):
        return None if int(counted[2]) else f"'{selector}' counts from 1, got 0."
    # Every name has a slash in it, so what can match one has a slash or a wildcard.
    if not re.search(r"[/.*\\]", bare):
        hint = did_you_mean(bare, _EXAMPLES)
        words = f" Expected a pattern of names, or one of {', '.join(_EXAMPLES)}."
        return f"'{selector}' is no selector.{hint or words}"
    try:
        re.compile(bare)
    except re.error as error:
        return f"'{selector}' is not a regular expression: {error}."
    return None


def split_selectors(selectors: str | Sequence[str]) -> list[str]:
    """Returns selectors one by one; a comma inside brackets belongs to a pattern."""
    texts = [selectors] if isinstance(selectors, str) else selectors
    pieces = [piece for text in texts for piece in re.split(r",(?![^\[({]*[\])}])", text)]
    return [piece.strip() for piece in pieces if piece.strip()]


class _Parts:
    """The trainable names of a model, by every way to select them."""

    def __init__(self, model: Model) -> None:
        self.model = model
        self.names = model.weight_names()
        self.groups = model.groups()
        self.blocks = [group for group in self.groups if group.kind == "block"]

    def select(self, selector: str, written: str) -> set[str]:
        """Returns the names of one selector; `written` is how the user put it."""
        if selector == "none":
            return set()
        names = self._select(selector, written)
        if not names:
            raise SelectionError(f"'{written}' matches no variable. {self._why_nothing(selector)}")
        return names

    def select_groups(self, selector: str, written: str) -> set[str]:
        """Returns the names of the groups of one selector of depth."""
        if selector == "none":
            return set()
        if (groups := self._groups(selector, written)) is None:
            depths = "all, last 2, first 2, blocks[-2:], stage>=3, stem, blocks, top"
            raise SelectionError(f"'{written}' is no depth. Expected one of {depths}.")
        if not groups:
            raise SelectionError(f"'{written}' matches no group. {self._why_nothing(selector)}")
        return {group.name for group in groups}

    def _groups(self, selector: str, written: str) -> Sequence[Group] | None:
        """The groups of a selector of depth; of any other, `None`."""
        if selector == "all":
            return self.groups
        if selector in _KINDS:
            return [group for group in self.groups if group.kind == _KINDS[selector]]
        if selector == "backbone":
            return [group for group in self.groups if group.kind != "head"]
        if counted := _COUNTED.fullmatch(selector):
            return self._counted(counted[1], int(counted[2]), written)
        if indexed := _INDEXED.fullmatch(selector):
            return self._indexed(indexed, written)
        if staged := _STAGED.fullmatch(selector):
            compare, bound = _COMPARE[staged[1]], int(staged[2])
            return [group for group in self.blocks if group.stage and compare(group.stage, bound)]
        return None

    def _select(self, selector: str, written: str) -> set[str]:
        if selector == "all":
            return set(self.names)
        if selector in ("norm", "bias", "embeddings", "adapter"):
            return self._of_kind(selector)
        if (groups := self._groups(selector, written)) is not None:
            return {name for group in groups for name in group.weights}
        try:
            return set(matching(selector, self.names))
        except SelectionError as error:
            if begun := sum(bool(re.match(selector, name)) for name in self.names):
                hint = f"Did you mean '{selector}.*'? {begun} match."
                raise SelectionError(f"'{written}' matches no variable. {hint}") from None
            # Said of the bare pattern there; the user wrote it with "!".
            raise SelectionError(str(error).replace(repr(selector), f"'{written}'", 1)) from None

    def _counted(self, end: str, count: int, written: str) -> list[Group]:
        self._check_count(count, written)
        beyond = "top" if end == "last" else "stem"
        blocks = self.blocks[-count:] if end == "last" else self.blocks[:count]
        return [*blocks, *(group for group in self.groups if group.kind == beyond)]

    def _indexed(self, found: re.Match[str], written: str) -> list[Group]:
        start, colon, stop = found.groups()
        if colon:
            bounds = slice(*(int(bound) if bound else None for bound in (start, stop)))
            return self.blocks[bounds]
        index = int(start)
        self._check_count(index + 1 if index >= 0 else -index, written)
        return [self.blocks[index]]

    def _check_count(self, needed: int, written: str) -> None:
        if needed > (have := len(self.blocks)):
            raise SelectionError(
                f"'{written}' asks for more blocks than the {have} of this backbone: "
                f"blocks[0] to blocks[{have - 1}]."
            )

    def _of_kind(self, kind: str) -> set[str]:
        """Names by the kind of variable: a norm's own, biases, tables and learned tokens."""
        if kind == "adapter":
            return {name for name in self.names if name.startswith(_ADAPTERS)}
        own = {name for name in self.names if not name.startswith(_ADAPTERS)}
        if kind == "bias":
            return {name for name in own if name.endswith(BIASES)}
        if kind == "norm":
            norms = self.model.norm_layers()
            return {name for name in own if name.rpartition("/")[0] in norms}
        return {name for name in own if _EMBEDDINGS.fullmatch(name.rpartition("/")[2])}

    def _why_nothing(self, selector: str) -> str:
        if selector == "head" and not self.model.labels:
            return "The model has no head yet; give labels=[...], or call replace_head."
        if selector == "adapter":
            return "The model has no adapter; give method='lora', or call add_adapter."
        if selector.startswith("stage"):
            stages = sorted({group.stage for group in self.blocks if group.stage})
            if not stages:
                return "This backbone has no stages; select blocks, such as 'last 2'."
            return f"The stages are {', '.join(map(str, stages))}."
        if selector.startswith("blocks"):
            return f"The backbone has {len(self.blocks)} blocks."
        there = [word for word in _KINDS if any(g.kind == _KINDS[word] for g in self.groups)]
        return f"This model has {', '.join(there)}."
