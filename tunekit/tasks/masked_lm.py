"""Hidden tokens of plain text, to be found again: an encoder learns a domain's language."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np
from scipy.special import softmax

from tunekit.data.examples import Source, Splits
from tunekit.data.pipeline import Encode
from tunekit.data.sequences import SequenceBatches, buckets
from tunekit.errors import DataError, ModelError
from tunekit.models.tokenizing import Encoded, Tokenizer
from tunekit.tasks.spec import MaskedLMSpec
from tunekit.tasks.text_items import Items, real_rows
from tunekit.tasks.text_task import Outputs, Stands
from tunekit.tasks.text_windows import text_windows

MASK = "[MASK]"
"""What a text may write for the tokenizer's own mask token."""
_HIDDEN, _REPLACED = 0.8, 0.1
"""Of the tokens to be found; the rest stay as they are (Devlin et al. 2018, section 3.1)."""
_INPUTS = ("token_ids", "padding_mask", "positions", "documents", "targets", "loss_weights")


@dataclass(frozen=True)
class Filled:
    """A text with its hidden words found."""

    id: str
    """The text as it was given."""
    text: str
    """With the most probable word in each place, as the tokenizer spells it."""
    words: tuple[tuple[tuple[str, float], ...], ...]
    """For each hidden place, words and their probabilities, most probable first."""

    def __str__(self) -> str:
        """Returns the text, then the words of each place."""
        places = (", ".join(f"{word} {p:.1%}" for word, p in place) for place in self.words)
        return f"{self.text} ({'; '.join(places)})"

    def to_json(self) -> dict[str, Any]:
        """Returns the prediction in JSON's types."""
        words = [[{"word": w, "probability": p} for w, p in place] for place in self.words]
        return {"id": self.id, "text": self.text, "words": words}


@dataclass(frozen=True)
class MaskedLM:
    """Hides tokens, other ones in every pass over the data, and sums the losses of those.

    Batches have "token_ids", "padding_mask", "targets" int32 [B, T], the text as it was, and
    "loss_weights" float32 [B, T], 1 where a token is to be found.
    """

    kind: ClassVar[Literal["plain"]] = "plain"

    mask_probability: float = 0.15
    """Share of a text's tokens to be found, and one at least; special ones never are."""
    whole_words: bool = False
    """Whether the pieces of a word are chosen together."""

    @classmethod
    def bind(cls, spec: MaskedLMSpec, splits: Splits) -> MaskedLM:
        """Returns the task; nothing about it follows from the data."""
        return cls(spec.mask_probability, spec.whole_words)

    @property
    def label_names(self) -> tuple[str, ...]:
        """None: the vocabulary is the tokenizer's."""
        return ()

    @property
    def multi_label(self) -> bool:
        """Of no meaning here."""
        return False

    @property
    def stands_on(self) -> Stands:
        """The head for hidden tokens, the model's own or a fresh one."""
        return "language"

    @property
    def monitor(self) -> str:
        """The loss of a hidden token."""
        return "loss"

    def prepared(
        self, source: Source, tokenizer: Tokenizer, max_length: int, *, training: bool, seed: int
    ) -> Source:
        """Returns the texts, those too long for one sequence in several pieces."""
        return text_windows(source, tokenizer, max_length)

    def encoder(self, tokenizer: Tokenizer, max_length: int) -> Encode:
        """Returns what hides tokens of a text; without a generator always the same ones.

        Of the tokens to be found 80 % are hidden, 10 % replaced by any other and 10 % left.

        Raises:
            ModelError: the tokenizer has no mask token.
        """
        mask_id = _mask_id(tokenizer)
        specials = np.fromiter(tokenizer.special_ids, np.int32)
        others = np.setdiff1d(np.arange(len(tokenizer), dtype=np.int32), specials)

        def encode(
            example: Mapping[str, Any], rng: np.random.Generator | None = None
        ) -> dict[str, np.ndarray]:
            encoded = tokenizer.encode(example["text"], max_length=max_length)
            if rng is None:  # By the text, wherever in the data it stands.
                rng = np.random.default_rng(zlib.crc32(encoded.ids.tobytes()))
            ordinary = ~encoded.special & ~np.isin(encoded.ids, specials)
            chosen = self._chosen(encoded, ordinary, rng)
            way = rng.random(len(chosen))
            ids = encoded.ids.copy()
            ids[chosen[way < _HIDDEN]] = mask_id
            replaced = chosen[(way >= _HIDDEN) & (way < _HIDDEN + _REPLACED)]
            ids[replaced] = rng.choice(others, len(replaced))
            weights = np.zeros(len(ids), np.float32)
            weights[chosen] = 1
            return {"token_ids": ids, "targets": encoded.ids, "loss_weights": weights}

        return encode

    def _chosen(
        self, encoded: Encoded, ordinary: np.ndarray, rng: np.random.Generator
    ) -> np.ndarray:
        """The places of the tokens to be found, among the ordinary ones."""
        places = np.flatnonzero(ordinary)
        if not len(places):
            return places
        wanted = max(1, round(self.mask_probability * len(places)))
        if not self.whole_words:
            return np.sort(rng.choice(places, wanted, replace=False))
        words, pieces = np.unique(encoded.word_ids[places], return_counts=True)
        order = rng.permutation(len(words))
        before = np.cumsum(pieces[order]) - pieces[order]
        taken = words[order[before < wanted]]
        return places[np.isin(encoded.word_ids[places], taken)]

    def augment_batch(self, key: jax.Array, batch: Mapping[str, jax.Array]) -> dict[str, Any]:
        """Returns the batch: tokens are hidden while it is read."""
        return dict(batch)

    def inputs(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Returns what the model takes; with targets, it gives the loss of each token [B, T]."""
        return {name: batch[name] for name in _INPUTS if name in batch}

    def loss(
        self, outputs: jax.Array, batch: Mapping[str, jax.Array], /
    ) -> tuple[jax.Array, jax.Array]:
        """Returns the summed loss and the number of tokens to be found.

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
        items: str | Sequence[str],
        tokenizer: Tokenizer,
        max_length: int,
        outputs: Outputs,
        *,
        top_k: int = 5,
        batch_size: int = 4,
    ) -> list[Filled]:
        """Returns each text with its hidden words found.

        Args:
            items: texts with "[MASK]", or the tokenizer's own mask token, in the place of a word.
            tokenizer: of the model.
            max_length: most tokens of a text.
            outputs: from token ids and padding mask to logits [B, T, V].
            top_k: words given for each place.
            batch_size: texts at a time.

        Raises:
            DataError: a text hides nothing, or only beyond `max_length`.
            ModelError: the tokenizer has no mask token.
        """
        texts = [items] if isinstance(items, str) else list(items)
        columns = [_hidden(text, i, tokenizer, max_length) for i, text in enumerate(texts)]
        if not texts:
            return []
        examples = tuple(
            {"id": text, "token_ids": ids} for text, ids in zip(texts, columns, strict=True)
        )
        batches = SequenceBatches(
            Items(examples, np.array([len(ids) for ids in columns], np.int64)),
            lambda example, rng: {"token_ids": example["token_ids"]},
            batch_size=min(batch_size, len(texts)),
            seed=0,
            shuffle=False,
            buckets=buckets(max_length),
            pad_id=tokenizer.pad_id,
        )
        filled = {}
        for batch in batches.epoch(0):
            for row, logits in real_rows(batch, outputs(self.inputs(batch))):
                place = int(row["index"])
                filled[place] = _filled(texts[place], row, logits, tokenizer, top_k)
        return [filled[place] for place in range(len(texts))]


def _filled(
    text: str,
    row: Mapping[str, np.ndarray],
    logits: np.ndarray,
    tokenizer: Tokenizer,
    top_k: int,
) -> Filled:
    """A text with the words that logits [T, V] say for its hidden places."""
    ids = row["token_ids"][: row["padding_mask"].sum()].copy()
    hidden = np.flatnonzero(ids == _mask_id(tokenizer))
    # Rows of the embedding that the tokenizer does not know are no words.
    found = softmax(np.asarray(logits[hidden, : len(tokenizer)], np.float64), axis=-1)
    best = np.argsort(-found, axis=-1, kind="stable")[:, :top_k]
    ids[hidden] = best[:, 0]
    words = tuple(
        tuple((tokenizer.decode([i]).strip(), float(p[i])) for i in chosen)
        for p, chosen in zip(found, best, strict=True)
    )
    return Filled(text, tokenizer.decode(ids), words)


def _mask_id(tokenizer: Tokenizer) -> int:
    if tokenizer.mask_id is None:
        raise ModelError(
            "the tokenizer has no mask token, so nothing can be hidden from the model: "
            "task masked_lm is for encoders such as BERT; for a decoder use causal_lm."
        )
    return tokenizer.mask_id


def _hidden(text: str, place: int, tokenizer: Tokenizer, max_length: int) -> np.ndarray:
    """Token ids of a text to predict on."""
    mask_id = _mask_id(tokenizer)
    own = tokenizer.token(mask_id)
    ids = tokenizer.encode(text.replace(MASK, own)).ids
    if not (ids == mask_id).any():
        raise DataError(f"items[{place}]: expected a text with {MASK} for a word, got {text!r:.80}")
    cut = tokenizer.encode(text.replace(MASK, own), max_length=max_length).ids
    if (cut == mask_id).sum() < (ids == mask_id).sum():
        raise DataError(
            f"items[{place}]: {MASK} stands beyond the first {max_length} tokens; shorten the text"
        )
    return cut
