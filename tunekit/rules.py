"""Ordered (pattern, value) pairs over structural names: the first match wins.

One idea for learning rates, weight decay, sharding and ranks, after big_vision's mask trees.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Generic, TypeVar

from tunekit.errors import SelectionError, did_you_mean, near_matches

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
    """Mends the first part of `pattern` that no name has: 'head/.*' -> 'heads/.*'."""
    parts = pattern.split("/")
    split = [name.split("/") for name in names]
    for depth, part in enumerate(parts):
        split = [name for name in split if len(name) > depth and name[:depth] == parts[:depth]]
        here = sorted({name[depth] for name in split})
        if part in here:
            continue
        if near := near_matches(part, here):
            start = "/".join([*parts[:depth], near[0]])
            mended = "/".join([start, *parts[depth + 1 :]])
            count = sum(name[depth] == near[0] for name in split)
            verb = "begins" if count == 1 else "begin"
            start += "/" if depth + 1 < len(parts) else ""
            return f" Did you mean '{mended}'? {count} {verb} with '{start}'."
        break
    return did_you_mean(pattern, names) or f" The first of {len(names)} names is {names[0]!r}."
