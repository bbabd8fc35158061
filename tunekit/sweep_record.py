"""The record of a sweep: its members, what became of each, and the best."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from tunekit.errors import TrainingError
from tunekit.folder import replacing, table, write_json
from tunekit.recipe import Recipe
from tunekit.report.sweep_plot import plot_sweep
from tunekit.result import Result
from tunekit.side_by_side import MemberRun, result_of
from tunekit.sweep_space import SEED, Values, value_text, values_text
from tunekit.training.spec import LOWER_IS_BETTER, RuntimeSpec

FILES = ("sweep.csv", "sweep.json", "sweep.png", "best", "recipes")
MARKS = ("sweep.json",)
"""A folder with one of these in it is a sweep's to write to."""

Row = dict[str, Any]


@dataclass(eq=False, repr=False)
class Sweep:
    """The members of a sweep, what became of each, and the best."""

    metric: str
    """What members are compared by: a validation metric of the weights that each ends with."""
    axes: tuple[str, ...]
    """What varies, but for the seed."""
    rows: list[Row] = field(default_factory=list)
    """One a member: member, the values that vary, score, seconds, together, failure.

    The seconds of members side by side are those of all of them.
    """
    recipes: list[Recipe] = field(default_factory=list)
    """One a member; alone, it gives the same run."""
    histories: list[list[Row]] = field(default_factory=list)
    """One a member: one row an epoch, as in `Result.history`."""
    seconds: float = 0.0
    """Of the whole sweep."""
    _open: Callable[[MemberRun], Result] = field(default=result_of)
    _best: MemberRun | None = None

    def __repr__(self) -> str:
        """Returns the number of members and the best of them."""
        return f"Sweep({self._count()}, {self._best_text()})"

    @property
    def lower_is_better(self) -> bool:
        """Whether the lowest score is the best."""
        return is_lower_better(self.metric)

    @property
    def summary(self) -> list[Row]:
        """One row for all seeds of the same values, best mean first; those that failed last.

        mean, std (of a sample; `None` of one), n (members with a score), failed, member (the best).
        """
        groups: dict[str, list[Row]] = {}
        for row in self.rows:
            groups.setdefault(self.key(row), []).append(row)
        sign = 1 if self.lower_is_better else -1
        return sorted(
            (self._summary_of(rows) for rows in groups.values()),
            key=lambda row: (row["mean"] is None, row["failed"] > 0, sign * (row["mean"] or 0)),
        )

    def key(self, values: Mapping[str, Any]) -> str:
        """Returns what is equal for members that differ in their seed alone."""
        return json.dumps([values[axis] for axis in self.axes])

    def means(self) -> dict[str, float | None]:
        """Returns the mean score by key; `None` where a member failed."""
        return {self.key(row): None if row["failed"] else row["mean"] for row in self.summary}

    @property
    def best_row(self) -> Row | None:
        """The row of the best seed of the values with the best mean; `None` where all failed."""
        member = self.summary[0]["member"] if self.rows else None
        return None if member is None else self.rows[member]

    @cached_property
    def best(self) -> Result:
        """The result of the best member; a model given to the sweep is then this member's.

        Raises:
            TrainingError: every member failed.
        """
        if self._best is None:
            reason = self.rows[0]["failure"]
            raise TrainingError(f"no member has a result. The first failed: {reason}.")
        return self._open(self._best)

    def table(self) -> str:
        """Returns one line for all seeds of the same values, best mean first, and the best."""
        summary = self.summary
        columns: dict[str, Callable[[Row], str]] = {
            axis: lambda row, axis=axis: value_text(row[axis]) for axis in self.axes
        }
        columns[f"val_{self.metric}"] = lambda row: _figure(row["mean"])
        if any(row["n"] > 1 for row in summary):
            columns["std"] = lambda row: _figure(row["std"])
            columns["n"] = lambda row: str(row["n"])
        if any(row["failed"] for row in summary):
            columns["failed"] = lambda row: str(row["failed"])
        lines = [list(columns), *([text(row) for text in columns.values()] for row in summary)]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        rows = ["  ".join(map(str.ljust, line, widths)).rstrip() for line in lines]
        side_by_side = sum(row["together"] for row in self.rows)
        cost = f"{self._count()}, {side_by_side} side by side, {self.seconds:.1f} s"
        return "\n".join([*rows, "", self._best_text(), cost])

    def plot(self, path: str | Path) -> Path:
        """Writes the score against what varies as a PNG; returns its path."""
        # Where nothing but the seed varies, the seeds are one group.
        group = {} if self.axes else {"all": self._count()}
        return plot_sweep(
            [
                {
                    **{axis: _drawable(row[axis]) for axis in self.axes},
                    **group,
                    "score": row["score"],
                }
                for row in self.rows
            ],
            self.axes or tuple(group),
            path,
            metric=f"val_{self.metric}",
            lower_is_better=self.lower_is_better,
            title=f"{self._count()}; {self._best_text()}",
        )

    def save(self, folder: str | Path) -> Path:
        """Writes the sweep to a folder, whole or not at all: table, record, picture, best, recipes.

        Raises:
            ModelError: the folder holds other things than a sweep.
        """
        folder = Path(folder).expanduser().resolve()
        with replacing(folder, FILES, MARKS) as new:
            (new / "sweep.csv").write_text(table(self._flat_rows()), encoding="utf-8")
            write_json(new / "sweep.json", self._record())
            self.plot(new / "sweep.png")
            (new / "recipes").mkdir()
            digits = len(str(len(self.recipes) - 1))
            for member, recipe in enumerate(self.recipes):
                recipe.save(new / "recipes" / f"{member:0{max(digits, 2)}}.yaml")
            if self._best is not None:
                self.best.save(new / "best")
        return folder

    def add(self, members: Sequence[Values], runs: Sequence[MemberRun]) -> None:
        """Adds members and what became of them; of their weights those of the best are kept."""
        first = len(self.rows)
        for member, (values, run) in enumerate(zip(members, runs, strict=True), first):
            score = score_of(run, self.metric)
            failure = run.failure
            if score is None and failure is None:
                failure = f"val_{self.metric} is not a number"
            self.rows.append(
                {
                    "member": member,
                    **values,
                    "score": score,
                    "seconds": sum(row["seconds"] for row in run.history),
                    "together": run.together,
                    "failure": failure,
                }
            )
            self.recipes.append(run.recipe)
            self.histories.append(run.history)
        best = self.best_row
        if best is not None and best["member"] >= first:
            self._best = runs[best["member"] - first]

    def _summary_of(self, rows: Sequence[Row]) -> Row:
        scored = [row for row in rows if row["score"] is not None]
        scores = [row["score"] for row in scored]
        choose = min if self.lower_is_better else max
        return {
            **{axis: rows[0][axis] for axis in self.axes},
            "mean": statistics.fmean(scores) if scores else None,
            "std": statistics.stdev(scores) if len(scores) > 1 else None,
            "n": len(scores),
            "failed": len(rows) - len(scores),
            "member": choose(scored, key=lambda row: row["score"])["member"] if scored else None,
        }

    def _record(self) -> Row:
        best = self.best_row
        return {
            "metric": self.metric,
            "axes": self.axes,
            "best": None if best is None else best["member"],
            "seconds": self.seconds,
            "summary": self.summary,
            "members": [
                {**row, "history": history}
                for row, history in zip(self.rows, self.histories, strict=True)
            ],
        }

    def _flat_rows(self) -> list[Row]:
        """The rows with lists and mappings as JSON."""
        return [
            {k: json.dumps(v) if isinstance(v, (list, dict)) else v for k, v in row.items()}
            for row in self.rows
        ]

    def _count(self) -> str:
        failed = sum(row["score"] is None for row in self.rows)
        members = "1 member" if len(self.rows) == 1 else f"{len(self.rows)} members"
        return f"{members}, {failed} failed" if failed else members

    def _best_text(self) -> str:
        best = self.best_row
        if best is None:
            return "none has a result"
        varied = {path: best[path] for path in (*self.axes, SEED) if path in best}
        at = f" at {values_text(varied)}" if varied else ""
        return f"best val_{self.metric} {best['score']:.4f}{at} (member {best['member']})"


def is_lower_better(metric: str) -> bool:
    """Returns whether the lowest value of a metric is the best."""
    return metric in LOWER_IS_BETTER


def monitored(runtime: RuntimeSpec) -> str:
    """Returns the metric that says which weights of a member are best."""
    return "accuracy" if runtime.monitor == "auto" else runtime.monitor


def score_of(run: MemberRun, metric: str) -> float | None:
    """Returns a validation metric of the weights that a member ended with; `None` without one."""
    runtime, rows = run.recipe.runtime, run.history
    if run.failure is not None or not rows:
        return None
    ended = rows[-1]
    if runtime.restore_best:
        monitor = monitored(runtime)
        name, sign = f"val_{monitor}", -1 if is_lower_better(monitor) else 1
        scored = [row for row in rows if math.isfinite(row.get(name, math.nan))]
        # As in training the first of equally good ones counts, which is the one that max finds.
        ended = max(scored, key=lambda row: sign * row[name], default=ended)
    score = ended.get(f"val_{metric}")
    return score if score is not None and math.isfinite(score) else None


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _drawable(value: Any) -> Any:
    """A number as it is, all else as text."""
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return value if is_number else value_text(value)
