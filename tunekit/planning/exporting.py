"""A phase's step as a file: lowered for a machine that need not be here, by ``jax.export``.

No compiler of that machine is needed, and no weights: the step is traced from shapes. What is kept
is StableHLO, which stays readable for later versions of JAX
(https://docs.jax.dev/en/latest/export/export.html). Its arguments and results have names:
``carried/trainable/heads/label/logits/kernel``, ``frozen/…``, ``batch/image``, ``key``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from typing import Any

import jax
from jax import export
from jax.sharding import AbstractMesh, NamedSharding

from tunekit.meshes import check_batches
from tunekit.models.placement import MESH_AXES
from tunekit.models.sharding import batch_shared, layout_specs
from tunekit.planning.compiled import target_sizes
from tunekit.planning.dispatch import dispatched
from tunekit.planning.hardware import Target
from tunekit.planning.shapes import Planned
from tunekit.training.layout import Layout

PLATFORMS = {"cpu": "cpu", "gpu": "cuda", "tpu": "tpu"}
"""From kinds of machines to what ``jax.export`` calls them."""

_CUDNN_CALLS = tuple(
    f"__cudnn$fmha{part}Softmax{dropout}{way}"
    for part in ("", "ScaleBias")
    for dropout in ("", "Dropout")
    for way in ("", "Backward")
)
_ARGUMENTS = ("carried", "frozen", "anchors", "batch", "learning_rates", "key")


@dataclass(frozen=True, eq=False)
class ExportedPhase:
    """The step of one phase, lowered."""

    label: str
    """What trains, as the user said it."""
    exported: export.Exported
    """From the arguments to the results, both flat and in this order."""
    arguments: tuple[dict[str, Any], ...]
    """Name, shape, dtype and sharding of each; those that begin with "carried/" are used up."""
    results: tuple[str, ...]
    """Names: the new "carried/…", and "measured/…"."""


def exported_phases(
    planned: Planned,
    target: Target,
    *,
    platforms: Sequence[str] | None = None,
    phases: Sequence[int] | None = None,
) -> list[ExportedPhase]:
    """Returns the steps of the phases of a run, lowered for a machine.

    Args:
        planned: the run in shapes.
        target: the machine: its devices, and what its kind traces.
        platforms: of ``jax.export`` that the steps can be called on; `None` is the target's.
        phases: which, by number from 0; `None` is all.

    Raises:
        RecipeError: the mesh is not of these devices, or a batch does not divide.
    """
    layout = _abstract_layout(planned, target)
    platforms = platforms or [PLATFORMS[target.kind]]
    asked = range(len(planned.phases)) if phases is None else phases
    return [_exported(planned, index, target, layout, platforms) for index in asked]


def _abstract_layout(planned: Planned, target: Target) -> Layout | None:
    """How the run lies on so many devices, whichever they are; `None` is one."""
    sizes = target_sizes(planned, target)
    if sizes.devices == 1:
        return None
    check_batches(planned.recipe, planned.phases, sizes)
    mesh: Any = AbstractMesh(sizes.shape, MESH_AXES)
    specs = layout_specs(planned.model, asdict(sizes), planned.recipe.runtime.sharding)
    return Layout(mesh, specs, batch_shared(planned.model, mesh))


def _exported(
    planned: Planned,
    index: int,
    target: Target,
    layout: Layout | None,
    platforms: Sequence[str],
) -> ExportedPhase:
    programs = planned.programs(layout)
    step, arguments = programs.step(index), programs.arguments(index)
    # A random key as the numbers that it is made of.
    arguments = (*arguments[:-1], jax.eval_shape(jax.random.key_data, arguments[-1]))
    leaves, tree = jax.tree.flatten(arguments)
    results: list[str] = []

    def flat_step(*values: Any) -> tuple[Any, ...]:
        *rest, key = jax.tree.unflatten(tree, values)
        given: Any = (*rest, jax.random.wrap_key_data(key))
        carried, measured = step(*given)
        carried = _constrained(carried, layout)
        named = {**_named(carried, "carried"), **_named(measured, "measured")}
        results[:] = named
        return tuple(named.values())

    # cuDNN's attention divides itself over a mesh by a call into this process: no file can hold it.
    alone = layout is None
    with nullcontext() if target.is_this_machine else dispatched(target.chip, kernels=alone):
        exported = export.export(
            jax.jit(flat_step),
            platforms=list(platforms),
            disabled_checks=[export.DisabledSafetyCheck.custom_call(n) for n in _CUDNN_CALLS],
        )(*leaves)
    names = [
        name
        for part, tree in zip(_ARGUMENTS, arguments, strict=True)
        for name in _named(tree, part)
    ]
    described = tuple(_described(name, leaf) for name, leaf in zip(names, leaves, strict=True))
    return ExportedPhase(planned.phases[index].label, exported, described, tuple(results))


def _constrained(carried: Any, layout: Layout | None) -> Any:
    """What is carried to the next step, lying as it came."""
    if layout is None:
        return carried
    return jax.tree.map(jax.lax.with_sharding_constraint, carried, layout.shardings(carried))


def _named(tree: Any, prefix: str) -> dict[str, Any]:
    """The leaves of a tree by the way to them, in the order of the tree."""
    leaves, _ = jax.tree.flatten_with_path(tree)
    return {"/".join((prefix, *map(_key, path))): leaf for path, leaf in leaves}


def _key(entry: Any) -> str:
    for attribute in ("key", "name", "idx"):
        if hasattr(entry, attribute):
            return str(getattr(entry, attribute))
    raise AssertionError(f"a tree of dicts, tuples and named tuples has no {entry!r}")


def _described(name: str, leaf: Any) -> dict[str, Any]:
    sharding = getattr(leaf, "sharding", None)
    spec = list(_axes(sharding)) if isinstance(sharding, NamedSharding) else None
    return {"name": name, "shape": list(leaf.shape), "dtype": str(leaf.dtype), "sharding": spec}


def _axes(sharding: NamedSharding) -> Iterator[None | str | list[str]]:
    for axes in sharding.spec:
        yield list(axes) if isinstance(axes, tuple) else axes
