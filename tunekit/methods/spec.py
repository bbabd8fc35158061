"""The methods that a recipe can name, and what each lets train."""

from __future__ import annotations

from typing import Literal

MethodName = Literal["full", "head"]

DEFAULT_TRAIN: dict[MethodName, tuple[str, ...]] = {"full": ("all",), "head": ("head",)}
"""The selectors of a phase that has none of its own."""

DEFAULT_LEARNING_RATE: dict[MethodName, float] = {"full": 3e-4, "head": 1e-3}
"""The peak rate where none is given: a fresh head bears more than pretrained weights."""


def refusal(method: MethodName, selector: str) -> str | None:
    """Returns why `method` cannot train what `selector` names, or `None` where it can."""
    within_head = selector.strip().startswith(("head", "none", "!"))
    if method != "head" or within_head:
        return None
    return (
        f"{selector!r} reaches beyond the head, and method 'head' trains nothing else; "
        "set method: full, or train: head."
    )
