"""Messages between devices in a compiled program: read from XLA's text of it.

XLA writes a program as computations, each a list of instructions; loops, fusions and asynchronous
parts name the computations that they run. What stands in the body of a loop counts as often as
the loop runs, where its trips are known.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")

_COMPUTATION = re.compile(r"^(?:ENTRY )?%?(?P<name>[\w.\-]+) \(.*-> .*\{$")
_INSTRUCTION = re.compile(r"^\s*(?:ROOT )?%?(?P<name>[\w.\-]+) = (?P<rest>.*)$")
_OPERATION = re.compile(r"(?P<type>.*?) (?P<opcode>[a-z][\w\-]*)\(")
_ARRAY = re.compile(r"\b([a-z]+[0-9]*(?:e\d+m\d+\w*)?)\[([\d,]*)\]")
_CALLED = re.compile(r"(calls|body|to_apply|branch_computations)=\{?([%\w.\-, ]+)")
_CONDITION = re.compile(r"condition=%?([\w.\-]+)")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')
_CONSTANT = re.compile(r"= [su]\d+\[\][^ ]* constant\((\d+)\)")
_GROUP = re.compile(r"replica_groups=(?:\{\{([\d,]+)\}|\[\d+,(\d+)\])")

_BYTES = {"pred": 1, "s4": 0.5, "u4": 0.5, "bf16": 2}


@dataclass(frozen=True)
class _Instruction:
    type: str
    opcode: str
    text: str


def collectives(text: str) -> list[dict[str, Any]]:
    """Returns the messages of a compiled program: kind, how many, and their bytes together.

    The bytes are of the whole arrays on one device: what is reduced, or what has been gathered.

    Args:
        text: ``jax.stages.Compiled.as_text()``.
    """
    computations, entry = _computations(text)
    found: dict[str, list[float]] = defaultdict(lambda: [0, 0.0])
    _count(computations, entry, 1, found)
    return [
        {"kind": kind, "count": int(found[kind][0]), "bytes": int(found[kind][1])}
        for kind in KINDS
        if kind in found
    ]


def _computations(text: str) -> tuple[dict[str, list[_Instruction]], str]:
    computations: dict[str, list[_Instruction]] = {}
    entry, here = "", ""
    for line in text.splitlines():
        if head := _COMPUTATION.match(line):
            here = head["name"]
            computations[here] = []
            entry = here if line.startswith("ENTRY") else entry
        elif here and (named := _INSTRUCTION.match(line)):
            if operation := _OPERATION.match(named["rest"]):
                instruction = _Instruction(operation["type"], operation["opcode"], named["rest"])
                computations[here].append(instruction)
    return computations, entry


def _count(
    computations: Mapping[str, Sequence[_Instruction]],
    name: str,
    times: int,
    found: dict[str, list[float]],
) -> None:
    for each in computations.get(name, ()):
        kind = each.opcode.removesuffix("-start")
        if kind in KINDS:
            # A TPU's reduce-scatter is a fusion of both halves.
            scatters = kind == "all-reduce" and "all-reduce-scatter" in name
            found["reduce-scatter" if scatters else kind][0] += times
            found["reduce-scatter" if scatters else kind][1] += times * _whole_bytes(each, kind)
            continue
        inner = times * _trips(computations, each) if each.opcode == "while" else times
        for role, names in _CALLED.findall(each.text):
            if role == "to_apply" and each.opcode != "call":
                continue
            for called in names.split(","):
                _count(computations, called.strip().lstrip("%"), inner, found)


def _trips(computations: Mapping[str, Sequence[_Instruction]], loop: _Instruction) -> int:
    """How often a loop runs; 1 where its text does not say."""
    if known := _TRIPS.search(loop.text):
        return int(known[1])
    condition = _CONDITION.search(loop.text)
    instructions = list(computations.get(condition[1], ())) if condition else []
    for each in list(instructions):
        for _, names in _CALLED.findall(each.text):
            instructions += computations.get(names.strip().lstrip("%"), ())
    # A scan counts from 0 up to a bound, the only number that its condition has.
    bounds = [
        int(bound[1]) for each in instructions if (bound := _CONSTANT.search(f"= {each.text}"))
    ]
    return bounds[0] if len(bounds) == 1 else 1


def _whole_bytes(collective: _Instruction, kind: str) -> float:
    """Bytes of the larger side: the operand of a reduce-scatter, the result of an all-gather."""
    arrays = [_array_bytes(*array) for array in _ARRAY.findall(collective.type)]
    if collective.opcode == "all-reduce-start" or kind in ("all-reduce", "all-to-all"):
        return sum(arrays)
    if collective.opcode.endswith("-start"):
        # The operands, the results, and numbers that only the hardware needs.
        return max(arrays)
    if kind == "reduce-scatter":
        return sum(arrays) * _group_size(collective)
    return sum(arrays)


def _group_size(collective: _Instruction) -> int:
    group = _GROUP.search(collective.text)
    if group is None:
        return 1
    return len(group[1].split(",")) if group[1] else int(group[2])


def _array_bytes(dtype: str, shape: str) -> float:
    size = _BYTES.get(dtype)
    if size is None:
        bits = re.match(r"[a-z]+(\d+)", dtype)
        size = int(bits[1]) / 8 if bits else 0
    return size * prod(int(side) for side in shape.split(",") if side)
