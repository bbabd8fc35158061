"""Learning rates over time and over depth, both as factors of the highest rate.

Plain Python: a recipe is checked without an array library, and a course is a list of a few thousand
numbers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tunekit.models.depth import Group

CUT_FRACTION = 0.1
RATIO = 32.0
"""Of Howard & Ruder's triangle: the share of steps that rise, and highest by lowest rate."""


def course(schedule: str, steps: int, warmup_steps: int = 0) -> list[float]:
    """Returns the rate of every step, as a share of the highest.

    Args:
        schedule: of `Phase.schedule`, but "continue", which is no course of its own.
        steps: of the whole course.
        warmup_steps: of the linear rise before it; one_cycle and slanted_triangular rise by
            themselves and have none.
    """
    if schedule == "one_cycle":
        return one_cycle(steps)
    if schedule == "slanted_triangular":
        return slanted_triangular(steps)
    # From 1 / (warmup + 1): a first step at rate zero would be a step wasted.
    rise = [(step + 1) / (warmup_steps + 1) for step in range(warmup_steps)]
    rest = steps - warmup_steps
    shape = {
        "constant": lambda share: 1.0,
        "cosine": lambda share: _cosine(1.0, 0.0, share),
        "linear": lambda share: 1.0 - share,
    }[schedule]
    return rise + [shape(step / rest) for step in range(rest)]


def one_cycle(steps: int) -> list[float]:
    """Returns the one-cycle course: a cosine from 1/25 up for 30 % of the steps, then to 1/250,000.

    Smith 2018, https://arxiv.org/abs/1803.09820, with the cosines and the constants of fastai.
    """
    top, low, end = int(0.3 * steps), 1 / 25, 1 / 25e4
    rise = [_cosine(low, 1.0, step / top) for step in range(top)]
    return rise + [_cosine(1.0, end, step / (steps - top)) for step in range(steps - top)]


def slanted_triangular(
    steps: int, cut_fraction: float = CUT_FRACTION, ratio: float = RATIO
) -> list[float]:
    """Returns the slanted triangular course: a short linear rise, a long linear fall.

    Howard & Ruder 2018, https://arxiv.org/abs/1801.06146, equation 3, with t from 0::

        cut  = floor(T * cut_frac)
        p    = t / cut  if t < cut  else  1 - (t - cut) / (cut * (1 / cut_frac - 1))
        rate = (1 + p * (ratio - 1)) / ratio

    Two departures, where the equation breaks down: `cut` is at least 1, and `p` at least 0, below
    which it falls at the end when T * cut_frac is rounded down.
    """
    cut = max(1, math.floor(steps * cut_fraction))
    rates = []
    for step in range(steps):
        fallen = (step - cut) / (cut * (1 / cut_fraction - 1))
        p = step / cut if step < cut else max(0.0, 1 - fallen)
        rates.append((1 + p * (ratio - 1)) / ratio)
    return rates


def even_multipliers(lo: float, hi: float, count: int) -> list[float]:
    """Returns `count` rates from `lo` to `hi`, each the same factor above the one before.

    fastai's ``even_mults``, by which it reads ``slice(lo, hi)``.
    """
    if count == 1:
        return [hi]
    return [lo * (hi / lo) ** (i / (count - 1)) for i in range(count)]


def layer_scales(factor: float, count: int) -> list[float]:
    """Returns ``factor ** (count - 1 - rank)`` for each rank of depth.

    Layer-wise decay of BEiT (Bao et al. 2022, https://arxiv.org/abs/2106.08254) as
    ``param_groups_layer_decay`` of timm has it.
    """
    return [factor ** (count - 1 - rank) for rank in range(count)]


def depth_ranks(groups: Sequence[Group]) -> dict[str, int]:
    """Returns the rank of each group by name: the stem 0, ``blocks[i]`` i + 1, the heads last.

    The top has the rank of the last block, as the final norm has in timm. The ranks are as many as
    there are blocks, and two.
    """
    blocks = [group.name for group in groups if group.kind == "block"]
    ranks = {name: i + 1 for i, name in enumerate(blocks)}
    by_kind = {"stem": 0, "top": len(blocks), "head": len(blocks) + 1}
    return {group.name: ranks.get(group.name, by_kind.get(group.kind, 0)) for group in groups}


def _cosine(start: float, end: float, share: float) -> float:
    return end + (start - end) * 0.5 * (1 + math.cos(math.pi * share))
