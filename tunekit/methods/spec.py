"""The methods that a recipe can name, and what each lets train."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal

MethodName = Literal["full", "head"]

DEFAULT_TRAIN: dict[MethodName, tuple[str, ...]] = {"full": ("all",), "head": ("head",)}
"""The selectors of a phase that has none of its own."""

DEFAULT_LEARNING_RATE: dict[MethodName, float] = {"full": 3e-4, "head": 1e-3}
"""The peak rate where none is given: a fresh head bears more than pretrained weights."""


_BEYOND_HEAD = re.compile(r"(?!head$|none$)[a-z]+( +\d+)?|(blocks|stage|backbone/).*")


def refusal(method: MethodName, selectors: Sequence[str]) -> str | None:
    """Returns why `method` cannot train what `selectors` name, or `None` where it can.

    A pattern may match anywhere, so only selectors that surely leave the head are refused.
    """
    pieces = [piece.strip() for selector in selectors for piece in selector.split(",")]
    beyond = [piece for piece in pieces if _BEYOND_HEAD.fullmatch(piece)]
    if method != "head" or not beyond:
        return None
    return (
        f"{beyond[0]!r} reaches beyond the head, and method 'head' trains nothing else; "
        "set method: full, or train: head."
    )


def refusal_of_builder(method: MethodName, build: str) -> str | None:
    """Returns why `method` cannot train what a builder of plans has train, or `None`."""
    if method != "head" or build == "head_only":
        return None
    return (
        f"{build!r} reaches beyond the head, and method 'head' trains nothing else; "
        "set method: full, or build: head_only."
    )
