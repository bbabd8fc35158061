"""The smallest change that makes a recipe fit, and the largest batch that does: by compiling.

Nothing is said to fit that was not compiled. What arithmetic alone rules out is not compiled.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from tunekit.errors import RecipeError
from tunekit.planning.candidates import Change
from tunekit.planning.settings import Held, Setting, at_least, is_lighter

MOST_TRIES = 8
"""Changes that are compiled before the search gives up."""
MOST_SIZES = 2
"""Batch sizes that are compiled before the search ends with the largest that fits so far: a deep
network takes minutes each."""
MOST_EXAMPLES = 2**16
"""Of a batch: beyond that nobody asks."""


@dataclass(frozen=True)
class Tried:
    """A change that was compiled, and what it needs."""

    change: Change
    total: int
    """Bytes of a device."""


@dataclass
class Search:
    """What is known so far of the settings of one recipe."""

    room: float
    """Bytes of a device that may be used."""
    compiled: Callable[[Change], Held]
    """What a device holds with a change.

    Raises:
        RecipeError: the change contradicts the recipe.
    """
    known: list[tuple[Setting, Held]]
    """What was compiled so far, the recipe as it is at first."""
    tried: list[Tried] = field(default_factory=list)

    def smallest(self, changes: Iterable[Change]) -> Tried | None:
        """Returns the first of the changes that fits; `None` where none of those tried does.

        Args:
            changes: the cheapest first.
        """
        for change in changes:
            if len(self.tried) == MOST_TRIES:
                return None
            if self._least(change.setting) > self.room:
                continue
            try:
                held = self.compiled(change)
            except RecipeError:
                continue  # Such as a base that cannot be packed under what trains.
            self.known.append((change.setting, held))
            self.tried.append(Tried(change, round(held.total)))
            if held.total <= self.room:
                return self.tried[-1]
        return None

    def _least(self, setting: Setting) -> float:
        """Bytes that a device needs at least, from all that was compiled so far."""
        least = 0.0
        for of, held in self.known:
            if is_lighter(setting, of):
                least = max(least, at_least(held, of, setting))
            if is_lighter(of, setting) and held.total > self.room:
                return float("inf")  # What needs no more does not fit either.
        return least


def largest_batch(
    setting: Setting,
    known: Held,
    room: float,
    compiled: Callable[[int], Held],
    most: int | None = None,
) -> tuple[int, Held] | None:
    """Returns the largest batch found that fits, and what it needs; `None` where not even one does.

    What a step needs beside its state grows with the batch, nearly in proportion: each size tried
    is what the nearest two compiled so far say.

    Args:
        setting: the recipe's.
        known: what a device holds with it.
        room: bytes of a device that may be used.
        compiled: what a device holds with a batch of so many examples.
        most: examples that there are.
    """
    unit = setting.mesh.batch_shards * setting.accumulate
    limit = max(min(most or MOST_EXAMPLES, MOST_EXAMPLES) // unit, 1)
    state = known.total - known.rest
    sizes: dict[int, Held] = {setting.batch // unit: known}
    points = [(0.0, state), (setting.batch / unit, known.total)]
    for _ in range(MOST_SIZES):
        fits = [n for n, held in sizes.items() if held.total <= room]
        too_large = [n for n, held in sizes.items() if held.total > room]
        low, high = max(fits, default=0), min(too_large, default=limit + 1)
        guess = min(max(_crossing(points, room), low + 1), high - 1)
        if guess <= low or guess >= high or (fits and guess < low * 1.1):
            break
        held = compiled(guess * unit)
        sizes[guess] = held
        points = sorted([*points, (float(guess), held.total)], key=lambda p: abs(p[1] - room))[:2]
    fits = [n for n, held in sizes.items() if held.total <= room]
    return (max(fits) * unit, sizes[max(fits)]) if fits else None


def _crossing(points: list[tuple[float, float]], room: float) -> int:
    """Where the line through two points reaches `room`, rounded down."""
    (x0, y0), (x1, y1) = points
    slope = (y1 - y0) / (x1 - x0)
    return int(x0 + (room - y0) / slope) if slope > 0 else MOST_EXAMPLES
