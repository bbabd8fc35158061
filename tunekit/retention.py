"""Forgetting: what a language model has lost of the old for the new, and how much less would do."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunekit.data.pipeline import Columns
from tunekit.data.sequences import SequenceBatches, buckets
from tunekit.data.spec import BatchSpec, DataSpec
from tunekit.data.text_examples import TextSource
from tunekit.data.text_source import open_text_examples
from tunekit.errors import DataError, ModelError
from tunekit.evaluation.retention import (
    Dial,
    RetentionRow,
    adapter_dial,
    distances,
    pareto_front,
    weight_dial,
)
from tunekit.models.loading import load_model
from tunekit.models.model import Model
from tunekit.names import structural_names
from tunekit.report.retention_plot import plot_retention
from tunekit.result import Result
from tunekit.tasks.language_modelling import LanguageModelling
from tunekit.tasks.likelihood import perplexity
from tunekit.text_answers import longest

SCALES = (0.0, 0.25, 0.5, 0.75, 1.0, 1.25)
_LOGIT_BYTES = 256 << 20
"""Of one batch: log probabilities of two models are held."""
_LARGEST_BATCH = 16


@dataclass(frozen=True)
class Retention:
    """A new task against what was known before, at several strengths of the tuning.

    Example:
        >>> found = tunekit.retention("out/", retain="general.txt", data="held_out.jsonl")
        >>> print(found)
        >>> scale = found.best(0.02).scale
    """

    rows: tuple[RetentionRow, ...]
    """In the order of their scales; that of 0, the base, is always there."""
    turns: str
    """What the scales scale: "adapters" or "weights"."""
    tokens: int
    """Of the new task, that the losses are means over."""
    retained_tokens: int
    """Of the retention set."""

    @property
    def base(self) -> RetentionRow:
        """The row of the model before training."""
        return next(row for row in self.rows if row.scale == 0)

    @property
    def front(self) -> tuple[RetentionRow, ...]:
        """The rows worth choosing from: better on one side only at a price on the other."""
        return pareto_front(self.rows)

    def best(self, budget: float) -> RetentionRow:
        """Returns the row that is best on the new task within a budget of forgetting.

        Args:
            budget: how far the retained perplexity may rise, as a share of the base's: 0.05 is 5 %.

        Raises:
            DataError: the budget is negative, or no number.
        """
        if not budget >= 0:
            raise DataError(f"budget: expected a share of 0 or more, such as 0.05, got {budget}.")
        most = self.base.retained_perplexity * (1 + budget)
        within = [row for row in self.rows if row.retained_perplexity <= most]
        return min(within, key=lambda row: row.loss)

    def table(self) -> str:
        """Returns one line a row; those on the front are marked with *."""
        head = ("scale", "new perplexity", "retained perplexity", "change", "KL to base", "front")
        front, before = self.front, self.base.retained_perplexity
        lines: list[tuple[str, ...]] = [head]
        for row in self.rows:
            change = row.retained_perplexity / before - 1
            numbers = f"{row.perplexity:.4g}", f"{row.retained_perplexity:.4g}", f"{change:+.1%}"
            mark = "*" if row in front else ""
            lines.append((f"{row.scale:g}", *numbers, f"{row.kl:.4f}", mark))
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        return "\n".join("  ".join(map(str.rjust, line, widths)).rstrip() for line in lines)

    def __str__(self) -> str:
        """Returns the table, and of what it is."""
        told = f"{self.tokens:,} tokens of the new task, {self.retained_tokens:,} retained"
        return f"{self.table()}\n\n{self.turns} scaled; {told}"

    def to_json(self) -> dict[str, Any]:
        """Returns everything as plain values."""
        front = self.front
        return {
            "turns": self.turns,
            "tokens": self.tokens,
            "retained_tokens": self.retained_tokens,
            "rows": [{**row.to_json(), "on_front": row in front} for row in self.rows],
        }

    def plot(self, path: str | Path) -> Path:
        """Writes new task against retained perplexity as a PNG; returns its path."""
        return plot_retention(self.to_json(), path)

    def save(self, folder: str | Path) -> Path:
        """Writes retention.json and retention.png into `folder`, which is made; returns it."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        text = json.dumps(self.to_json(), indent=2)
        (folder / "retention.json").write_text(text, encoding="utf-8")
        self.plot(folder / "retention.png")
        return folder


def retention(
    tuned: Result | Model,
    *,
    retain: Any,
    data: Any,
    scales: Sequence[float] = SCALES,
    base: Model | str | Path | Mapping[str, Any] | None = None,
    task: LanguageModelling | None = None,
    max_length: int | None = None,
) -> Retention:
    """Returns what a tuned language model lost of the old for the new; the model stays as it is.

    Where adapters act, the dial scales them, and what was trained beside them stays as it is; where
    the network itself was trained, it goes along the line between the weights before and after.

    Args:
        tuned: a result or a model.
        retain: texts or dialogues that the model should still know: a path or a list.
        data: examples of the new task that it was not trained on.
        scales: places on the dial; 0 is the base, and is always measured.
        base: where all was trained, the model before: itself, its name, or values by structural
            name; `None` loads what the model was made from.
        task: how dialogues become tokens; `None` is that of the result.
        max_length: longest text in tokens; `None` is that of the result.

    Raises:
        DataError: no scale, one that is no number, or data that cannot be read.
        ModelError: it is no language model, or cannot be scaled.
    """
    model, task, batch, columns = _parts(tuned, task, max_length)
    places = _places(scales)
    dial = _dial(model, places, base)
    # As dialogues also plain text is read.
    sources = {
        "data": open_text_examples(data, (), columns, task.kind),
        "retain": open_text_examples(retain, (), DataSpec(), "dialogue"),
    }
    found = {
        name: distances(dial, places, _batches(model, task, batch, source), name)
        for name, source in sources.items()
    }
    rows = [
        RetentionRow(
            scale=scale,
            loss=new.loss,
            perplexity=perplexity(new.loss),
            retained_loss=old.loss,
            retained_perplexity=perplexity(old.loss),
            kl=old.kl,
        )
        for scale, new, old in zip(places, found["data"], found["retain"], strict=True)
    ]
    return Retention(tuple(rows), dial.turns, found["data"][0].tokens, found["retain"][0].tokens)


def _parts(
    tuned: Result | Model, task: LanguageModelling | None, max_length: int | None
) -> tuple[Model, LanguageModelling, BatchSpec, DataSpec]:
    """The model, what is asked of it, how long texts may be, and the columns of the new task."""
    model = tuned if isinstance(tuned, Model) else tuned.model
    batch, columns = BatchSpec(max_length=max_length), DataSpec()
    if isinstance(tuned, Result):
        task = task or _task(tuned)
        said = tuned.recipe if isinstance(tuned.recipe, Mapping) else tuned.recipe.model_dump()
        if max_length is None:
            batch = BatchSpec(max_length=said["batch"].get("max_length"))
        named = {name: value for name, value in said["data"].items() if name.endswith("_column")}
        columns = DataSpec(**named)
    if model.backbone.language_head is None or model.labels:
        raise ModelError(
            f"retention is of causal language models, and the one on '{model.backbone.source}' "
            "gives no logits of tokens. Compare its result.evaluate(...) before and after."
        )
    return model, task or LanguageModelling(), batch, columns


def _task(result: Result) -> LanguageModelling:
    if not isinstance(result.task, LanguageModelling):
        raise ModelError(
            "retention is of causal language models, and this result is of "
            f"{type(result.task).__name__}. Compare its result.evaluate(...) before and after."
        )
    return result.task


def _places(scales: Sequence[float]) -> list[float]:
    wrong = [scale for scale in scales if not math.isfinite(scale)]
    if wrong or not scales:
        raise DataError(f"scales: expected numbers such as 0, 0.5, 1, got {list(scales)}.")
    return sorted({0.0, *(float(scale) for scale in scales)})


def _dial(model: Model, places: Sequence[float], base: Any) -> Dial:
    if model.adapters.active and base is None:
        return adapter_dial(model, places)
    if model.adapters.active:
        raise ModelError(
            "base: is of a model that was trained as a whole, and this one has active adapters, "
            "which are scaled instead. Leave base out."
        )
    if base is None:
        base = model.adapters.before_merge or model.backbone.source
    if isinstance(base, str | Path):
        base = load_model(base, dtype=model.backbone.keras.dtype_policy.name)
    if isinstance(base, Model):
        base = {name: each.value for name, each in structural_names(base.keras).items()}
    return weight_dial(model, base)


def _batches(
    model: Model, task: LanguageModelling, batch: BatchSpec, source: TextSource
) -> Iterator[Columns]:
    tokenizer, length = model.backbone.text_tokenizer(), longest(batch, model)
    row_bytes = 4 * length * (model.backbone.vocabulary or len(tokenizer))
    return SequenceBatches(
        source,
        task.encoder(tokenizer, length),
        batch_size=max(1, min(_LARGEST_BATCH, len(source), _LOGIT_BYTES // row_bytes)),
        seed=0,
        shuffle=False,
        buckets=buckets(length),
        pad_id=tokenizer.pad_id,
    ).epoch(0)
