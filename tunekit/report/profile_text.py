"""A run's profile as lines: what the time went to, how fast it was, what would make it faster."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Row = tuple[str, str, str]

_ABOUT = {
    "compile": "tracing, and XLA",
    "features": "outputs of the frozen part, computed once",
    "input": "waiting for a batch, no step running",
    "step": "the devices at work on steps",
    "evaluation": "judging on the validation data",
    "checkpoint": "writing checkpoints",
    "other": "all else",
}


def profile_rows(profile: Mapping[str, Any]) -> list[Row]:
    """Returns a row for each part: its name, its seconds, its share and what it is."""
    seconds = profile["seconds"]
    total = max(seconds["total"], 1e-9)
    rows = [
        (part, f"{seconds[part]:.1f} s", f"{seconds[part] / total:4.0%}  {about}")
        for part, about in _ABOUT.items()
    ]
    return [*rows, ("in all", f"{seconds['total']:.1f} s", "")]


def profile_lines(profile: Mapping[str, Any]) -> list[str]:
    """Returns how fast the steps were, and what bounds them, a sentence a line."""
    lines = []
    if (first := profile["first_step_seconds"]) is not None:
        lines.append(f"The first step was done after {first:.1f} s.")
    lines.append(_speed(profile))
    lines.append(_verdict(profile))
    if profile["trace"] is not None:
        first, stop = profile["traced_steps"]
        lines.append(
            f"A trace of steps {first} to {stop - 1} is in {profile['trace']}; open it in Perfetto "
            "(ui.perfetto.dev: the file *.trace.json.gz) or in TensorBoard."
        )
    return lines


def _speed(profile: Mapping[str, Any]) -> str:
    speed = f"{profile['examples_per_second']:,.1f} examples/s"
    if profile["tokens_per_second"] is not None:
        speed += f", {profile['tokens_per_second']:,.0f} tokens/s"
    if (share := profile["share_of_peak"]) is None:
        return f"{speed}."
    reached, peak = profile["operations_per_second"], profile["peak_operations_per_second"]
    return (
        f"{speed}; {reached / 1e9:,.0f} GFLOP/s, {share:.0%} of the {peak / 1e9:,.0f} that a "
        f"product of matrices in {profile['dtype']} reaches here."
    )


def _verdict(profile: Mapping[str, Any]) -> str:
    waiting = f"{profile['waiting_share']:.0%} of the time of steps goes into waiting for batches"
    if profile["bound"] == "input":
        return (
            f"Input-bound: {waiting}. Give batch.workers more threads, store the data smaller or "
            "decoded, or keep the outputs of a frozen part (cache)."
        )
    return (
        f"Compute-bound: {waiting}. Fewer trained or larger frozen parts, bfloat16 on devices that "
        "have it, or more devices make it faster; a quicker source does not."
    )
