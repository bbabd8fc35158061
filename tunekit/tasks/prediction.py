"""What a model says about one example, by what it was asked."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, NamedTuple


@dataclass(frozen=True)
class Prediction:
    """Labels and their probabilities for one image or text.

    ```python
    prediction = result.predict("photo.jpg")[0]
    print(prediction.label, prediction.probability)
    ```
    """

    label: str
    """The most probable label."""
    probability: float
    """Its probability."""
    probabilities: dict[str, float]
    """Every label's probability, most probable first; multi-label ones need not sum to 1."""
    labels: tuple[str, ...]
    """The label; multi-label: every label at or above the threshold, possibly none."""
    id: str = ""
    """The image's path, or its position where it came as an array; how a text begins."""

    def __str__(self) -> str:
        """Returns one line: the labels given, then the two next in probability."""
        rest = [name for name in self.probabilities if name not in self.labels][:2]
        given, others = self._percent(self.labels), self._percent(rest)
        name = f"{self.id}: " if self.id else ""
        return name + (given or "no label") + (f" ({others})" if others else "")

    def _percent(self, labels: list[str] | tuple[str, ...]) -> str:
        return ", ".join(f"{label} {self.probabilities[label]:.1%}" for label in labels)

    def to_json(self) -> dict[str, Any]:
        """Returns the prediction in JSON's types."""
        return {
            "id": self.id,
            "label": self.label,
            "probability": self.probability,
            "labels": list(self.labels),
            "probabilities": dict(self.probabilities),
        }


@dataclass(frozen=True)
class NumberPrediction:
    """The number that belongs to one text, in the unit of the data."""

    value: float
    id: str = ""
    """How the text begins."""

    def __str__(self) -> str:
        """Returns one line."""
        return f"{self.id}: {self.value:.4g}" if self.id else f"{self.value:.4g}"

    def to_json(self) -> dict[str, Any]:
        """Returns the prediction in JSON's types."""
        return asdict(self)


class TaggedWord(NamedTuple):
    """One word and its tag."""

    word: str
    tag: str | None
    """`None` where the text was cut off before the word, or the word has no token."""
    probability: float | None


@dataclass(frozen=True)
class Entity:
    """A stretch of text that is named."""

    label: str
    """What it is, such as "PER"."""
    text: str
    start: int
    """Place of its first character in the text."""
    end: int
    """Place behind its last character."""
    probability: float
    """Mean over its words of the probability of their tags."""


@dataclass(frozen=True)
class TagPrediction:
    """A tag for each word of one text, and the entities that the tags mark.

    ```python
    prediction = result.predict("Ada Lovelace lived in London.")[0]
    print([(entity.label, entity.text) for entity in prediction.entities])
    ```
    """

    words: tuple[TaggedWord, ...]
    entities: tuple[Entity, ...] = ()
    """In order; none where the tags mark no entities."""
    id: str = ""
    """How the text begins."""

    def __str__(self) -> str:
        """Returns one line: the words with their tags."""
        return " ".join(f"{word}/{tag or '?'}" for word, tag, _ in self.words)

    def to_json(self) -> dict[str, Any]:
        """Returns the prediction in JSON's types."""
        return {
            "id": self.id,
            "words": [list(word) for word in self.words],
            "entities": [asdict(entity) for entity in self.entities],
        }


@dataclass(frozen=True)
class Answer:
    """A stretch of the context that answers a question."""

    text: str
    """As it stands in the context; "" says that the context has no answer."""
    probability: float
    """Among the answers considered."""
    start: int = 0
    """Place of its first character in the context."""
    end: int = 0
    """Place behind its last character."""

    @property
    def is_empty(self) -> bool:
        """Whether it says that the context has no answer."""
        return self.end == self.start


@dataclass(frozen=True)
class AnswerPrediction:
    """The answer to one question, and the next best ones."""

    answer: Answer
    others: tuple[Answer, ...] = ()
    """The next in probability, best first."""
    id: str = ""
    """The question."""

    def __str__(self) -> str:
        """Returns one line."""
        name = f"{self.id}: " if self.id else ""
        return f"{name}{self.answer.text or 'no answer'} {self.answer.probability:.1%}"

    def to_json(self) -> dict[str, Any]:
        """Returns the prediction in JSON's types."""
        return asdict(self)
