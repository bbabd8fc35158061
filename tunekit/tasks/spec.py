"""The task as written in a recipe."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from annotated_types import Ge, Lt


@dataclass(frozen=True, kw_only=True)
class TaskSpec:
    """What is asked of the model, and how its loss counts."""

    __pydantic_config__: ClassVar[Any] = {"extra": "forbid", "use_attribute_docstrings": True}

    name: Literal["image_classification"] = "image_classification"
    """The objective."""
    multi_label: bool | Literal["auto"] = "auto"
    """True: any number of labels an image (sigmoid); False: one (softmax); auto: as in the data."""
    label_smoothing: Annotated[float, Ge(0.0), Lt(1.0)] = 0.0
    """Share of each target spread evenly over the classes (multi-label: pulled towards 0.5)."""
    class_weights: Literal["balanced"] | tuple[float, ...] | None = None
    """How much each class counts, in label order; balanced: inversely to its frequency."""
    top_k: Annotated[int, Ge(1)] = 5
    """The k of top-k accuracy."""

    def issues(self) -> list[tuple[str, str]]:
        """Returns (dotted path, message) of each mistake that no single field's type can show."""
        if self.class_weights is None or isinstance(self.class_weights, str):
            return []
        found = [
            (f"class_weights[{i}]", f"expected a finite weight of 0 or more, got {weight}")
            for i, weight in enumerate(self.class_weights)
            if not math.isfinite(weight) or weight < 0
        ]
        if not found and sum(self.class_weights) == 0:
            message = "expected at least one weight above 0; leave it out to count classes equally"
            found.append(("class_weights", message))
        return found
