"""How tags of words mark entities: B-PER, I-PER, O, and with L- and U- where BILOU does."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any, Literal

from tunekit.data.examples import listed
from tunekit.errors import DataError
from tunekit.tasks.spec import TagScheme

Scheme = Literal["none", "bio", "bilou"]

OUTSIDE = "O"
"""The tag of a word that is part of no entity."""
_TAGS = {"bio": r"O|[BI]-.+", "bilou": r"O|[BILUES]-.+"}
# BIOES is BILOU with E for L and S for U; seqeval's scheme of the latter serves both.
_AS_BILOU = {"E": "L", "S": "U"}
_WORD = re.compile(r"\w+|[^\w\s]")


def tag_scheme(names: Iterable[str], asked: TagScheme) -> Scheme:
    """Returns how tags of these names mark entities.

    Args:
        names: every tag.
        asked: what the recipe says; "auto": by the names.

    Raises:
        DataError: a tag is none of the scheme that is asked for.
    """
    names = list(names)
    if asked in ("bio", "bilou"):
        if wrong := [name for name in names if not re.fullmatch(_TAGS[asked], name)]:
            raise DataError(
                f"task.scheme: '{asked}' has tags such as O, B-PER and I-PER, and the data has "
                f"{listed(wrong)}; set it to 'none', or to 'auto' to go by the data."
            )
        return asked
    marks = any(name != OUTSIDE for name in names)
    for scheme in ("bio", "bilou"):
        fits = all(re.fullmatch(_TAGS[scheme], name) for name in names)
        if asked == "auto" and marks and fits:
            return scheme
    return "none"


def continued(tag: str) -> str:
    """Returns the tag of what goes on in an entity that `tag` may begin."""
    return "I-" + tag[2:] if tag.startswith("B-") else tag


def entity_spans(tags: Sequence[str], scheme: Scheme) -> list[tuple[str, int, int]]:
    """Returns (label, first word, the one after the last) of each entity, by seqeval.

    BIO is read as conlleval does: an I- without a B- before it begins an entity. BILOU is strict:
    what is not whole from B- to L-, or a U-, is none.
    """
    if scheme == "none":
        return []
    from seqeval.metrics.sequence_labeling import get_entities
    from seqeval.scheme import BILOU, Tokens

    if scheme == "bio":
        return [(label, first, last + 1) for label, first, last in get_entities(list(tags))]
    tokens: Any = Tokens(as_bilou(tags), scheme=BILOU)
    return [(entity.tag, entity.start, entity.end) for entity in tokens.entities]


def as_bilou(tags: Iterable[str]) -> list[str]:
    """Returns tags of BIOES as those of BILOU; others as they are."""
    return [
        _AS_BILOU.get(tag[0], tag[0]) + tag[1:] if tag != OUTSIDE and tag[1:2] == "-" else tag
        for tag in tags
    ]


def words_of(text: str) -> tuple[list[str], list[tuple[int, int]]]:
    """Returns the words and marks of a text, and where each begins and ends."""
    found = list(_WORD.finditer(text))
    return [match.group() for match in found], [match.span() for match in found]
