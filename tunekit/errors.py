"""Every exception tunekit raises on purpose: what was expected, what came, where, what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass


class TunekitError(Exception):
    """Something the user can mend; its message says how."""


class BackendError(TunekitError, ImportError):
    """Keras runs on another backend than JAX."""


class DataError(TunekitError, ValueError):
    """The examples, their labels or their splits cannot be trained on."""


class ModelError(TunekitError, ValueError):
    """A backbone, head or saved model cannot be built or loaded."""


class SelectionError(TunekitError, ValueError):
    """A pattern or selector of variables matches nothing, or is not of the grammar."""


class TrainingError(TunekitError, RuntimeError):
    """Training went wrong at a step; the model is as it was before."""


class CheckpointError(TunekitError, ValueError):
    """A checkpoint is missing, or belongs to another run."""


class DistributedError(TunekitError, RuntimeError):
    """The processes of a run do not find together, or are not of one run."""


class ExportError(TunekitError, ValueError):
    """A model cannot be written in the asked format."""


@dataclass(frozen=True)
class Issue:
    """One mistake and its place."""

    path: str
    """Dotted path of the mistake (``plan[1].train``, ``data.path``); empty for the whole."""
    message: str
    """What was expected, what came, and what to do."""

    def __str__(self) -> str:
        """Returns the place and the message as one text."""
        return f"{self.path}: {self.message}" if self.path else self.message


class RecipeError(TunekitError, ValueError):
    """Every mistake found in a recipe, at once.

    Attributes:
        issues: the mistakes, in the order of the recipe.
    """

    def __init__(self, issues: Sequence[Issue]) -> None:
        """Takes at least one mistake."""
        if not issues:
            raise ValueError("RecipeError needs at least one issue")
        self.issues = tuple(issues)
        lines = [f"  {issue}" for issue in self.issues]
        count = "1 mistake" if len(lines) == 1 else f"{len(lines)} mistakes"
        super().__init__("\n".join([f"the recipe has {count}:", *lines]))


def near_matches(word: str, options: Iterable[str]) -> list[str]:
    """Returns up to three of the options that are spelt like `word`, the nearest first."""
    by_lowercase = {option.lower(): option for option in options}
    near = difflib.get_close_matches(word.lower(), list(by_lowercase), n=3, cutoff=0.6)
    return [by_lowercase[name] for name in near]


def did_you_mean(word: str, options: Iterable[str]) -> str:
    """Returns `` Did you mean 'x'?`` for the options nearest to `word`, or an empty string.

    Args:
        word: what the user wrote.
        options: what would have been accepted.
    """
    quoted = [f"'{name}'" for name in near_matches(word, options)]
    return f" Did you mean {' or '.join(quoted)}?" if quoted else ""
