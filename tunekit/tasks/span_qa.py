"""Extractive question answering: where in a context the answer stands, if it does (SQuAD)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import jax
import jax.numpy as jnp
import numpy as np

from tunekit.data.examples import Source, Splits
from tunekit.data.pipeline import Encode
from tunekit.errors import DataError
from tunekit.models.tokenizing import Tokenizer
from tunekit.tasks.answers import Candidates
from tunekit.tasks.prediction import AnswerPrediction
from tunekit.tasks.question_windows import QuestionWindows, Window, question_windows
from tunekit.tasks.spec import SpanQASpec
from tunekit.tasks.text_items import Items, outputs_of, text_inputs
from tunekit.tasks.text_task import Outputs, Stands

if TYPE_CHECKING:
    from tunekit.data.text_kinds import TextKind

_LOWEST = -1e9
"""Stands for the logit of a token that may not be an answer; finite, for a gradient of zero."""


@dataclass(frozen=True)
class SpanQA:
    """Scores every token of the context as the first and as the last of the answer.

    After Devlin et al. 2019 (https://arxiv.org/abs/1810.04805), section 4.2: a window that does
    not show the answer has it at the first token, and section 4.3 for questions without one.

    Batches are of windows (`prepared`) and have "token_types" and "context_mask" int32 [B, T], 1
    on what may be an answer: the context, and the first token for none; "start" and "end" int32
    [B]; in evaluation also "row" int32 [B], the question's place in the source, and "offsets"
    int32 [B, max_length, 2], the characters of each token in the context.
    """

    stride: int = 128
    """Tokens that two windows of a long context share."""
    max_answer_tokens: int = 30
    """Longest answer that is given."""
    may_be_empty: bool = False
    """Whether some of the training questions have no answer, so that none may be given."""

    @classmethod
    def bind(cls, spec: SpanQASpec, splits: Splits) -> SpanQA:
        """Returns the task for the training questions."""
        train = splits.train
        may_be_empty = any(not train[i]["answers"] for i in range(len(train)))
        return cls(spec.stride, spec.max_answer_tokens, may_be_empty)

    @property
    def kind(self) -> TextKind:
        """What its examples are."""
        return "answers"

    @property
    def label_names(self) -> tuple[str, ...]:
        """What a token may be of the answer."""
        return ("start", "end")

    @property
    def multi_label(self) -> bool:
        """It has no labels."""
        return False

    @property
    def stands_on(self) -> Stands:
        """Its logits are of each token."""
        return "token"

    @property
    def monitor(self) -> str:
        """The metric that says which weights are best."""
        return "f1"

    def prepared(
        self, source: Source, tokenizer: Tokenizer, max_length: int, *, training: bool, seed: int
    ) -> QuestionWindows:
        """Returns the windows of every question's context.

        Raises:
            DataError: `max_length` has no room for question and context.
        """
        return question_windows(source, tokenizer, max_length, self.stride)

    def encoder(self, tokenizer: Tokenizer, max_length: int) -> Encode:
        """Returns what turns one window into columns; without answers it gives no targets."""

        def encode(
            example: Mapping[str, Any], rng: np.random.Generator | None = None
        ) -> dict[str, np.ndarray]:
            window: Window = example["window"]
            mask = window.context.astype(np.int32)
            mask[0] = 1
            columns = {
                "token_ids": window.encoded.ids,
                "token_types": window.encoded.types,
                "context_mask": mask,
            }
            if "answers" in example:
                start, end = answer_tokens(window, example["answers"])
                columns |= {"start": np.int32(start), "end": np.int32(end)}
            if rng is None:
                offsets = np.zeros((max_length, 2), np.int32)
                offsets[: len(mask)] = window.encoded.offsets
                columns |= {"row": np.int32(example["row"]), "offsets": offsets}
            return {name: np.asarray(column) for name, column in columns.items()}

        return encode

    def augment_batch(self, key: jax.Array, batch: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        """Returns the batch as it is."""
        return dict(batch)

    def inputs(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Returns token ids, padding mask, and which tokens are of the context."""
        return text_inputs(batch)

    def loss(
        self, outputs: jax.Array, batch: Mapping[str, jax.Array], /
    ) -> tuple[jax.Array, jax.Array]:
        """Returns the summed loss of the windows and the summed weight.

        A window's is the mean of the cross-entropies of start and end over the tokens that may be
        an answer; no other token has a part in it.

        Args:
            outputs: [B, T, 2] of any float type; the sum is float32.
            batch: "context_mask" [B, T]; "start", "end" and "weight" [B]. Rows of weight 0 give
                exactly nothing, and no gradient, whatever their logits.
        """
        weight = jnp.asarray(batch["weight"], jnp.float32)
        allowed = (jnp.asarray(batch["context_mask"]) > 0) & (weight[:, None] > 0)
        logits = jnp.where(allowed[..., None], outputs.astype(jnp.float32), _LOWEST)
        targets = jnp.stack([jnp.asarray(batch["start"]), jnp.asarray(batch["end"])], axis=-1)
        log_p = jax.nn.log_softmax(logits, axis=1)
        of_targets = jnp.take_along_axis(log_p, targets[:, None], axis=1)[:, 0]
        return -jnp.sum(of_targets.mean(axis=-1) * weight), jnp.sum(weight)

    def predict(
        self,
        items: Sequence[Any],
        tokenizer: Tokenizer,
        max_length: int,
        outputs: Outputs,
        *,
        most: int = 3,
        empty_margin: float = 0.0,
        batch_size: int = 32,
    ) -> list[AnswerPrediction]:
        """Returns the answer to each question, and the next best.

        Args:
            items: (question, context), or {"question", "context"}; one may come without a list.
            tokenizer: of the model.
            max_length: most tokens of a window.
            outputs: from inputs to logits [B, T, 2].
            most: answers considered, the given one among them.
            empty_margin: no answer is given where its score is above the best one's by more; used
                where the training data has questions without an answer.
            batch_size: windows at a time.

        Raises:
            DataError: an item is none of these.
        """
        questions = question_items(items)
        windows = question_windows(cast(Source, questions), tokenizer, max_length, self.stride)
        candidates = [Candidates() for _ in range(len(questions))]
        for _, columns, logits in outputs_of(
            self, windows, tokenizer, max_length, outputs, batch_size
        ):
            candidates[int(columns["row"])].add(columns, logits, self.max_answer_tokens)
        found = []
        for example, offered in zip(questions.examples, candidates, strict=True):
            first, *others = offered.answers(
                example["context"],
                may_be_empty=self.may_be_empty,
                empty_margin=empty_margin,
                most=most,
            )
            found.append(AnswerPrediction(first, tuple(others), example["question"]))
        return found


def answer_tokens(window: Window, answers: Sequence[tuple[str, int]]) -> tuple[int, int]:
    """Returns the first and the last token of the first answer, both 0 where it is not shown.

    An answer that a window shows only in part is not shown.
    """
    if not answers:
        return 0, 0
    text, first = answers[0]
    start, end = window.encoded.offsets.T
    inside = window.context & (start < first + len(text)) & (end > first)
    places = np.flatnonzero(inside)
    whole = len(places) and start[places[0]] <= first and end[places[-1]] >= first + len(text)
    return (int(places[0]), int(places[-1])) if whole else (0, 0)


def question_items(items: Any) -> Items:
    """Returns questions with their contexts as examples to predict on.

    Raises:
        DataError: an item is not two texts, or one is empty.
    """
    alone = isinstance(items, Mapping) or (
        isinstance(items, tuple) and len(items) == 2 and all(isinstance(x, str) for x in items)
    )
    examples = []
    for place, item in enumerate([items] if alone else items):
        if isinstance(item, Mapping):
            item = (item.get("question"), item.get("context"))
        texts = item if isinstance(item, tuple | list) else ()
        if len(texts) != 2 or not all(isinstance(text, str) and text.strip() for text in texts):
            raise DataError(
                f"items[{place}]: expected (question, context), two texts, got {item!r:.80}."
            )
        question, context = texts
        examples.append({"id": question, "question": question, "context": context})
    sizes = np.asarray([len(example["context"]) for example in examples], np.int64)
    return Items(tuple(examples), sizes)
