"""Token classification: a tag for each word, by the first of its pieces."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from scipy.special import softmax

from tunekit.data.examples import Source, Splits
from tunekit.data.pipeline import Encode
from tunekit.errors import DataError
from tunekit.models.tokenizing import Encoded, Tokenizer
from tunekit.tasks.prediction import Entity, TaggedWord, TagPrediction
from tunekit.tasks.spec import TokenClassificationSpec
from tunekit.tasks.tags import OUTSIDE, Scheme, continued, entity_spans, tag_scheme, words_of
from tunekit.tasks.text_items import Items, opening, outputs_of, text_inputs
from tunekit.tasks.text_task import Outputs, Stands

if TYPE_CHECKING:
    from tunekit.data.text_kinds import TextKind


@dataclass(frozen=True)
class TokenClassification:
    """Scores every token, learns from those that carry a word's tag, and reads words back.

    Batches have "token_labels" int32 [B, T] and "token_weights" float32 [B, T], 0 where a token
    carries no tag; in evaluation also "first_pieces" int32 [B, max_length]: the place of each
    word's first token, -1 where it has none, because the text was cut off before or the tokenizer
    keeps nothing of it.
    """

    label_names: tuple[str, ...]
    """Tags in the order of the logits."""
    scheme: Scheme = "none"
    """How tags mark entities; none: each word by itself."""
    label_all_pieces: bool = False
    """Whether every piece of a word counts in the loss, or its first alone."""

    @classmethod
    def bind(cls, spec: TokenClassificationSpec, splits: Splits) -> TokenClassification:
        """Returns the task for the tags of the training texts.

        Raises:
            DataError: the tags are not of the scheme that is asked for.
        """
        names = tuple(splits.train.label_names)
        return cls(names, tag_scheme(names, spec.scheme), spec.label_all_pieces)

    @property
    def kind(self) -> TextKind:
        """What its examples are."""
        return "tagged"

    @property
    def multi_label(self) -> bool:
        """A word has one tag."""
        return False

    @property
    def stands_on(self) -> Stands:
        """Its logits are of each token."""
        return "token"

    @property
    def monitor(self) -> str:
        """The metric that says which weights are best."""
        return "accuracy" if self.scheme == "none" else "f1"

    def prepared(
        self, source: Source, tokenizer: Tokenizer, max_length: int, *, training: bool, seed: int
    ) -> Source:
        """Returns the source itself."""
        return source

    def encoder(self, tokenizer: Tokenizer, max_length: int) -> Encode:
        """Returns what turns one example into columns; without tags it gives none of them."""

        def encode(
            example: Mapping[str, Any], rng: np.random.Generator | None = None
        ) -> dict[str, np.ndarray]:
            encoded = tokenizer.encode_words(example["words"], max_length=max_length)
            firsts = first_pieces(encoded)
            columns = {"token_ids": encoded.ids}
            if "tags" in example:
                columns |= self._targets(encoded, firsts, example["tags"])
            if rng is None:
                places = np.full(max_length, -1, np.int32)
                words = [word for word in firsts if word < max_length]
                places[words] = [firsts[word] for word in words]
                columns["first_pieces"] = places
            return columns

        return encode

    def _targets(
        self, encoded: Encoded, firsts: Mapping[int, int], tags: Sequence[int]
    ) -> dict[str, np.ndarray]:
        labels = np.zeros(len(encoded), np.int32)
        weights = np.zeros(len(encoded), np.float32)
        starts = set(firsts.values())
        for place, word in enumerate(encoded.word_ids.tolist()):
            if word < 0 or place not in starts and not self.label_all_pieces:
                continue
            tag = int(tags[word])
            labels[place] = tag if place in starts else self._continuing[tag]
            weights[place] = 1
        return {"token_labels": labels, "token_weights": weights}

    @property
    def _continuing(self) -> list[int]:
        """By tag: that of a word's later pieces, which begin nothing."""
        numbers = {name: number for number, name in enumerate(self.label_names)}
        if self.scheme == "none":
            return list(numbers.values())
        return [numbers.get(continued(name), number) for name, number in numbers.items()]

    def augment_batch(self, key: jax.Array, batch: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        """Returns the batch as it is."""
        return dict(batch)

    def inputs(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Returns token ids and padding mask; of packed rows also which text a token is of."""
        return text_inputs(batch)

    def loss(
        self, outputs: jax.Array, batch: Mapping[str, jax.Array], /
    ) -> tuple[jax.Array, jax.Array]:
        """Returns the summed cross-entropy of the tokens that carry a tag, and their number.

        Args:
            outputs: [B, T, C] of any float type; the sum is float32.
            batch: "token_labels" and "token_weights" [B, T], "weight" [B]. Tokens and rows of
                weight 0 give exactly nothing, and no gradient, whatever their logits.
        """
        weights = jnp.asarray(batch["token_weights"]) * jnp.asarray(batch["weight"])[:, None]
        logits = jnp.where(weights[..., None] > 0, outputs.astype(jnp.float32), 0.0)
        labels = jnp.asarray(batch["token_labels"])[..., None]
        log_p = jnp.take_along_axis(jax.nn.log_softmax(logits), labels, axis=-1)[..., 0]
        return -jnp.sum(log_p * weights), jnp.sum(weights)

    def predict(
        self,
        items: Sequence[Any],
        tokenizer: Tokenizer,
        max_length: int,
        outputs: Outputs,
        *,
        batch_size: int = 32,
    ) -> list[TagPrediction]:
        """Returns the tags of each text's words, and its entities.

        Args:
            items: texts, split at white space and round marks, or lists of words; the places of
                entities are then those in the words joined by spaces.
            tokenizer: of the model.
            max_length: most tokens of a text; words beyond have no tag.
            outputs: from inputs to logits [B, T, C].
            batch_size: texts at a time.

        Raises:
            DataError: an item is neither a text nor a list of words.
        """
        texts = tagged_items([items] if isinstance(items, str) else items)
        found: list[Any] = [None] * len(texts)
        for place, columns, logits in outputs_of(
            self, texts, tokenizer, max_length, outputs, batch_size
        ):
            found[place] = self._decode(texts[place], columns["first_pieces"], logits)
        return found

    def _decode(
        self, example: Mapping[str, Any], firsts: np.ndarray, logits: np.ndarray
    ) -> TagPrediction:
        words = []
        for word, row in zip(
            example["words"], word_logits(len(example["words"]), firsts, logits), strict=True
        ):
            if row is None:
                words.append(TaggedWord(word, None, None))
                continue
            probabilities = softmax(np.asarray(row, np.float64))
            best = int(probabilities.argmax())
            words.append(TaggedWord(word, self.label_names[best], float(probabilities[best])))
        tags = [tag or OUTSIDE for _, tag, _ in words]
        entities = []
        for label, first, stop in entity_spans(tags, self.scheme):
            start, end = example["spans"][first][0], example["spans"][stop - 1][1]
            # Words of an entity have a tag, and so a probability.
            sure = float(np.mean([word.probability for word in words[first:stop]]))  # type: ignore[arg-type]
            entities.append(Entity(label, example["joined"][start:end], start, end, sure))
        return TagPrediction(tuple(words), tuple(entities), example["id"])


def first_pieces(encoded: Encoded) -> dict[int, int]:
    """Returns the place of the first piece of each word that has one, by the word's number."""
    words, places = np.unique(encoded.word_ids, return_index=True)
    return {int(word): int(place) for word, place in zip(words, places, strict=True) if word >= 0}


def word_logits(count: int, firsts: np.ndarray, logits: np.ndarray) -> list[np.ndarray | None]:
    """Returns the logits [C] of each word, by its first piece; `None` where it has none.

    Args:
        count: words of the text.
        firsts: int32 [max_length], as in a batch.
        logits: [T, C].
    """
    places = [*firsts[:count].tolist(), *[-1] * (count - len(firsts))]
    return [None if place < 0 else logits[place] for place in places]


def tagged_items(items: Sequence[Any]) -> Items:
    """Returns texts, or lists of words, as examples to predict on: "words", "spans", "joined".

    Raises:
        DataError: an item is neither, or has no word.
    """
    examples = []
    for place, item in enumerate(items):
        if isinstance(item, str):
            (words, spans), joined = words_of(item), item
        elif isinstance(item, Sequence) and all(isinstance(word, str) for word in item):
            words, joined = list(item), " ".join(item)
            starts = accumulate((len(word) + 1 for word in words), initial=0)
            spans = [(start, start + len(w)) for start, w in zip(starts, words, strict=False)]
        else:
            raise DataError(
                f"items[{place}]: expected a text or a list of words, got {item!r:.80}."
            )
        if not words:
            raise DataError(f"items[{place}]: expected a text, got one without a word.")
        examples.append({"id": opening(joined), "words": words, "spans": spans, "joined": joined})
    sizes = np.asarray([len(example["joined"]) for example in examples], np.int64)
    return Items(tuple(examples), sizes)
