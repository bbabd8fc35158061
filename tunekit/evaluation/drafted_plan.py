"""A first plan of what to train, from what a probe found at each depth."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from tunekit.methods.spec import Plain, default_learning_rate
from tunekit.plans.phase import Phase

EPOCHS = 10
_BLOCK = re.compile(r"blocks\[(\d+)\]")


@dataclass(frozen=True)
class Depth:
    """What a probe found at the end of one depth group."""

    name: str
    """The selector of the group: "stem", "blocks[3]", "top"."""
    parameters: int
    """Numbers in the group that can be trained."""
    width: int
    """Features that the linear probe read."""
    accuracy: float
    """Of the linear probe on validation examples."""
    standard_error: float
    """Of the accuracy."""
    snr: float
    """Signal to noise in the gradient of one batch, of the group's weights."""
    relative_gradient: float
    """Norm of the gradient over that of the weights."""


@dataclass(frozen=True)
class Evidence:
    """All that a plan is drafted from."""

    depths: tuple[Depth, ...]
    """From the input on."""
    majority: float
    """Share of the most frequent label among the validation examples: accuracy of a guess."""
    train_examples: int
    validation_examples: int
    batch_size: int
    """Of the batches that `Depth.snr` is of."""

    def noise_scale(self, depth: Depth) -> float:
        """Returns the batch size at which the signal in its gradient equals the noise."""
        return self.batch_size / depth.snr if depth.snr else float("inf")


def drafted_plan(evidence: Evidence) -> tuple[tuple[Phase, ...], tuple[str, ...]]:
    """Returns phases to begin with, and why these, in sentences.

    1. Where the best probe is within one standard error of a guess, pretraining is of no help as
       it stands, and everything trains.
    2. The cut is the deepest depth whose accuracy is within one standard error of the best's (the
       rule of Breiman et al. 1984, Classification and Regression Trees, section 3.4.3): a tie goes
       to the plan that trains less. What comes before the cut rests.
    3. What comes after the cut trains. Where its gradient over the whole training data is more
       noise than signal (noise scale above the number of examples, McCandlish et al. 2018,
       https://arxiv.org/abs/1812.06162), a reason warns of it.
    4. Where nothing comes after the cut, only groups train whose gradient is more signal than
       noise already in one batch, the surgical choice of Lee et al. 2023
       (https://arxiv.org/abs/2210.11466); mostly there are none, and the head trains alone.
    5. The head trains first, alone (Kumar et al. 2022, https://arxiv.org/abs/2202.10054).
    """
    depths = evidence.depths
    best = max(reversed(depths), key=lambda depth: depth.accuracy)  # of equals the deepest
    if best.accuracy - best.standard_error <= evidence.majority:
        why = (
            f"no linear probe is clearly better than always guessing the most frequent label "
            f"({evidence.majority:.2f}); the best, after {best.name}, reaches {_accuracy(best)}. "
            "The pretrained features say nothing of these labels yet: everything trains."
        )
        return (_phase(("all",), "full"),), (why,)
    cut = _cut(depths, best)
    reasons = [_why_cut(evidence, best, depths[cut])]
    trained = [depth for depth in depths[cut + 1 :] if depth.parameters]
    if depths[cut] is not depths[-1]:
        reasons += _warning(evidence, trained)
    else:
        trained = [d for d in depths if d.parameters and d.snr >= 1]
        reasons.append(_why_surgical(evidence, trained))
    head = _phase(("head",), "head")
    if not trained:
        return (head,), tuple(reasons)
    reasons.append(
        "the head trains first: the gradients of a random head would spoil pretrained weights "
        "(Kumar et al. 2022)."
    )
    selectors = ("head", *_selectors(trained, depths))
    return (head, _phase(selectors, "full")), tuple(reasons)


def _cut(depths: Sequence[Depth], best: Depth) -> int:
    good = [i for i, d in enumerate(depths) if d.accuracy >= best.accuracy - best.standard_error]
    return good[-1]


def _why_cut(evidence: Evidence, best: Depth, cut: Depth) -> str:
    last = evidence.depths[-1]
    said = f"a linear probe after {best.name} reaches {_accuracy(best)}"
    if best is not last:
        said += f", after {last.name}, the last, {_accuracy(last)}"
    said += f" ({evidence.validation_examples} validation examples)"
    if cut is last:
        tie = "" if best is last else ", which is within one standard error"
        return f"{said}{tie}: what the backbone hands to the head is as good as any depth has."
    if cut is not best:
        said += f"; {cut.name}, with {cut.accuracy:.2f}, is within one standard error"
        said += " and lets less train"
    said += f". What comes after {cut.name} has specialised in other labels and trains; what comes "
    said += "before rests."
    if found := _BLOCK.fullmatch(cut.name):
        said += f" Or put the head right there: backbone.blocks={int(found[1]) + 1}."
    return said


def _warning(evidence: Evidence, trained: Sequence[Depth]) -> list[str]:
    noisy = [d for d in trained if evidence.noise_scale(d) > evidence.train_examples]
    if not noisy:
        return []
    return [
        f"the gradient of {_listed(noisy, evidence.depths)} is more noise than signal even over "
        f"all {evidence.train_examples:,} training examples: watch that the validation loss falls "
        "too."
    ]


def _why_surgical(evidence: Evidence, clear: Sequence[Depth]) -> str:
    size = evidence.batch_size
    if clear:
        return (
            f"in {_listed(clear, evidence.depths)} the gradient of a single batch of {size} is "
            "more signal than noise, so training it pays at once."
        )
    highest = max(evidence.depths, key=lambda depth: depth.snr)
    return (
        f"no part's gradient is more signal than noise in a batch of {size} (the highest ratio "
        f"is {highest.snr:.2g}, of {highest.name}): the cheapest plan, the head alone, comes "
        "first. Where that is not enough, train 'last 2' next."
    )


def _phase(train: tuple[str, ...], rate: str) -> Phase:
    learning_rate = default_learning_rate(Plain("head" if rate == "head" else "full"))
    return Phase(train=train, epochs=EPOCHS, learning_rate=learning_rate)


def _selectors(chosen: Sequence[Depth], depths: Sequence[Depth]) -> list[str]:
    """The shortest selectors of the groups, neighbouring blocks in one."""
    count = sum(bool(_BLOCK.fullmatch(depth.name)) for depth in depths)
    selectors: list[str] = []
    start = end = -1
    for depth in chosen:
        found = _BLOCK.fullmatch(depth.name)
        if not found:
            selectors.append(depth.name)
            continue
        index = int(found[1])
        if index == end:
            selectors.pop()
        else:
            start = index
        end = index + 1
        one = f"blocks[{start}]" if end == start + 1 else f"blocks[{start}:{end}]"
        selectors.append(f"blocks[{start}:]" if end == count and end > start + 1 else one)
    return selectors


def _listed(chosen: Sequence[Depth], depths: Sequence[Depth]) -> str:
    return ", ".join(_selectors(chosen, depths))


def _accuracy(depth: Depth) -> str:
    return f"{depth.accuracy:.2f} ± {depth.standard_error:.2f}"
