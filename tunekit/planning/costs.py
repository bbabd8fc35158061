"""What each phase of a recipe needs of a machine: compiled for it, whole or from two depths.

A network of many equal blocks is compiled with 2 and with 4 of them: all else being equal, every
figure is a line through the two, until XLA begins to compute values anew for want of memory. Where
the line ends near the limit, the whole is compiled.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from tunekit.planning.compiling import CompiledPhase, compile_phases
from tunekit.planning.hardware import Target
from tunekit.planning.settings import Held
from tunekit.recipe import Recipe

DEPTHS = (2, 4)
"""Blocks that are compiled to tell what more of them need."""
LEAST_BLOCKS = 12
"""Of a network that is not compiled whole."""
NEAR = 0.1
"""Share of the room by which a line may miss the truth; nearer to the limit all is compiled."""


@dataclass(frozen=True)
class PhaseCost:
    """What a step of one phase needs."""

    label: str
    held: Held
    """Bytes of one device."""
    flops: float
    """Of a step, all devices together."""
    inputs: float
    """Bytes of the arguments of one device that are no state: of its batch."""
    least_bytes: float
    """Of the arguments and results of one device."""
    bytes_accessed: float | None
    """That one device reads and writes, as its compiler counts; `None` where it does not."""
    collectives: tuple[dict[str, Any], ...]
    """Of a step: kind, count, bytes of their results on one device."""
    compile_seconds: float
    refusal: str | None = None
    """Why the compiler refused the program; `None` where it did not."""


@dataclass(frozen=True)
class Costs:
    """Of every phase that was asked for, and how they were found."""

    phases: tuple[PhaseCost, ...]
    blocks: tuple[int, ...] = ()
    """Depths that were compiled in place of the whole; empty: the whole was."""

    @property
    def worst(self) -> PhaseCost:
        """The phase that needs most memory."""
        return max(self.phases, key=lambda phase: phase.held.total)


def costs_on(
    machine: Target,
    recipe: Recipe,
    *,
    examples: int | None,
    labels: Any,
    blocks: int | None,
    exact: bool = False,
) -> Costs:
    """Returns what the phases of a recipe need.

    Args:
        machine: that it is compiled for.
        recipe: with a mesh that says its sizes.
        examples: of the training data, as `planned` takes them.
        labels: as `planned` takes them.
        blocks: of the network, where all are equal; `None` where some are not.
        exact: whether it is compiled whole in any case.
    """

    def compiled(depth: int | None) -> tuple[PhaseCost, ...]:
        given = {"examples": examples, "labels": labels, "blocks": depth}
        compiled = compile_phases(recipe, machine, **given)
        return tuple(phase_cost(each, machine) for each in compiled)

    # What is said of this machine is measured, not drawn out; and a CPU's compiler is quick.
    if exact or machine.is_this_machine or blocks is None or blocks < LEAST_BLOCKS:
        return Costs(compiled(None))
    few, more = (compiled(depth) for depth in DEPTHS)
    pairs = zip(few, more, strict=True)
    lines = Costs(tuple(extrapolated(*pair, blocks) for pair in pairs), DEPTHS)
    room = machine.chip.usable_bytes
    is_refused = any(phase.refusal for phase in lines.phases)
    if is_refused or abs(lines.worst.held.total - room) > NEAR * room:
        return lines
    return Costs(compiled(None))


def phase_cost(compiled: CompiledPhase, machine: Target) -> PhaseCost:
    """Returns the costs of a compiled phase."""
    state, peak = compiled.state, compiled.peak_bytes
    if machine.kind == "cpu":
        # XLA tells no peak there: it takes one block for all temporaries.
        results = compiled.output_bytes - compiled.alias_bytes
        peak = compiled.argument_bytes + results + compiled.temp_bytes
    held = Held(
        frozen=state["frozen"],
        trained=state["trained"],
        optimizer=state["optimizer"],
        copies=0,
        rest=max(peak - sum(state.values()), 0),
    )
    return PhaseCost(
        label=compiled.label,
        held=held,
        flops=compiled.flops,
        inputs=max(compiled.argument_bytes - sum(state.values()), 0),
        least_bytes=compiled.argument_bytes + compiled.output_bytes,
        bytes_accessed=compiled.bytes_accessed,
        collectives=tuple(compiled.collectives),
        compile_seconds=compiled.compile_seconds,
        refusal=compiled.refusal,
    )


def extrapolated(few: PhaseCost, more: PhaseCost, blocks: int) -> PhaseCost:
    """Returns the costs with so many blocks, from those with the two of `DEPTHS`."""
    low, high = DEPTHS

    def line(one: float, other: float) -> float:
        return max(one + (other - one) / (high - low) * (blocks - low), other)

    held = {
        name: line(getattr(few.held, name), getattr(more.held, name))
        for name in Held.__dataclass_fields__
    }
    accessed = None
    if few.bytes_accessed is not None and more.bytes_accessed is not None:
        accessed = line(few.bytes_accessed, more.bytes_accessed)
    return replace(
        more,
        held=Held(**held),
        flops=line(few.flops, more.flops),
        inputs=more.inputs,
        least_bytes=line(few.least_bytes, more.least_bytes),
        bytes_accessed=accessed,
        collectives=tuple(_lines(few.collectives, more.collectives, line)),
        compile_seconds=few.compile_seconds + more.compile_seconds,
        refusal=few.refusal or more.refusal,
    )


def _lines(few: Sequence[Mapping[str, Any]], more: Sequence[Mapping[str, Any]], line: Any) -> Any:
    before = {each["kind"]: each for each in few}
    for each in more:
        known = before.get(each["kind"], {"count": 0, "bytes": 0})
        yield {
            "kind": each["kind"],
            "count": round(line(known["count"], each["count"])),
            "bytes": round(line(known["bytes"], each["bytes"])),
        }
