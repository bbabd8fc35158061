"""Questions on one context, and a model that points at pieces, for the tests of span_qa."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from tests.unit.tasks.labelled_texts import wordpiece
from tunekit.tasks.span_qa import SpanQA

WORDS = ("who", "where", "is", "ada", "love", "##lace", "in", "london", "born", "was", ".", "and")
TOKENIZER = wordpiece(WORDS)
TASK = SpanQA(stride=2, max_answer_tokens=4)
EMPTY = replace(TASK, may_be_empty=True)
CONTEXT = "Ada Lovelace was born in London."
LOVELACE = {"question": "Who was born?", "context": CONTEXT, "answers": [("Ada Lovelace", 0)]}
LONDON = {"question": "Where?", "context": CONTEXT, "answers": [("London", 25)]}
NOWHERE = {"question": "Where is who?", "context": CONTEXT, "answers": []}


def pointing(first: str, last: str, none: float = 0.0) -> Callable[[Any], np.ndarray]:
    """Logits that say the answer goes from one piece to another, or with `none` that none does."""

    def outputs(inputs: Any) -> np.ndarray:
        ids = np.asarray(inputs["token_ids"])
        logits = np.stack([ids == TOKENIZER.token_id(piece) for piece in (first, last)], axis=-1)
        logits = 6.0 * logits.astype(np.float32)
        logits[:, 0] = none
        return logits

    return outputs
