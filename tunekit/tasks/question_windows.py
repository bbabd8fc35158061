"""Questions beside pieces of a long context, as many as it takes to show all of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from tunekit.data.examples import Source
from tunekit.errors import DataError
from tunekit.models.tokenizing import Encoded, Tokenizer


@dataclass(frozen=True, eq=False)
class QuestionWindows:
    """A source of windows: the example's columns, "window" (`Window`) and "row" in the source."""

    source: Any
    """Of examples with "question", "context" and "id"."""
    tokenizer: Tokenizer
    max_length: int
    stride: int
    rows: np.ndarray
    """Which example each window is of: int32 [N]."""
    starts: np.ndarray
    """First token of the context that each window shows: int32 [N]."""
    sizes: np.ndarray
    """Tokens of each: int64 [N]."""
    label_names: tuple[str, ...] = ()
    multi_label: bool = False

    @property
    def label_array(self) -> np.ndarray:
        """It has no labels: int32 [0]."""
        return np.zeros(0, np.int32)

    @property
    def fingerprint(self) -> str:
        """That of the examples, which with the tokenizer make the windows."""
        return self.source.fingerprint

    def __len__(self) -> int:
        """Returns the number of windows."""
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Returns the example of a window, and the window."""
        row = int(self.rows[index])
        example = self.source[row]
        layout = Layout.of(self.tokenizer, example, self.max_length, self.stride)
        return {**example, "window": layout.window(int(self.starts[index])), "row": row}

    def name(self, index: int) -> str:
        """Returns what a message calls the window: its example."""
        return self.source.name(int(self.rows[index]))

    def select(self, indices: Sequence[int] | np.ndarray) -> QuestionWindows:
        """Returns the source of these windows, in this order."""
        chosen = np.asarray(indices, np.int64)
        fields = {name: getattr(self, name)[chosen] for name in ("rows", "starts", "sizes")}
        return replace(self, **fields)


@dataclass(frozen=True, eq=False)
class Window:
    """A question and a piece of the context as T tokens."""

    encoded: Encoded
    context: np.ndarray
    """bool [T]: which tokens are of the context; their offsets are places in the whole of it."""


@dataclass(frozen=True, eq=False)
class Layout:
    """How a question and its whole context become windows."""

    encoded: Encoded
    """Both in one sequence, as long as it takes."""
    frame: np.ndarray
    """Places in it of what stands in every window: special tokens and the question."""
    context: np.ndarray
    """Places in it of the context."""
    room: int
    """Tokens of the context that a window shows."""
    shared: int
    """How many of them the next one shows too."""

    @classmethod
    def of(cls, tokenizer: Tokenizer, example: Any, max_length: int, stride: int) -> Layout:
        """Returns the layout of an example.

        A question of more than half a window is cut; no more than half of what a window shows of
        the context is shared, lest a long question make any number of windows.

        Raises:
            DataError: a window has no room for a token of each.
        """
        encoded = tokenizer.encode(example["question"], example["context"])
        special = np.flatnonzero(encoded.special)
        free = max_length - len(special)
        if free < 2:
            raise DataError(
                f"batch.max_length: {max_length} tokens leave no room for question and context "
                f"beside {len(special)} special ones; raise it."
            )
        question = np.flatnonzero(encoded.sequences == 0)[: free // 2]
        room = free - len(question)
        frame = np.concatenate([special, question])
        context = np.flatnonzero(encoded.sequences == 1)
        return cls(encoded, frame, context, room, min(stride, room // 2))

    @property
    def starts(self) -> range:
        """First token of the context in each window; the last one shows its end."""
        step = self.room - self.shared
        return range(0, max(len(self.context) - self.shared, 1), step)

    def window(self, start: int) -> Window:
        """Returns the window that shows the context from its token `start` on."""
        shown = self.context[start : start + self.room]
        places = np.sort(np.concatenate([self.frame, shown]))
        encoded = Encoded(**{name: column[places] for name, column in vars(self.encoded).items()})
        return Window(encoded, encoded.sequences == 1)


def question_windows(
    source: Source, tokenizer: Tokenizer, max_length: int, stride: int
) -> QuestionWindows:
    """Returns every window of every example, in order; each context is encoded once for it.

    Raises:
        DataError: a window has no room for question and context.
    """
    rows, starts, sizes = [], [], []
    for row in range(len(source)):
        layout = Layout.of(tokenizer, source[row], max_length, stride)
        for start in layout.starts:
            rows.append(row)
            starts.append(start)
            sizes.append(len(layout.frame) + min(layout.room, len(layout.context) - start))
    numbers = np.asarray(rows, np.int32), np.asarray(starts, np.int32), np.asarray(sizes, np.int64)
    return QuestionWindows(source, tokenizer, max_length, stride, *numbers)
