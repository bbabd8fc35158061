"""What a classifier says about one example."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Prediction:
    """Labels and their probabilities for one image.

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
    """The image's path, or its position where it came as an array."""

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
