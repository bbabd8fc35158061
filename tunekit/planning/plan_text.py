"""A plan, or several side by side, as text of at most 100 columns."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence

from tunekit.planning.plan import LEFT_OUT, PhasePlan, Plan
from tunekit.planning.roofline import SLOWER, StepTime, sent_bytes

COLUMNS = 100
GIB = 2**30


def plan_text(plan: Plan) -> str:
    """Returns the plan of one machine: phases, memory, the fit, the time."""
    parts = [_headline(plan), _steps_table(plan)]
    if plan.is_compiled:
        parts.append(_memory_table(plan))
    parts.append("\n".join(_wrapped(line) for line in _verdict(plan)))
    if plan.notes:
        parts.append("\n".join(_wrapped(note) for note in plan.notes))
    return "\n\n".join(parts)


def comparison_text(plans: Sequence[Plan]) -> str:
    """Returns the plans of several machines, a line each."""
    head = ("on", "mesh", "a device", "of", "fits", "largest batch", "a step", "the run")
    rows = [head, *(_compared(plan) for plan in plans)]
    notes = [_wrapped(f"times: {_time_words()}.")]
    for plan in plans:
        if plan.change is not None:
            paste = " ".join(map(quoted, plan.change.overrides))
            notes.append(_wrapped(f"{plan.target.name} fits with {paste}"))
    return columns(rows) + "\n\n" + "\n".join(notes)


def _compared(plan: Plan) -> tuple[str, ...]:
    total, slowest = plan.worst.total, plan.worst
    return (
        plan.target.name,
        str(plan.mesh),
        "not compiled" if total is None else gibibytes(total),
        gibibytes(plan.room),
        _fit_word(plan),
        str(plan.largest_batch or "-"),
        "-" if slowest.time is None else span(slowest.time.lower, slowest.time.upper),
        "-" if plan.seconds is None else span(*plan.seconds),
    )


def _fit_word(plan: Plan) -> str:
    if plan.fits is None:
        return "unknown"
    return "yes" if plan.fits else "changed" if plan.change else "no"


def _headline(plan: Plan) -> str:
    recipe = plan.recipe
    first = f"{plan.name} on {plan.target}: {recipe.backbone.name}, {recipe.method.name}"
    batch = recipe.batch
    told = [f"mesh: {plan.mesh}", f"{batch.size} examples a step"]
    told.append(f"{plan.examples:,} in all")
    if plan.blocks:
        depths = " and ".join(map(str, plan.blocks))
        told.append(f"compiled with {depths} of {plan.depth} blocks and extrapolated")
    elif plan.is_compiled:
        told.append("compiled whole")
    return f"{_wrapped(first)}\n{_wrapped(', '.join(told))}"


def _steps_table(plan: Plan) -> str:
    head = (
        "phase",
        "trains",
        "trained",
        "frozen",
        "steps",
        "FLOPs",
        "moved",
        "sent",
        "a step",
        "by",
    )
    rows: list[Sequence[str]] = [head]
    for number, phase in enumerate(plan.phases, 1):
        rows.append((str(number), _short(phase.counted.label), *_step_cells(phase, plan)))
    return columns(rows)


def _step_cells(phase: PhasePlan, plan: Plan) -> Iterator[str]:
    cost, time = phase.cost, phase.time
    yield amount(phase.counted.trained)
    yield amount(phase.counted.frozen)
    yield f"{phase.counted.steps:,}"
    yield amount(phase.flops)
    yield "-" if cost is None or cost.bytes_accessed is None else f"{amount(cost.bytes_accessed)}B"
    sent = sent_bytes(cost.collectives, plan.target.count) if cost else 0.0
    yield f"{amount(sent)}B" if sent else "-"
    yield "-" if time is None else span(time.lower, time.upper)
    yield "-" if time is None else time.bound


def _memory_table(plan: Plan) -> str:
    memories = [phase.memory or {} for phase in plan.phases]
    kinds = [kind for kind in memories[0] if any(memory[kind] for memory in memories)]
    rows: list[Sequence[str]] = [("a device", *kinds, "total", f"of {gibibytes(plan.room)}")]
    for number, memory in enumerate(memories, 1):
        total = sum(memory.values())
        cells = [gibibytes(memory[kind]) for kind in kinds]
        rows.append((f"phase {number}", *cells, gibibytes(total), f"{total / plan.room:.0%}"))
    return columns(rows)


def _verdict(plan: Plan) -> Iterator[str]:
    yield _fit_line(plan)
    if plan.largest_batch is not None:
        yield f"largest batch found that fits: {plan.largest_batch} examples a step (compiled)."
    if plan.change is not None:
        changed = plan.change.plan
        paste = " ".join(map(quoted, plan.change.overrides))
        total = gibibytes(changed.worst.total or 0)
        yield f"it fits with {paste}"
        yield f"  compiled: {total} a device, {_time_of(changed.worst.time)} a step."
    elif plan.tried:
        yield f"{len(plan.tried)} changes were compiled, and none fits:"
        for overrides, total in plan.tried:
            yield f"  {gibibytes(total)} with {' '.join(map(quoted, overrides))}"
    if plan.seconds is not None:
        yield f"the run: {plan.steps:,} steps, {span(*plan.seconds)}: {_time_words()}."
    elif plan.worst.time is not None:
        yield f"times: {_time_words()}."


def _fit_line(plan: Plan) -> str:
    if plan.margin is None:
        state = max(sum(phase.counted.state.values()) for phase in plan.phases)
        share = gibibytes(state), gibibytes(plan.room * plan.target.count)
        if plan.fits is False:
            return f"does not fit: weights and optimizer alone are {share[0]} of {share[1]} in all."
        return (
            f"weights and optimizer are {share[0]} of {share[1]} in all; activations come on top."
        )
    total = f"{gibibytes(plan.worst.total or 0)} of {gibibytes(plan.room)} a device"
    if plan.fits:
        return f"fits: {total}, {gibibytes(plan.margin)} are left."
    lacking = f", {gibibytes(-plan.margin)} are lacking" if plan.margin < 0 else ""
    return f"does not fit: {total}{lacking}."


def _time_of(time: StepTime | None) -> str:
    return "unknown" if time is None else span(time.lower, time.upper)


def _time_words() -> str:
    return (
        "a range, from the machine's peaks to "
        f"{SLOWER:g} times what its compiler's count of bytes and operations takes; left out are "
        f"{LEFT_OUT}"
    )


def columns(rows: Sequence[Sequence[str]]) -> str:
    """Returns rows of cells in columns, numbers to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    is_text = [
        all(not cell[:1].isdigit() and cell != "-" for cell in column[1:])
        for column in zip(*rows, strict=True)
    ]
    lines = []
    for row in rows:
        cells = (
            cell.ljust(width) if left or index == 0 else cell.rjust(width)
            for index, (cell, width, left) in enumerate(zip(row, widths, is_text, strict=True))
        )
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def amount(number: float) -> str:
    """Returns a count in three digits with its power of a thousand: 8.03 G."""
    scaled, units = float(number), ["", "k", "M", "G", "T", "P", "E"]
    while scaled >= 999.5 and len(units) > 1:
        scaled /= 1000
        units.pop(0)
    if not units[0]:
        return f"{scaled:.0f}"
    return f"{scaled:.{0 if scaled >= 99.95 else 1 if scaled >= 9.995 else 2}f} {units[0]}"


def gibibytes(count: float) -> str:
    """Returns bytes in GiB, small ones in MiB."""
    if abs(count) < GIB / 20:
        return f"{count / 2**20:.{0 if abs(count) >= 2**20 else 1}f} MiB"
    return f"{count / GIB:.2f} GiB"


_SCALES = ((86400.0, "d"), (3600.0, "h"), (60.0, "min"), (1.0, "s"), (1e-3, "ms"), (1e-6, "us"))


def span(lower: float, upper: float) -> str:
    """Returns two lengths of time as a range: 0.21 to 1.4 s."""
    first, last = _unit(lower), _unit(upper)
    start, end = _digits(lower / first[0]), _digits(upper / last[0])
    unit = "" if first == last else f" {first[1]}"
    return f"{start}{unit} to {end} {last[1]}"


def _digits(number: float) -> str:
    return f"{number:.0f}" if number >= 9.95 else f"{number:.1f}"


def _unit(seconds: float) -> tuple[float, str]:
    return next((scale for scale in _SCALES if seconds >= scale[0]), _SCALES[-1])


def quoted(override: str) -> str:
    """Returns an override as a shell takes it."""
    return f"'{override}'" if set(override) & set(' {}[]()*?"$&;|<>#') else override


def _short(label: str, longest: int = 18) -> str:
    return label if len(label) <= longest else label[: longest - 1] + "…"


def _wrapped(line: str) -> str:
    indent = " " * (len(line) - len(line.lstrip()))
    return textwrap.fill(
        line,
        COLUMNS,
        subsequent_indent=indent + "  ",
        break_long_words=False,
        break_on_hyphens=False,
    )
