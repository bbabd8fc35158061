"""Which column plays which part: the names that data sets give them, in one table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from tunekit.data.examples import listed
from tunekit.errors import Issue, did_you_mean

# Earlier tiers win; two columns of one tier are ambiguous.
NAMES: dict[str, tuple[tuple[str, ...], ...]] = {
    "text": (
        ("text",),
        ("sentence", "body", "content", "review", "tweet", "document", "comment", "utterance",
         "message", "article", "passage", "post", "query", "question", "email", "phrase"),
        ("title", "headline", "description", "abstract", "summary"),
    ),
    "label": (
        ("label",),
        ("labels", "class", "category", "target", "sentiment", "stars", "rating", "intent",
         "emotion", "topic", "polarity", "gold_label", "is_duplicate"),
        ("score", "genre", "type", "tag", "tags", "y"),
    ),
    "number": (
        ("label",),
        ("score", "labels", "target", "value", "rating", "stars", "similarity", "relatedness",
         "similarity_score", "relatedness_score", "y"),
    ),
    "score": (("score", "similarity", "similarity_score", "relatedness", "relatedness_score"),),
    "words": (("tokens", "words"),),
    "tags": (("tags",), ("ner_tags", "pos_tags", "chunk_tags", "ner", "pos", "upos", "labels"),
             ("label",)),
    "question": (("question",), ("query",)),
    "context": (("context",), ("passage", "paragraph", "document", "text")),
    "answers": (("answers",), ("answer",), ("label",)),
    "messages": (("messages",), ("conversations", "conversation", "dialogue", "dialog", "chat",
                                 "turns")),
    "prompt": (("prompt",), ("instruction",), ("question", "input", "query", "user", "human",
                                               "problem")),
    "response": (("response",), ("completion", "output", "answer", "assistant", "reply",
                                 "solution")),
    "system": (("system", "system_prompt"),),
}  # fmt: skip
PAIRS: tuple[tuple[str, ...], ...] = (
    ("anchor", "positive", "negative"),
    ("query", "positive", "negative"),
    ("sentence1", "sentence2"),
    ("sentence_1", "sentence_2"),
    ("sentence_a", "sentence_b"),
    ("premise", "hypothesis"),
    ("question1", "question2"),
    ("text1", "text2"),
    ("text_1", "text_2"),
    ("text_a", "text_b"),
    ("anchor", "positive"),
    ("query", "passage"),
    ("query", "positive"),
    ("question", "passage"),
    ("question", "sentence"),
)
"""Columns of two texts that belong together, or of an anchor, a match and what is none."""


@dataclass
class Columns:
    """The columns of a table, found by part; collects an issue for each that is not."""

    there: Sequence[str]
    place: str
    """What messages call the table: its file."""
    issues: list[Issue] = field(default_factory=list)

    def find(self, part: str, named: str | None, setting: str) -> str:
        """Returns the column of a part, "" where there is none, which is an issue.

        Args:
            part: a key of `NAMES`.
            named: the column that the spec names, if it does.
            setting: the field of the spec that names it, for messages.
        """
        if named is not None:
            return self.named(named, setting)
        found = self.guess(part)
        if len(found) == 1:
            return found[0]
        there = listed(self.there, 12)
        if found:
            message = f"the columns {listed(found)} of {self.place} could each be the {part}"
            self.issues.append(Issue(setting, f"{message}; name one of them"))
        else:
            usual = [name for tier in NAMES[part] for name in tier]
            near = next((hint for name in usual if (hint := did_you_mean(name, self.there))), "")
            message = f"{self.place} has no column for the {part}, such as {listed(usual, 3)}."
            self.issues.append(
                Issue(setting, f"{message}{near} Name one of its columns: {there or 'none'}")
            )
        return ""

    def named(self, name: str, setting: str) -> str:
        """Returns a column that the spec names, "" where it is not there, which is an issue."""
        if name in self.there:
            return name
        message = f"{self.place} has no column {name!r}.{did_you_mean(name, self.there)}"
        self.issues.append(
            Issue(setting, f"{message} Its columns: {listed(self.there, 12) or 'none'}")
        )
        return ""

    def guess(self, part: str) -> list[str]:
        """Returns the columns of the first tier of a part's names that has any."""
        for tier in NAMES[part]:
            found = [name for name in self.there if name.lower() in tier]
            if found:
                return found
        return []

    def pair(self) -> tuple[str, ...]:
        """Returns the columns of texts that belong together; empty where there are none."""
        by_lowercase = {name.lower(): name for name in self.there}
        for names in PAIRS:
            if all(name in by_lowercase for name in names):
                return tuple(by_lowercase[name] for name in names)
        return ()
