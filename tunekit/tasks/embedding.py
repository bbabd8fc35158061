"""Sentence embeddings: one vector a text, near to those of texts that mean the same."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from tunekit.data.examples import Source, Splits
from tunekit.data.pipeline import Encode
from tunekit.errors import DataError
from tunekit.models.backbone import Backbone
from tunekit.models.tokenizing import Tokenizer
from tunekit.tasks.contrast import LOWEST, Pooling, candidates_of, unit_vectors
from tunekit.tasks.label_pairs import label_pairs
from tunekit.tasks.spec import Contrast, EmbeddingSpec
from tunekit.tasks.text_items import outputs_of, text_items
from tunekit.tasks.text_task import Outputs, Stands

_JUDGED_PAIRS_PER_TEXT = 2


@dataclass(frozen=True)
class EmbeddingTask:
    """Encodes several texts an example, pools hidden states to unit vectors and compares those.

    Batches have "token_ids" and "padding_mask" int32 [B, S, T] of S = 2 texts, or 3 where the last
    is one that means something else; "score" float32 [B] where pairs have one.
    """

    contrast: Contrast
    """Pairs against the rest of the batch; pairs with a score; or pairs drawn by label."""
    temperature: float = 0.05
    """Cosines are divided by it, where pairs stand against the rest of the batch."""
    pairs_per_text: int = 20
    """Pairs drawn with each text, where they are drawn by label; 2 in evaluation."""
    score_range: tuple[float, float] = (0.0, 1.0)
    """What scores of 0 and 1 are in the data."""
    pooling: Pooling = "avg"
    """How hidden states become one vector: their mean, the first, the largest, the last."""

    @classmethod
    def bind(cls, spec: EmbeddingSpec, splits: Splits) -> EmbeddingTask:
        """Returns the task for the training examples: pairs, or labelled texts.

        Scores outside of -1..1 are brought to 0..1 by the smallest and the largest of them.

        Raises:
            DataError: the contrast needs scores, pairs or labels that the data do not have.
        """
        train: Any = splits.train
        contrast = spec.contrast if spec.contrast != "auto" else _contrast(train[0])
        task = cls(contrast, spec.temperature, spec.pairs_per_text)
        _check_columns(contrast, train[0])
        return replace(task, score_range=_score_range(train)) if contrast == "cosine" else task

    def for_backbone(self, backbone: Backbone) -> EmbeddingTask:
        """Returns the task with the pooling that the backbone was made for."""
        own = getattr(backbone, "sentence_pooling", None)
        usual = "last" if backbone.features == "decoder_states" else "avg"
        return replace(self, pooling=own or usual)

    @property
    def kind(self) -> Literal["pairs", "labelled"]:
        """What the examples are."""
        return "labelled" if self.contrast == "labels" else "pairs"

    @property
    def label_names(self) -> tuple[str, ...]:
        """None: there is no head."""
        return ()

    @property
    def multi_label(self) -> bool:
        """Of no meaning here."""
        return False

    @property
    def stands_on(self) -> Stands:
        """Hidden states alone."""
        return "none"

    @property
    def monitor(self) -> str:
        """The metric that says which weights are best."""
        return {"multiple_negatives": "mrr", "cosine": "spearman", "labels": "loss"}[self.contrast]

    def prepared(
        self, source: Source, tokenizer: Tokenizer, max_length: int, *, training: bool, seed: int
    ) -> Source:
        """Returns the pairs; drawn by `seed` from labelled texts, and by 0 to be judged.

        Raises:
            DataError: labelled texts do not have two labels, or have several each.
        """
        if self.contrast != "labels":
            return source
        count = self.pairs_per_text if training else _JUDGED_PAIRS_PER_TEXT
        return label_pairs(source, count, seed if training else 0)

    def encoder(self, tokenizer: Tokenizer, max_length: int) -> Encode:
        """Returns what turns an example into token ids, a sequence for each text, and "score"."""

        def encode(example: Mapping[str, Any], rng: Any = None) -> dict[str, Any]:
            texts = example["texts"] if "texts" in example else (example["text"],)
            has_score = "texts" in example and self.contrast != "multiple_negatives"
            found = [tokenizer.encode(text, max_length=max_length).ids for text in texts]
            if not has_score:
                return {"token_ids": tuple(found)}
            low, high = self.score_range
            score = np.asarray((_score(example) - low) / (high - low), np.float32)
            return {"token_ids": tuple(found[:2]), "score": score}

        return encode

    def augment_batch(self, key: jax.Array, batch: Mapping[str, jax.Array]) -> dict[str, Any]:
        """Returns the batch: nothing about it is random."""
        return dict(batch)

    def inputs(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Returns token ids and padding mask [B * S, T]."""
        names = ("token_ids", "padding_mask")
        return {name: batch[name].reshape(-1, batch[name].shape[-1]) for name in names}

    def loss(self, outputs: Any, batch: Mapping[str, jax.Array], /) -> tuple[jax.Array, jax.Array]:
        """Returns the summed loss of the examples and their summed weight.

        Pairs with a score, also those drawn by label: (cosine - score)^2, as SetFit has it.
        Otherwise the cross-entropy of the first text's own second text among all second and third
        texts of the batch, by cosine / temperature: InfoNCE (van den Oord et al. 2018,
        https://arxiv.org/abs/1807.03748, equation 4). Texts of the same tokens are not held
        against each other. The examples beside it are part of an example's loss, so micro-batches
        are smaller problems than one batch.

        Args:
            outputs: hidden states [B * S, T, D].
            batch: "token_ids" and "padding_mask" [B, S, T], "weight" [B], "score" [B].
        """
        return self.loss_of(self.vectors(outputs, batch), batch)

    def loss_of(self, vectors: jax.Array, batch: Mapping[str, Any]) -> tuple[jax.Array, jax.Array]:
        """Returns what `loss` does, of unit vectors [B, S, D]."""
        weight = jnp.asarray(batch["weight"], jnp.float32)
        if self.contrast != "multiple_negatives":
            losses = (jnp.sum(vectors[:, 0] * vectors[:, 1], axis=-1) - batch["score"]) ** 2
        else:
            logits, own = self.logits(vectors, batch)
            chosen = jnp.take_along_axis(logits, own[:, None], axis=1)[:, 0]
            losses = jax.nn.logsumexp(logits, axis=1) - chosen
        return jnp.sum(jnp.where(weight > 0, losses, 0.0) * weight), jnp.sum(weight)

    def logits(self, vectors: jax.Array, batch: Mapping[str, Any]) -> tuple[jax.Array, jax.Array]:
        """Returns cosine / temperature of each first text and all others [B, M], and its own [B].

        Those that are no candidates, as they mean the same or are there twice, are at -1e9.
        """
        candidates, own = candidates_of(jnp.asarray(batch["token_ids"]), batch["weight"])
        seconds = vectors[:, 1:].reshape(-1, vectors.shape[-1])
        cosines = jnp.matmul(vectors[:, 0], seconds.T, precision="highest")
        return jnp.where(candidates, cosines / self.temperature, LOWEST), own

    def vectors(self, outputs: Any, batch: Mapping[str, Any]) -> jax.Array:
        """Returns unit vectors float32 [B, S, D] of hidden states [B * S, T, D]."""
        mask = batch["padding_mask"]
        found = unit_vectors(outputs, mask.reshape(-1, mask.shape[-1]), self.pooling)
        return found.reshape(*mask.shape[:-1], found.shape[-1])

    def predict(
        self,
        items: str | Sequence[str],
        tokenizer: Tokenizer,
        max_length: int,
        outputs: Outputs,
        *,
        batch_size: int = 32,
    ) -> np.ndarray:
        """Returns a unit vector of each text, float32 [N, D].

        Args:
            items: texts.
            tokenizer: of the model.
            max_length: most tokens of a text.
            outputs: from token ids and padding mask to hidden states [B, T, D].
            batch_size: texts at a time.

        Raises:
            DataError: an item is no text, or empty.
        """
        texts = text_items(items, pairs=False)

        def pooled(inputs: Mapping[str, np.ndarray]) -> np.ndarray:
            return np.asarray(unit_vectors(outputs(inputs), inputs["padding_mask"], self.pooling))

        rows = outputs_of(self, texts, tokenizer, max_length, pooled, batch_size)
        found = {place: row for place, _, row in rows}
        return np.array([found[place] for place in range(len(texts))], np.float32)


def _contrast(example: Mapping[str, Any]) -> Contrast:
    if "texts" not in example:
        return "labels"
    return "multiple_negatives" if example.get("score") is None else "cosine"


def _check_columns(contrast: Contrast, example: Mapping[str, Any]) -> None:
    wanted, rest = {
        "labels": ("label", "labelled texts, from which pairs are drawn"),
        "cosine": ("score", "pairs of texts with a score"),
        "multiple_negatives": ("texts", "pairs of texts that mean the same"),
    }[contrast]
    if example.get(wanted) is None:
        near = _contrast(example)
        raise DataError(
            f"task.contrast: {contrast!r} expects {rest}, and the data have no {wanted!r} "
            f"({example.get('id', 'the first row')}). For these data it is {near!r}; leave it at "
            "'auto'."
        )
    if contrast == "labels" and not isinstance(example["text"], str):
        raise DataError(
            "task.contrast: 'labels' expects one text a row, and these rows have two "
            f"({example.get('id', 'the first row')}); leave data.pair_column out."
        )


def _score_range(train: Any) -> tuple[float, float]:
    """What becomes 0 and 1: the ends of the scores where they go beyond -1..1."""
    scores = np.array([_score(train[i]) for i in range(len(train))])
    low, high = float(scores.min()), float(scores.max())
    if max(-low, high) <= 1:
        return 0.0, 1.0
    if low == high:
        raise DataError(f"task.contrast: every pair has the score {low:g}; nothing sets them apart")
    return low, high


def _score(example: Mapping[str, Any]) -> float:
    score = example.get("score")
    if score is None:
        raise DataError(
            f"{example['id']}: expected a score, as the first pair has one; give every pair one, "
            "or none (task.contrast: multiple_negatives)"
        )
    return float(score)
