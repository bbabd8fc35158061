"""From the logits of windows to the answers of a question, best first."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from scipy.special import softmax

from tunekit.tasks.prediction import Answer

CONSIDERED = 20
"""Answers kept of each window, as in BERT's own evaluation."""


@dataclass(eq=False)
class Candidates:
    """The answers that the windows of one question offer so far."""

    scores: dict[tuple[int, int], float] = field(default_factory=dict)
    """By first character and the one after the last: start's logit plus end's, in the window
    where that is highest."""
    empty: float = math.inf
    """Score of having no answer: the lowest over the windows, for each must be without one."""

    def add(self, columns: Mapping[str, np.ndarray], logits: np.ndarray, longest: int) -> None:
        """Takes in a window.

        Args:
            columns: "context_mask" [T], 1 on the context and on the first token, which stands for
                no answer; "offsets" [>= T, 2], the place of each token in the context.
            logits: of start and end, [T, 2].
            longest: most tokens of an answer.
        """
        logits = np.asarray(logits, np.float64)
        self.empty = min(self.empty, float(logits[0].sum()))
        context = np.flatnonzero(columns["context_mask"])[1:]
        if not len(context):
            return
        start, end = logits[context].T
        count, longest = len(context), min(longest, len(context))
        # Row k holds the answers of k + 1 tokens.
        scores = np.full((longest, count), -np.inf)
        for k in range(longest):
            scores[k, : count - k] = start[: count - k] + end[k:]
        most = min(CONSIDERED, scores.size)
        for place in np.argpartition(scores, -most, axis=None)[-most:]:
            k, first = divmod(int(place), count)
            if scores[k, first] == -np.inf:
                continue
            offsets = columns["offsets"]
            span = int(offsets[context[first], 0]), int(offsets[context[first + k], 1])
            if span[0] < span[1]:
                self.scores[span] = max(self.scores.get(span, -np.inf), float(scores[k, first]))

    def answers(
        self, context: str, *, may_be_empty: bool, empty_margin: float = 0.0, most: int = CONSIDERED
    ) -> list[Answer]:
        """Returns up to `most` answers, the one given first, then by probability.

        Probabilities are the softmax of the scores of all `most`, and of having no answer.

        Args:
            context: that the answers are cut from.
            may_be_empty: whether there may be no answer.
            empty_margin: no answer is given where its score is above the best one's by more.
            most: how many.
        """
        ranked = sorted(self.scores.items(), key=lambda item: -item[1])[:most]
        empty = may_be_empty or not ranked
        scores = [score for _, score in ranked] + [self.empty] * empty
        probabilities = softmax(scores).tolist()
        found = [
            Answer(context[start:end], probability, start, end)
            for ((start, end), _), probability in zip(ranked, probabilities, strict=False)
        ]
        if not empty:
            return found
        none = Answer("", probabilities[-1])
        if not ranked or self.empty - ranked[0][1] > empty_margin:
            return [none, *found][:most]
        rest = sorted([*found[1:], none], key=lambda answer: -answer.probability)
        return [found[0], *rest][:most]
