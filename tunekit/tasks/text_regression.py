"""Text regression: a number for each text, or for each pair of texts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from tunekit.data.examples import Source, Splits
from tunekit.data.pipeline import Encode
from tunekit.errors import DataError
from tunekit.models.tokenizing import Tokenizer
from tunekit.tasks.prediction import NumberPrediction
from tunekit.tasks.spec import Loss, RegressionSpec
from tunekit.tasks.text_items import outputs_of, text_columns, text_inputs, text_items
from tunekit.tasks.text_task import Outputs, Stands

if TYPE_CHECKING:
    from tunekit.data.text_kinds import TextKind


@dataclass(frozen=True)
class TextRegression:
    """Learns numbers in standard deviations from their mean, and gives them in their own unit.

    Batches have "target" float32 [B], standardised, and pairs "token_types" int32 [B, T].
    """

    mean: float = 0.0
    """Of the training numbers."""
    deviation: float = 1.0
    """Standard deviation of the training numbers."""
    error: Loss = "mse"
    """Squared error, absolute error, or Huber's."""
    pairs: bool = False
    """Whether an example is two texts."""

    @classmethod
    def bind(cls, spec: RegressionSpec, splits: Splits) -> TextRegression:
        """Returns the task for the numbers of the training texts.

        Raises:
            DataError: all numbers are equal.
        """
        numbers = np.asarray(splits.train.label_array, np.float64)
        if numbers.min() == numbers.max():
            raise DataError(
                f"data: every training text has the number {numbers[0]:g}, which leaves nothing to "
                "learn; check data.label_column."
            )
        return cls(
            mean=float(numbers.mean()),
            deviation=float(numbers.std()),
            error=spec.loss,
            pairs=not isinstance(splits.train[0]["text"], str),
        )

    @property
    def kind(self) -> TextKind:
        """What its examples are."""
        return "number"

    @property
    def label_names(self) -> tuple[str, ...]:
        """Its one output."""
        return ("value",)

    @property
    def multi_label(self) -> bool:
        """It has no labels."""
        return False

    @property
    def stands_on(self) -> Stands:
        """Its output is of each text."""
        return "text"

    @property
    def monitor(self) -> str:
        """The metric that says which weights are best; correlations may be undefined."""
        return "loss"

    def prepared(
        self, source: Source, tokenizer: Tokenizer, max_length: int, *, training: bool, seed: int
    ) -> Source:
        """Returns the source itself."""
        return source

    def encoder(self, tokenizer: Tokenizer, max_length: int) -> Encode:
        """Returns what turns one example into columns; without a number it gives no target."""

        def encode(
            example: Mapping[str, Any], rng: np.random.Generator | None = None
        ) -> dict[str, np.ndarray]:
            columns = text_columns(tokenizer, example["text"], max_length)
            if "label" in example:
                # In float64: a small spread far from zero would be lost in float32.
                target = (np.float64(example["label"]) - self.mean) / self.deviation
                columns["target"] = np.asarray(target, np.float32)
            return columns

        return encode

    def augment_batch(self, key: jax.Array, batch: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        """Returns the batch as it is."""
        return dict(batch)

    def inputs(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Returns token ids and padding mask; of pairs also which text a token is of."""
        return text_inputs(batch)

    def loss(
        self, outputs: jax.Array, batch: Mapping[str, jax.Array], /
    ) -> tuple[jax.Array, jax.Array]:
        """Returns the summed error, in standard deviations, and the summed weight.

        Of the residual r: r^2, |r|, or Huber's r^2 / 2 where |r| <= 1 and |r| - 1/2 beyond.

        Args:
            outputs: [B, 1] of any float type; the sum is float32.
            batch: "target" and "weight" [B]. Rows of weight 0 give exactly nothing, and no
                gradient, whatever their outputs.
        """
        weight = jnp.asarray(batch["weight"], jnp.float32)
        residual = outputs[:, 0].astype(jnp.float32) - batch["target"]
        residual = jnp.where(weight > 0, residual, 0.0)
        size = jnp.abs(residual)
        match self.error:
            case "mse":
                errors = jnp.square(residual)
            case "mae":
                errors = size
            case "huber":
                errors = jnp.where(size <= 1, jnp.square(residual) / 2, size - 0.5)
        return jnp.sum(errors * weight), jnp.sum(weight)

    def numbers(self, outputs: np.ndarray) -> np.ndarray:
        """Returns standardised numbers of any shape in the unit of the data, float64."""
        return np.asarray(outputs, np.float64) * self.deviation + self.mean

    def predict(
        self,
        items: Sequence[Any],
        tokenizer: Tokenizer,
        max_length: int,
        outputs: Outputs,
        *,
        batch_size: int = 32,
    ) -> list[NumberPrediction]:
        """Returns one number a text, or a pair.

        Args:
            items: texts, or pairs of texts.
            tokenizer: of the model.
            max_length: most tokens of a text.
            outputs: from inputs to standardised numbers [B, 1].
            batch_size: texts at a time.

        Raises:
            DataError: an item is no text, or no pair where the task is of pairs.
        """
        texts = text_items(items, pairs=self.pairs)
        values = np.zeros(len(texts))
        for place, _, row in outputs_of(self, texts, tokenizer, max_length, outputs, batch_size):
            values[place] = self.numbers(row)[0]
        return [NumberPrediction(float(v), texts.name(i)) for i, v in enumerate(values)]
