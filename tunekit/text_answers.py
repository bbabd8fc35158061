"""What a model of texts answers: metrics on examples, predictions on others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tunekit.data.examples import Source
from tunekit.data.sequences import SequenceBatches, buckets
from tunekit.data.spec import BatchSpec, DataSpec
from tunekit.data.text_source import open_text_examples
from tunekit.errors import DataError, ModelError
from tunekit.evaluation.text import evaluate as metrics_of
from tunekit.methods.spec import PrefixTuning, PromptTuning
from tunekit.models.model import Model
from tunekit.tasks.text_task import TextTask

LARGEST_BATCH = 32
LONGEST = 512
"""Tokens of a text where neither recipe nor model say less: what attention takes grows squarely."""
_TEXT_SUFFIXES = (".txt",)


def evaluate(
    model: Model, task: TextTask, data: Any, columns: DataSpec, batch: BatchSpec
) -> dict[str, Any]:
    """Returns the metrics of the model on examples.

    Raises:
        DataError: the data cannot be read, or has labels that the model does not know.
    """
    source = open_text_examples(data, task.label_names, columns, task.kind)
    return metrics_on(model, task, source, batch)


def metrics_on(model: Model, task: TextTask, source: Source, batch: BatchSpec) -> dict[str, Any]:
    """Returns the metrics of the model on the examples of a source."""
    tokenizer, length = model.backbone.text_tokenizer(), longest(batch, model)
    prepared = task.prepared(source, tokenizer, length, training=False, seed=0)
    batches = SequenceBatches(
        prepared,
        task.encoder(tokenizer, length),
        batch_size=min(LARGEST_BATCH, batch.size, len(prepared)),
        seed=0,
        shuffle=False,
        buckets=buckets(length),
        pad_id=tokenizer.pad_id,
    )
    return metrics_of(task, source, batches.epoch(0), model.apply)


def predict(
    model: Model, task: TextTask, items: Any, batch: BatchSpec, **options: Any
) -> list[Any]:
    """Returns one prediction an item, in the order given.

    Args:
        model: what predicts.
        task: says what an item is: a text, a pair, words, a question with its context.
        items: of these; a path of a .txt file is its lines.
        batch: whose longest text counts.
        options: of the task's own `predict`.

    Raises:
        DataError: an item is none of these.
    """
    items = _lines(items)
    length = longest(batch, model)
    return task.predict(items, model.backbone.text_tokenizer(), length, model.apply, **options)  # pyright: ignore


def longest(batch: BatchSpec, model: Model) -> int:
    """Returns the tokens that a text may have beside what adapters have learned; `longest_of`."""
    own, source = model.backbone.max_length_tokens, model.backbone.source
    specs = [adapter.spec for adapter, _ in model.adapters.acting]
    learned = sum(each.length for each in specs if isinstance(each, PrefixTuning | PromptTuning))
    return longest_of(batch, own and own - learned, source)


def longest_of(batch: BatchSpec, own: int | None, source: str) -> int:
    """Returns the tokens that a text may have.

    Args:
        batch: says how many are asked for.
        own: how many the model was made for; `None` is any number.
        source: of the model, for the message.

    Raises:
        ModelError: more are asked for than the model has positions.
    """
    if batch.max_length is not None and own is not None and batch.max_length > own:
        raise ModelError(
            f"batch.max_length: expected at most {own}, the longest text that '{source}' was made "
            f"for, got {batch.max_length}."
        )
    return batch.max_length or min(LONGEST, own or LONGEST)


def _lines(items: Any) -> Any:
    """The lines of a text file in its place."""
    if isinstance(items, Path) or (isinstance(items, str) and items.endswith(_TEXT_SUFFIXES)):
        path = Path(items).expanduser()
        if not path.is_file():
            raise DataError(f"items: no such file: {path}; give texts themselves as a list")
        lines = path.read_text(encoding="utf-8").splitlines()
        return [line for line in lines if line.strip()]
    return items
