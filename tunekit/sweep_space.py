"""What a sweep varies: fields of a recipe, and the values of each."""

from __future__ import annotations

import itertools
import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields, is_dataclass
from typing import Any, Literal, TypeAlias, cast, get_args

from tunekit import recipe_text
from tunekit.errors import Issue, RecipeError
from tunekit.recipe_issues import plain

SEED = "seed"
RATES = ("learning_rate", "optimizer.learning_rate")
"""Short for the rates of the plan."""
LARGEST = 1000
"""More members than this are taken for a slip."""

_QUOTED = r"\"(?:\\.|[^\"\\])*\"|'[^']*'"
_PIECE = re.compile(rf"{_QUOTED}|.", re.DOTALL)
Scale = Literal["log", "uniform", "int"]
_SEARCHED = re.compile(rf"\s*({'|'.join(get_args(Scale))})\((.*)\)\s*", re.DOTALL)


@dataclass(frozen=True)
class Listed:
    """Values that are all tried."""

    values: tuple[Any, ...]


@dataclass(frozen=True)
class Searched:
    """A range that is searched, ends included: `log` and `uniform` of numbers, `int` of whole."""

    scale: Scale
    lo: float
    hi: float


Range: TypeAlias = Listed | Searched
Values: TypeAlias = dict[str, Any]
"""Of one member: the value of each path."""


@dataclass(frozen=True)
class Space:
    """What each field is set to: one value for all members, or several."""

    constants: Mapping[str, Any]
    ranges: Mapping[str, Range]

    @classmethod
    def read(cls, said: Iterable[str] | Mapping[str, Any], issues: list[Issue]) -> Space:
        """Returns what `said` says; mistakes join `issues`.

        Args:
            said: texts such as ``learning_rate=1e-4,3e-4``, ``seed=0..7``, ``plan.0.train=head``
                and ``learning_rate=log(1e-5, 1e-1)``; or values by path, where a list, tuple,
                `range` or array is several and a text is one, unless it is a searched range.
            issues: mistakes found so far.
        """
        if isinstance(said, Mapping):
            pairs = [(path, _of_python(path, value, issues)) for path, value in said.items()]
        else:
            pairs = [_of_text(text, issues) for text in said]
        found: dict[str, Range] = {}
        for path, values in pairs:
            if path == SEED and isinstance(values, Searched):
                issues.append(Issue(path, "is repeated and not searched; list it: seed=0..7."))
            elif path in found or (path in RATES and any(rate in found for rate in RATES)):
                issues.append(Issue(path, "is given twice; keep one."))
            elif values is not None:
                found[path] = values
        single = {
            path: values.values[0]
            for path, values in found.items()
            if isinstance(values, Listed) and len(values.values) == 1
        }
        return cls(single, {path: found[path] for path in found if path not in single})

    @property
    def searched(self) -> bool:
        """Whether a range is searched, so that not all of its values can be tried."""
        return any(isinstance(values, Searched) for values in self.ranges.values())

    @property
    def axes(self) -> tuple[str, ...]:
        """The paths that vary, but for the seed: what members with one value each repeat."""
        return tuple(path for path in self.ranges if path != SEED)

    def seeds(self) -> list[Values]:
        """Returns the seed of each repetition; one empty where the seed does not vary."""
        seeds = self.ranges.get(SEED)
        return [{SEED: seed} for seed in seeds.values] if isinstance(seeds, Listed) else [{}]

    def members(self) -> Iterator[Values]:
        """Yields the values of every member of a space that is not searched; the last go fastest.

        Raises:
            RecipeError: they are too many.
        """
        listed = {path: v.values for path, v in self.ranges.items() if isinstance(v, Listed)}
        check_count(math.prod(len(values) for values in listed.values()))
        for values in itertools.product(*listed.values()):
            yield dict(zip(listed, values, strict=True))

    def samples(self) -> Iterator[Values]:
        """Yields members in which every value and both ends of every range occur once."""
        ends = {
            path: (v.lo, v.hi) if isinstance(v, Searched) else v.values
            for path, v in self.ranges.items()
        }
        for index in range(max(map(len, ends.values()), default=0)):
            yield {path: own[index % len(own)] for path, own in ends.items()}


def check_count(count: int) -> None:
    """Passes where so many members can be meant.

    Raises:
        RecipeError: they are too many.
    """
    if count > LARGEST:
        message = (
            f"{count:,} members, and at most {LARGEST:,} are trained. List fewer values, or search "
            "a range such as learning_rate=log(1e-5, 1e-1) by a number of trials."
        )
        raise RecipeError([Issue("sweep", message)])


def value_text(value: Any) -> str:
    """Returns a value as a table shows it.

    Example:
        >>> value_text(0.00031622776), value_text(["head", "last 2"]), value_text(None)
        ('0.000316228', 'head, last 2', 'null')
    """
    if isinstance(value, bool) or value is None:
        return json.dumps(value)
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, Mapping):
        return ", ".join(f"{key}: {value_text(item)}" for key, item in value.items())
    if isinstance(value, (list, tuple)):
        return ", ".join(map(value_text, value))
    return str(value)


def values_text(values: Mapping[str, Any]) -> str:
    """Returns ``learning_rate=0.001 seed=3``."""
    return " ".join(f"{path}={value_text(value)}" for path, value in values.items())


def _of_text(text: str, issues: list[Issue]) -> tuple[str, Range | None]:
    path, equals, said = text.partition("=")
    path = path.strip()
    if not equals or not path:
        message = f"{text!r} is not of the form path=values, such as learning_rate=1e-4,1e-3."
        issues.append(Issue("", message))
        return path, None
    if searched := _SEARCHED.fullmatch(said):
        return path, _searched(path, searched, issues)
    values: list[Any] = []
    for piece in _pieces(said):
        if whole := re.fullmatch(r"\s*([-+]?\d+)\.\.([-+]?\d+)\s*", piece):
            values += _whole_numbers(path, int(whole[1]), int(whole[2]), issues)
        else:
            values.append(recipe_text.parse(piece, issues, where=f"the value of {text!r}"))
    return path, _listed(path, values, issues)


def _pieces(text: str) -> list[str]:
    """Returns what stands between the commas outside of brackets and quotes."""
    pieces, depth = [""], 0
    for token in _PIECE.findall(text):
        depth += (token in tuple("[{(")) - (token in tuple("]})"))
        if token == "," and depth <= 0:
            pieces.append("")
        else:
            pieces[-1] += token
    return pieces


def _whole_numbers(path: str, lo: int, hi: int, issues: list[Issue]) -> list[int]:
    if hi < lo:
        message = f"{lo}..{hi} holds no number; the first is the lower: {hi}..{lo}."
        issues.append(Issue(path, message))
    check_count(hi - lo + 1)
    return list(range(lo, hi + 1))


def _of_python(path: str, value: Any, issues: list[Issue]) -> Range | None:
    if isinstance(value, Searched):
        return value
    if isinstance(value, str) and (searched := _SEARCHED.fullmatch(value)):
        return _searched(path, searched, issues)
    if isinstance(value, range):
        check_count(len(value))
    several = isinstance(value, (list, tuple, range)) or getattr(value, "ndim", 0)
    values = [_plain(path, each, issues) for each in (value if several else [value])]
    return _listed(path, values, issues)


def _plain(path: str, value: Any, issues: list[Issue]) -> Any:
    """A value in JSON's types; of a phase or builder what is not at its default."""
    if is_dataclass(value) and not isinstance(value, type):
        held = {field: getattr(value, field.name) for field in fields(value)}
        value = {
            field.name: item
            for field, item in held.items()
            if field.name == "build" or item != _default(field)
        }
    return plain(value, issues, (path,))


def _default(field: Any) -> Any:
    return field.default if field.default_factory is MISSING else field.default_factory()


def _listed(path: str, values: Sequence[Any], issues: list[Issue]) -> Listed | None:
    texts = [json.dumps(value) for value in values]
    if repeated := sorted({text for text in texts if texts.count(text) > 1}):
        issues.append(Issue(path, f"lists {', '.join(repeated)} more than once."))
    if not values:
        issues.append(Issue(path, "has no value; give one or several."))
        return None
    return Listed(tuple(values))


def _searched(path: str, said: re.Match[str], issues: list[Issue]) -> Searched | None:
    scale, text = said[1], said[0].strip()
    form = f"{scale}(lowest, highest)"
    try:
        lo, hi = (int(end) if scale == "int" else float(end) for end in said[2].split(","))
    except ValueError:
        kind = "whole numbers" if scale == "int" else "numbers"
        issues.append(Issue(path, f"expected {form} of two {kind}, got {text}."))
        return None
    above = 0 if scale == "log" else -math.inf
    if not above < lo < hi < math.inf:
        bound = "0 < " if scale == "log" else ""
        issues.append(Issue(path, f"expected {form} with {bound}lowest < highest, got {text}."))
        return None
    return Searched(cast(Scale, scale), lo, hi)
