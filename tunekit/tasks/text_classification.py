"""Text classification: one label a text or pair of texts (softmax), or any number (sigmoid)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from tunekit.data.examples import Source, Splits
from tunekit.data.pipeline import Encode
from tunekit.models.tokenizing import Tokenizer
from tunekit.tasks.classification_loss import (
    bound_labels,
    class_targets,
    cross_entropy,
    decode_labels,
    encode_label,
)
from tunekit.tasks.prediction import Prediction
from tunekit.tasks.spec import ClassificationSpec
from tunekit.tasks.text_items import outputs_of, text_columns, text_inputs, text_items
from tunekit.tasks.text_task import Outputs, Stands

if TYPE_CHECKING:
    from tunekit.data.text_kinds import TextKind


@dataclass(frozen=True)
class TextClassification:
    """Encodes texts, scores logits, and reads them back as labels.

    Batches have "label" int32 [B] (multi-label: float32 [B, C]), and pairs "token_types" int32
    [B, T]; `augment_batch` adds "target" float32 [B, C].
    """

    label_names: tuple[str, ...]
    """Labels in the order of the logits."""
    multi_label: bool = False
    """True: one sigmoid a class; False: one softmax over the classes."""
    label_smoothing: float = 0.0
    """Share of each target spread over the classes, by `loss`; only where `augment_batch` ran."""
    class_weights: tuple[float, ...] | None = None
    """Weight of each class in a training loss; multi-label: of each class' positives."""
    top_k: int = 5
    """The k of top-k accuracy."""
    pairs: bool = False
    """Whether an example is two texts."""

    @classmethod
    def bind(cls, spec: ClassificationSpec, splits: Splits) -> TextClassification:
        """Returns the task for the labels of the training texts.

        Raises:
            DataError: the data has several labels a text and the task one, the class weights are
                not one a label, or a class to balance has no example.
        """
        pairs = not isinstance(splits.train[0]["text"], str)
        return cls(**bound_labels(spec, splits.train), top_k=spec.top_k, pairs=pairs)

    @property
    def kind(self) -> TextKind:
        """What its examples are."""
        return "labelled"

    @property
    def stands_on(self) -> Stands:
        """Its logits are of each text."""
        return "text"

    @property
    def monitor(self) -> str:
        """The metric that says which weights are best."""
        return "f1_micro" if self.multi_label else "accuracy"

    def prepared(
        self, source: Source, tokenizer: Tokenizer, max_length: int, *, training: bool, seed: int
    ) -> Source:
        """Returns the source itself."""
        return source

    def encoder(self, tokenizer: Tokenizer, max_length: int) -> Encode:
        """Returns what turns one example into columns; without a label it gives none."""

        def encode(
            example: Mapping[str, Any], rng: np.random.Generator | None = None
        ) -> dict[str, np.ndarray]:
            columns = text_columns(tokenizer, example["text"], max_length)
            if "label" in example:
                columns["label"] = encode_label(self, example["label"])
            return columns

        return encode

    def augment_batch(self, key: jax.Array, batch: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        """Returns the batch with "target" float32 [B, C]."""
        return {**batch, "target": class_targets(self, batch["label"])}

    def inputs(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Returns token ids and padding mask; of pairs also which text a token is of."""
        return text_inputs(batch)

    def loss(
        self, outputs: jax.Array, batch: Mapping[str, jax.Array], /
    ) -> tuple[jax.Array, jax.Array]:
        """Returns the summed loss of logits [B, C] and the summed weight; see `cross_entropy`."""
        return cross_entropy(self, outputs, batch)

    def predict(
        self,
        items: Sequence[Any],
        tokenizer: Tokenizer,
        max_length: int,
        outputs: Outputs,
        *,
        threshold: float = 0.5,
        batch_size: int = 32,
    ) -> list[Prediction]:
        """Returns one prediction a text, or a pair.

        Args:
            items: texts, or pairs of texts.
            tokenizer: of the model.
            max_length: most tokens of a text.
            outputs: from inputs to logits [B, C].
            threshold: multi-label: the least probability of a label that is given.
            batch_size: texts at a time.

        Raises:
            DataError: an item is no text, or no pair where the task is of pairs.
        """
        texts = text_items(items, pairs=self.pairs)
        logits = np.zeros((len(texts), len(self.label_names)), np.float32)
        for place, _, row in outputs_of(self, texts, tokenizer, max_length, outputs, batch_size):
            logits[place] = row
        ids = [texts.name(place) for place in range(len(texts))]
        return decode_labels(self, logits, ids=ids, threshold=threshold)
