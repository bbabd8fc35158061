"""What a row becomes, by what is learned of it: a reader for each kind of examples of texts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from tunekit.data.cells import (
    cell_of,
    items_of,
    label_names,
    number_of,
    one_name,
    strings_of,
    text_of,
)
from tunekit.data.columns import Columns
from tunekit.data.dialogues import DialogueColumns, read_dialogue
from tunekit.data.examples import listed
from tunekit.data.rows import BadRow, Row, Rows, described
from tunekit.data.spec import DataSpec
from tunekit.errors import Issue

TextKind = Literal["labelled", "number", "tagged", "answers", "pairs", "dialogue", "plain"]
_UNNAMED = DataSpec()


@dataclass(frozen=True, slots=True)
class Reading:
    """One row, its labels not yet numbers."""

    inputs: dict[str, Any]
    """What the model sees; equal inputs are copies of each other."""
    outputs: dict[str, Any] = field(default_factory=dict)
    """What is asked of it, where that is more than labels."""
    labels: tuple[str, ...] = ()
    """Names: of the example, or of each word."""
    several: bool = False
    """Whether the row shows that examples have any number of labels."""
    number: float = 0.0


ClassNames = Mapping[str, tuple[str, ...]]


@dataclass(frozen=True)
class Reader:
    """What makes examples of the rows of a table."""

    read: Callable[[Row], Reading]
    """Raises BadRow."""
    declared: tuple[str, ...] = ()
    """Names of the classes, where the table gives them."""


@dataclass(frozen=True)
class Readings:
    """Rows as they are read; threads may read them at once."""

    rows: Rows
    reader: Reader

    def __len__(self) -> int:
        """Returns the number of rows, bad ones included."""
        return len(self.rows)

    def read(self, index: int) -> Reading:
        """Returns what a row is read as. Raises BadRow."""
        return self.reader.read(self.rows.read(index))

    def name(self, index: int) -> str:
        """Returns what a message calls the row."""
        return self.rows.name(index)


def reader(kind: TextKind, columns: Columns, spec: DataSpec, class_names: ClassNames) -> Reader:
    """Returns what reads the rows of a table; adds an issue to `columns` for each not found."""
    makers = {
        "labelled": _labelled,
        "number": _number,
        "tagged": _tagged,
        "answers": _answers,
        "pairs": _pairs,
        "dialogue": _dialogue,
        "plain": _plain,
    }
    return makers[kind](columns, spec, class_names)


def _labelled(columns: Columns, spec: DataSpec, class_names: ClassNames) -> Reader:
    texts = _text_columns(columns, spec)
    label = columns.find("label", _label_column(spec), "data.label_column")
    declared = class_names.get(label, ())

    def read(row: Row) -> Reading:
        inputs = {"text": _texts(row, texts)}
        cell = cell_of(row, label)
        labels = label_names(cell, spec.label_separator, declared, spec.labels or ())
        return Reading(inputs, {}, labels, isinstance(cell, (list, tuple)) or len(labels) > 1)

    return Reader(read, declared)


def _number(columns: Columns, spec: DataSpec, class_names: ClassNames) -> Reader:
    texts = _text_columns(columns, spec)
    label = columns.find("number", _label_column(spec), "data.label_column")

    def read(row: Row) -> Reading:
        return Reading({"text": _texts(row, texts)}, number=number_of(row, label))

    return Reader(read)


def _tagged(columns: Columns, spec: DataSpec, class_names: ClassNames) -> Reader:
    words = columns.find("words", spec.text_column, "data.text_column")
    tags = columns.find("tags", _label_column(spec), "data.label_column")
    declared, wanted = class_names.get(tags, ()), spec.labels or ()

    def read(row: Row) -> Reading:
        found = strings_of(cell_of(row, words), words)
        labels = [one_name(tag, declared, wanted) for tag in items_of(cell_of(row, tags), tags)]
        if len(found) != len(labels):
            raise BadRow(f"{len(found)} words, but {len(labels)} tags")
        if None in labels:
            raise BadRow(f"no tag for the word {found[labels.index(None)]!r}")
        return Reading({"words": found}, {}, tuple(str(tag) for tag in labels))

    return Reader(read, declared)


def _answers(columns: Columns, spec: DataSpec, class_names: ClassNames) -> Reader:
    question = columns.find("question", spec.text_column, "data.text_column")
    context = columns.find("context", spec.pair_column, "data.pair_column")
    answers = columns.find("answers", _label_column(spec), "data.label_column")

    def read(row: Row) -> Reading:
        inputs = {"question": text_of(row, question), "context": text_of(row, context)}
        found = _spans(row.get(answers), inputs["context"])
        return Reading(inputs, {"answers": found})

    return Reader(read)


def _pairs(columns: Columns, spec: DataSpec, class_names: ClassNames) -> Reader:
    texts = columns.pair()
    if spec.text_column and spec.pair_column:
        texts = (
            columns.named(spec.text_column, "data.text_column"),
            columns.named(spec.pair_column, "data.pair_column"),
        )
    elif not texts or spec.text_column or spec.pair_column:
        message = (
            f"{columns.place} has no two columns of texts that are known to belong together, such "
            "as sentence1 and sentence2; name both, as text_column and pair_column. Its columns: "
        )
        columns.issues.append(Issue("data.pair_column", message + listed(columns.there, 12)))
    named = _label_column(spec)
    scores = columns.guess("score")
    score = columns.find("score", named, "data.label_column") if scores or named else ""

    def read(row: Row) -> Reading:
        inputs = {"texts": tuple(text_of(row, column) for column in texts)}
        return Reading(inputs, {"score": number_of(row, score) if score else None})

    return Reader(read)


def _dialogue(columns: Columns, spec: DataSpec, class_names: ClassNames) -> Reader:
    found = DialogueColumns.found(columns, spec)

    def read(row: Row) -> Reading:
        turns = read_dialogue(row, found)
        return Reading({"text": turns} if isinstance(turns, str) else {"messages": turns})

    return Reader(read)


def _plain(columns: Columns, spec: DataSpec, class_names: ClassNames) -> Reader:
    column = columns.find("text", spec.text_column, "data.text_column")
    return Reader(lambda row: Reading({"text": text_of(row, column)}))


def _label_column(spec: DataSpec) -> str | None:
    """Returns the column of labels that the spec names; its default names none."""
    return None if spec.label_column == _UNNAMED.label_column else spec.label_column


def _text_columns(columns: Columns, spec: DataSpec) -> tuple[str, ...]:
    """Returns the column of the text, or of the two of a pair."""
    if spec.text_column is None and spec.pair_column is None and "text" not in columns.there:
        if pair := columns.pair():
            return pair[:2]
    first = columns.find("text", spec.text_column, "data.text_column")
    if spec.pair_column is None:
        return (first,)
    return first, columns.named(spec.pair_column, "data.pair_column")


def _texts(row: Row, columns: tuple[str, ...]) -> str | tuple[str, ...]:
    texts = tuple(text_of(row, column) for column in columns)
    return texts[0] if len(texts) == 1 else texts


def _spans(cell: Any, context: str) -> list[tuple[str, int]]:
    """Returns the answers and where they start in the context; null has none. Raises BadRow."""
    if isinstance(cell, Mapping):  # {"text": [...], "answer_start": [...]}
        texts, starts = cell.get("text", []), cell.get("answer_start")
        if isinstance(texts, str):
            texts, starts = [texts], [starts]
        starts = [None] * len(texts) if starts is None else starts
        if len(texts) != len(starts):
            raise BadRow(f"{len(texts)} answers, but {len(starts)} starts")
        pairs = list(zip(texts, starts, strict=True))
    elif isinstance(cell, str):
        pairs = [(cell, None)] if cell.strip() else []
    elif cell is None or isinstance(cell, (list, tuple)):
        pairs = [_span(answer) for answer in cell or ()]
    else:
        raise BadRow(f"expected answers with text and answer_start, got {described(cell)}")
    found: list[tuple[str, int]] = []
    for text, start in pairs:
        if not isinstance(text, str) or not text:
            raise BadRow(f"expected an answer's text, got {described(text)}")
        start = context.find(text) if start is None else start
        if not isinstance(start, int):
            raise BadRow(f"expected the character where an answer starts, got {described(start)}")
        if start < 0:
            raise BadRow(f"the answer {described(text)} does not occur in the context")
        stands = context[start : start + len(text)]
        if stands != text:
            raise BadRow(
                f"the answer {described(text)} is not at character {start} of the context, "
                f"where {described(stands)} stands"
            )
        found.append((text, start))
    return found


def _span(answer: Any) -> tuple[Any, Any]:
    if isinstance(answer, Mapping):
        return answer.get("text"), answer.get("answer_start")
    if isinstance(answer, (list, tuple)) and len(answer) == 2:
        return answer[0], answer[1]
    return answer, None
