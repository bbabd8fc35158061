"""The next token: of plain text, or of the responses in dialogues (instruction tuning, SFT)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from tunekit.data.examples import Source, Splits
from tunekit.data.pipeline import Encode
from tunekit.errors import DataError, Issue, ModelError, RecipeError
from tunekit.models.tokenizing import Tokenizer
from tunekit.tasks.likelihood import Likelihood, dialogue_items, likelihood
from tunekit.tasks.prompt_template import FIELDS, PromptTemplate, turns_of
from tunekit.tasks.spec import LanguageModellingSpec, LossOn
from tunekit.tasks.text_items import outputs_of
from tunekit.tasks.text_task import Outputs, Stands

Example = Mapping[str, Any]
_INPUTS = ("token_ids", "padding_mask", "positions", "documents", "targets", "loss_weights")
_LONGEST_BEGINNING = 32
"""Tokens of plain text that are given to go on from."""
_EXAMPLE_TEMPLATE = "### Instruction: {prompt} ### Response: "


@dataclass(frozen=True)
class Question:
    """A prompt as the model was trained to see it, and what it should be answered with."""

    text: str
    """For people."""
    ids: tuple[int, ...]
    """Token ids up to where the response begins."""
    reference: str


@dataclass(frozen=True)
class LanguageModelling:
    """Encodes texts and dialogues, and sums the losses of the tokens that are to be learned.

    Batches have "token_ids", "padding_mask", "targets" int32 [B, T] and "loss_weights" float32
    [B, T]: targets[t] is the token after token_ids[t], and counts where its weight is 1.
    """

    name: Literal["causal_lm", "sft"] = "sft"
    """Plain text, or dialogues (and plain text among them)."""
    loss_on: LossOn = "responses"
    """What counts in a dialogue."""
    template: str | None = None
    """Format of a prompt; `None`: the tokenizer's chat template."""
    system: str | None = None
    """System message of dialogues that have none."""
    samples: int = 3
    """Prompts of the validation data that base and tuned model answer."""
    max_new_tokens: int = 64
    """Longest answer in evaluation."""

    @classmethod
    def bind(cls, spec: LanguageModellingSpec, splits: Splits) -> LanguageModelling:
        """Returns the task for the training examples of `splits`.

        Raises:
            RecipeError: the template is none, has gaps that the data does not fill, or no place
                for the system message.
        """
        task = cls(**{name: getattr(spec, name) for name in cls.__dataclass_fields__})
        if task.template is not None:
            template = PromptTemplate.parse(task.template)
            template.check((*FIELDS, *_text_columns(splits.train[0])))
            if task.system is not None and "system" not in template.fields:
                message = "task.template has no {system} to put it into; add it"
                raise RecipeError([Issue("task.system", message)])
        return task

    @property
    def kind(self) -> Literal["plain", "dialogue"]:
        """What the examples are."""
        return "plain" if self.name == "causal_lm" else "dialogue"

    @property
    def label_names(self) -> tuple[str, ...]:
        """None: there is no head of its own."""
        return ()

    @property
    def multi_label(self) -> bool:
        """Of no meaning here."""
        return False

    @property
    def stands_on(self) -> Stands:
        """The language head that came with the weights."""
        return "language"

    @property
    def monitor(self) -> str:
        """The loss of a held-out token."""
        return "loss"

    def prepared(
        self, source: Source, tokenizer: Tokenizer, max_length: int, *, training: bool, seed: int
    ) -> Source:
        """Returns the source itself."""
        return source

    def encoder(self, tokenizer: Tokenizer, max_length: int) -> Encode:
        """Returns what turns an example into token_ids, targets and loss_weights, all [T].

        A text of more than `max_length` tokens keeps its beginning: no end is invented, and where
        no response is left nothing counts.

        Raises:
            RecipeError: dialogues, and neither a chat template nor a format string.
            ModelError: no token ends a text.
        """
        self._check(tokenizer)

        def encode(example: Example, rng: Any = None) -> dict[str, np.ndarray]:
            ids, learned = self.tokens(example, tokenizer)
            return _columns(ids[:max_length], learned[:max_length])

        return encode

    def tokens(self, example: Example, tokenizer: Tokenizer) -> tuple[np.ndarray, np.ndarray]:
        """Returns the token ids of an example, int32 [T], and which are to be learned, bool [T]."""
        if "messages" not in example:
            ids = [*_opening(tokenizer), *_ids(tokenizer, example["text"]), _end(tokenizer)]
            return np.asarray(ids, np.int32), np.ones(len(ids), bool)
        messages = self._with_system(example["messages"])
        if self.template is None:
            ids, answers = tokenizer.chat_ids(messages)
            answers = np.asarray(answers, bool)
        else:
            ids, answers = self._templated(example, messages, tokenizer)
        if self.loss_on == "all":
            answers = np.ones(len(ids), bool)
        elif self.loss_on == "last_response":
            answers = _last_run(answers)
        return np.asarray(ids, np.int32), answers

    def question(self, example: Example, tokenizer: Tokenizer) -> Question:
        """Returns the last response of an example as a question; of plain text, how it goes on."""
        if "messages" not in example:
            ids, _ = self.tokens(example, tokenizer)
            # Both sides get a token at least; the last is the end.
            count = max(1, min(_LONGEST_BEGINNING, len(ids) // 2))
            rest = ids[count : count + self.max_new_tokens]
            beginning = tuple(int(i) for i in ids[:count])
            return Question(tokenizer.decode(beginning), beginning, tokenizer.decode(rest))
        messages = list(example["messages"])
        last = max(i for i, message in enumerate(messages) if message["role"] == "assistant")
        asked, reference = messages[:last], messages[last]["content"]
        ids = self.prompt_ids({**example, "messages": asked}, tokenizer)
        return Question(_shown(asked), ids, reference)

    def prompt_ids(self, example: Example, tokenizer: Tokenizer) -> tuple[int, ...]:
        """Returns the tokens after which the model is to answer a dialogue that ends in a question.

        Args:
            example: "messages", and further text columns where the template has gaps for them.
            tokenizer: the model's.
        """
        self._check(tokenizer)
        messages = self._with_system(example["messages"])
        if self.template is None:
            text = tokenizer.chat(messages, add_generation_prompt=True)
            return tuple(_ids(tokenizer, text))
        open_turn = [*messages, {"role": "assistant", "content": ""}]
        ids, _ = self._templated(example, open_turn, tokenizer)
        return tuple(int(i) for i in ids[:-1])

    def augment_batch(self, key: jax.Array, batch: Mapping[str, jax.Array]) -> dict[str, Any]:
        """Returns the batch: nothing about it is random."""
        return dict(batch)

    def inputs(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Returns what the model takes; with targets, it gives the loss of each token [B, T]."""
        return {name: batch[name] for name in _INPUTS if name in batch}

    def loss(
        self, outputs: jax.Array, batch: Mapping[str, jax.Array], /
    ) -> tuple[jax.Array, jax.Array]:
        """Returns the summed loss and the number of tokens that count.

        Args:
            outputs: -log p of each target, [B, T].
            batch: "loss_weights" [B, T]; 0 gives exactly nothing, and no gradient.
        """
        weights = jnp.asarray(batch["loss_weights"], jnp.float32)
        # Masked before the product: a NaN times 0 is still a NaN.
        losses = jnp.where(weights > 0, outputs.astype(jnp.float32), 0.0)
        return jnp.sum(losses * weights), jnp.sum(weights)

    def predict(
        self,
        items: Any,
        tokenizer: Tokenizer,
        max_length: int,
        outputs: Outputs,
        *,
        batch_size: int = 8,
    ) -> list[Likelihood]:
        """Returns how likely each text, or the responses of each dialogue, is to the model.

        Args:
            items: texts, lists of messages, or examples; one or several.
            tokenizer: the model's.
            max_length: in tokens.
            outputs: the loss of each token of a batch's inputs.
            batch_size: texts at a time.

        Raises:
            DataError: an item is none of these.
        """
        texts = dialogue_items(items)
        found: dict[int, Likelihood] = {}
        rows = outputs_of(self, texts, tokenizer, max_length, outputs, batch_size)
        for place, columns, losses in rows:
            found[place] = likelihood(texts.name(place), losses, columns["loss_weights"])
        return [found[place] for place in range(len(texts))]

    def _check(self, tokenizer: Tokenizer) -> None:
        if self.name == "sft" and self.template is None and tokenizer.chat_template is None:
            message = (
                "the tokenizer of this model has no chat template, so nothing says how a prompt "
                "and its response become one text. Give a format, such as "
                f"{_EXAMPLE_TEMPLATE!r}, or take the instruction-tuned form of the model"
            )
            raise RecipeError([Issue("task.template", message)])
        _end(tokenizer)

    def _with_system(self, messages: Sequence[Mapping[str, str]]) -> list[dict[str, str]]:
        listed = [dict(message) for message in messages]
        if self.system is None or any(message["role"] == "system" for message in listed):
            return listed
        return [{"role": "system", "content": self.system}, *listed]

    def _templated(
        self, example: Example, messages: Sequence[Mapping[str, str]], tokenizer: Tokenizer
    ) -> tuple[np.ndarray, np.ndarray]:
        """Prompt, response and the token that ends a text, for each turn."""
        template = PromptTemplate.parse(self.template or "")
        where = str(example.get("id", "a dialogue"))
        columns = _text_columns(example)
        template.check((*FIELDS, *columns))
        ids, learned = list(_opening(tokenizer)), []
        learned += [False] * len(ids)
        for turn in turns_of(messages, columns, where):
            if turn.values["system"] and "system" not in template.fields:
                raise DataError(
                    f"{where}: has a system message, and task.template no {{system}} to put it "
                    "into. Add {system} to the template, or take the message out."
                )
            prompt, response = _split(tokenizer, template.fill(turn.values), turn.response)
            ids += [*prompt, *response, _end(tokenizer)]
            learned += [False] * len(prompt) + [True] * (len(response) + 1)
        return np.asarray(ids, np.int32), np.asarray(learned, bool)


def _columns(ids: np.ndarray, learned: np.ndarray) -> dict[str, np.ndarray]:
    """Columns [T]: what each token is followed by, and whether that is to be learned."""
    targets, weights = np.zeros_like(ids), np.zeros(len(ids), np.float32)
    targets[:-1], weights[:-1] = ids[1:], learned[1:]
    return {"token_ids": ids, "targets": targets, "loss_weights": weights}


def _split(tokenizer: Tokenizer, prompt: str, response: str) -> tuple[list[int], list[int]]:
    """Token ids of a prompt, the same as when it is alone, and of the response to it.

    Alone is how it comes when the model is asked. Some tokenizers put a space before the first
    word of any text, so the response is cut from the whole; where the whole has a token across the
    border, from "Response: " and "Yes" say " Yes", it is tokenized by itself.
    """
    alone, whole = _ids(tokenizer, prompt), _ids(tokenizer, prompt + response)
    if whole[: len(alone)] == alone:
        return alone, whole[len(alone) :]
    return alone, _ids(tokenizer, response)


def _ids(tokenizer: Tokenizer, text: str) -> list[int]:
    return [int(i) for i in tokenizer.encode(text, special=False).ids]


def _opening(tokenizer: Tokenizer) -> tuple[int, ...]:
    """The token that the tokenizer begins every text with, where it does."""
    first = tokenizer.encode("").ids[:1]
    return tuple(int(i) for i in first if i == tokenizer.bos_id)


def _end(tokenizer: Tokenizer) -> int:
    if tokenizer.eos_id is None:
        raise ModelError(
            "the model's tokenizer names no token that ends a text (eos_token in "
            "tokenizer_config.json), without which a model cannot learn to stop; name one there."
        )
    return tokenizer.eos_id


def _last_run(answers: np.ndarray) -> np.ndarray:
    """Only the last unbroken run of what is true."""
    if not answers.any():
        return answers
    end = int(np.flatnonzero(answers)[-1])
    gaps = np.flatnonzero(~answers[:end])
    last = np.zeros_like(answers)
    last[gaps[-1] + 1 if len(gaps) else 0 : end + 1] = True
    return last


def _text_columns(example: Example) -> dict[str, str]:
    """The row's own fields of a template."""
    names = (name for name in example if name not in ("id", "text", *FIELDS))
    return {name: example[name] for name in names if isinstance(example[name], str)}


def _shown(messages: Sequence[Mapping[str, str]]) -> str:
    """Messages for people: the one question, or who says what."""
    if len(messages) == 1:
        return messages[0]["content"]
    return "\n".join(f"{message['role']}: {message['content']}" for message in messages)
