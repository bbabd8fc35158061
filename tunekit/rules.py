"""Ordered (pattern, value) pairs over structural names: the first match wins.

One idea for learning rates, weight decay, sharding and ranks, after big_vision's mask trees.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Generic, TypeVar

from tunekit.errors import SelectionError, did_you_mean

T = TypeVar("T")


@dataclass(frozen=True)
class Rules(Generic[T]):
    """Values for structural names, by regular expressions that match a whole name.

    Example:
        >>> Rules((("heads/.*", 10.0), (".*", 1.0))).resolve(["heads/label/logits/bias"])
        {'heads/label/logits/bias': 10.0}
    """

    pairs: tuple[tuple[str, T], ...]
    default: T | None = None
    """Value of names that no pattern matches; `None` makes such a name an error."""

    def resolve(self, names: Iterable[str]) -> dict[str, T]:
        """Returns the value of each name.

        Raises:
            SelectionError: a pattern matches no name, or a name has no value.
        """
        names = list(names)
        values: dict[str, T] = {}
        for pattern, value in self.pairs:
            for name in matching(pattern, names):
                values.setdefault(name, value)
        uncovered = [name for name in names if name not in values]
        if uncovered and self.default is None:
            raise SelectionError(
                f"no rule covers {uncovered[0]!r} ({len(uncovered)} names uncovered). "
                "End the rules with the pattern '.*'."
            )
        return {name: values.get(name, self.default) for name in names}  # type: ignore[misc]


def matching(pattern: str, names: Iterable[str]) -> list[str]:
    """Returns the names that `pattern` matches whole.

    Raises:
        SelectionError: the pattern is no regular expression, or matches nothing.
    """
    names = list(names)
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise SelectionError(f"{pattern!r} is not a regular expression: {error}.") from error
    found = [name for name in names if compiled.fullmatch(name)]
    if not found:
        raise SelectionError(f"{pattern!r} matches no variable.{_near(pattern, names)}")
    return found


def _near(pattern: str, names: list[str]) -> str:
    """Says which names begin like `pattern`, with its own ending: 'head/.*' -> 'heads/.*'."""
    first, slash, rest = pattern.partition("/")
    starts = {name.partition("/")[0] for name in names}
    if slash and first not in starts:
        for start in sorted(starts):
            if did_you_mean(first, [start]):
                count = sum(name.startswith(start + "/") for name in names)
                return f" Did you mean '{start}/{rest}'? {count} begin with '{start}/'."
    return did_you_mean(pattern, names) or f" The first of {len(names)} names is {names[0]!r}."
