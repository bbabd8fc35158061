"""One phase's step compiled for a machine that need not be here: what the compiler says of it."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from typing import Any, cast

import jax

from tunekit.meshes import chosen_sizes, layout_on
from tunekit.planning.arithmetic import step_flops
from tunekit.planning.chips import GIB
from tunekit.planning.collectives import collectives
from tunekit.planning.dispatch import dispatched
from tunekit.planning.hardware import Target
from tunekit.planning.shapes import Planned
from tunekit.platforms import Platform
from tunekit.training.layout import Layout, MeshSizes, mesh_sizes


@dataclass(frozen=True)
class CompiledPhase:
    """What one device needs for the step of a phase, as the compiler of its chip plans it."""

    label: str
    """What trains, as the user said it."""
    argument_bytes: int
    output_bytes: int
    alias_bytes: int
    """Of results that lie where arguments were."""
    temp_bytes: int
    """Of all that lives within the step: activations, gradients, copies."""
    peak_bytes: int
    """The most that is held at once; of a refused program, what it would need."""
    state: dict[str, int]
    """Bytes by kind: "frozen" (statistics and anchors among them), "trained", "optimizer"."""
    flops: float
    """Operations of a step, all devices together."""
    bytes_accessed: float | None
    """That one device reads and writes in a step; `None` where the compiler does not say."""
    collectives: list[dict[str, Any]]
    """Messages of a step: kind, count, bytes of the whole arrays."""
    compile_seconds: float
    refusal: str | None = None
    """Why it does not fit; `None` where it does."""
    notes: list[str] = field(default_factory=list)
    """What is worth knowing of the program, a sentence each."""

    def to_json(self) -> dict[str, Any]:
        """Returns its fields."""
        return asdict(self)


def target_sizes(planned: Planned, target: Target) -> MeshSizes:
    """Returns the mesh that a recipe asks for on the target, or that a run would choose there.

    Raises:
        RecipeError: the mesh is not of these devices.
    """
    recipe, model, phases = planned.recipe, planned.model, planned.phases
    asked = mesh_sizes(recipe.runtime.mesh, target.count)
    if asked is not None:
        return asked
    return chosen_sizes(recipe, model, phases, target.count, target.chip.usable_bytes)


def target_layout(planned: Planned, target: Target, devices: Sequence[Any]) -> Layout:
    """Returns how a run lies on the target's devices, by its recipe's mesh.

    Raises:
        RecipeError: the mesh is not of these devices, or a batch does not divide.
    """
    sizes = target_sizes(planned, target)
    # In the order that a run has them (``meshes.layout_of``).
    devices = sorted(devices, key=lambda device: (device.process_index, device.id))
    chosen = devices[: sizes.devices]
    return layout_on(planned.recipe, planned.model, planned.phases, sizes, chosen)


def compiled_phase(planned: Planned, index: int, target: Target, layout: Layout) -> CompiledPhase:
    """Returns what the step of a phase needs on the target.

    Args:
        planned: the run in shapes.
        index: of the phase.
        target: the machine.
        layout: of its devices.
    """
    programs = planned.programs(layout)
    arguments = programs.arguments(index)
    state = _state_bytes(*arguments[:3])
    known: dict[str, Any] = {
        "label": planned.phases[index].label,
        "state": state,
        "flops": step_flops(planned, index, cast(Platform, target.kind)),
    }
    with nullcontext() if target.is_this_machine else dispatched(target.chip):
        lowered = programs.lowered(index)
    since = time.perf_counter()
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if (needed := needed_bytes(str(error))) is None:
            raise
        held = sum(state.values()) + sum(map(_device_bytes, jax.tree.leaves(arguments[3:])))
        return CompiledPhase(
            **known,
            argument_bytes=held,
            output_bytes=0,
            alias_bytes=0,
            temp_bytes=max(needed - held, 0),
            peak_bytes=needed,
            bytes_accessed=None,
            collectives=[],
            compile_seconds=time.perf_counter() - since,
            refusal=_refusal(needed, target, "The compiler refuses the program"),
        )
    seconds = time.perf_counter() - since
    memory, text = compiled.memory_analysis(), compiled.as_text() or ""
    assert memory is not None, "compilers of all targets say what memory they plan"
    arguments_size, temporary = memory.argument_size_in_bytes, memory.temp_size_in_bytes
    results, aliases = memory.output_size_in_bytes, memory.alias_size_in_bytes
    # A CPU's compiler leaves what lives within the step out of its peak.
    is_cpu = target.kind == "cpu"
    peak = arguments_size + results - aliases + temporary if is_cpu else memory.peak_memory_in_bytes
    # XLA refuses no program for a GPU: that it does not fit shows when it runs.
    fits = target.kind != "gpu" or peak <= target.chip.usable_bytes
    return CompiledPhase(
        **known,
        argument_bytes=int(arguments_size),
        output_bytes=int(results),
        alias_bytes=int(aliases),
        temp_bytes=int(temporary),
        peak_bytes=int(peak),
        bytes_accessed=_bytes_accessed(compiled, planned.feeds[index].accumulate),
        collectives=collectives(text),
        compile_seconds=seconds,
        refusal=None if fits else _refusal(peak, target, "The program does not fit"),
        notes=_notes(text),
    )


_NEEDED = (
    r"Used (?P<number>[\d.]+)(?P<unit>[KMGT]?) of [\d.]+[KMGT]? hbm",
    r"memory required for HLO temporaries \((?P<number>[\d.]+)(?P<unit>[KMGT]?)\)",
)
_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


def needed_bytes(message: str) -> int | None:
    """Returns the memory that a compiler says a refused program needs.

    `None` where the message is not of a refusal for want of memory.
    """
    if "RESOURCE_EXHAUSTED" not in message:
        return None
    found = [m for pattern in _NEEDED for m in re.finditer(pattern, message)]
    needed = [float(match["number"]) * _UNITS[match["unit"]] for match in found]
    return int(max(needed)) if needed else None


def _refusal(needed: int, target: Target, verdict: str) -> str:
    room = target.chip.usable_bytes
    return (
        f"{verdict}: it needs {needed / GIB:.2f} GiB of each device's memory, and a program may "
        f"use {room / GIB:.2f} GiB of a {target.chip.label}."
    )


def _state_bytes(carried: Any, frozen: Any, anchors: Any) -> dict[str, int]:
    kinds = {
        "frozen": (frozen, anchors, carried.mutable),
        "trained": carried.trainable,
        "optimizer": (carried.optimizer, carried.ema),
    }
    return {kind: sum(map(_device_bytes, jax.tree.leaves(tree))) for kind, tree in kinds.items()}


def _device_bytes(leaf: Any) -> int:
    """Bytes of one device's part of an array."""
    sharding = getattr(leaf, "sharding", None)
    shape = sharding.shard_shape(leaf.shape) if sharding is not None else leaf.shape
    # A random key's dtype has no size of its own.
    size = getattr(leaf.dtype, "itemsize", 0)
    return math.prod(shape) * size


def _bytes_accessed(compiled: Any, micro_batches: int) -> float | None:
    analysis = compiled.cost_analysis() or {}
    counted = analysis.get("bytes accessed")
    # The loop over micro-batches is nearly the whole step, and is counted once.
    return None if not counted else float(counted) * micro_batches


def _notes(text: str) -> list[str]:
    if "__cudnn$fmha" not in text:
        return []
    return ["Attention is cuDNN's flash attention; the workspace of its kernels is not counted."]
