"""The devices of a run: which mesh a recipe's run has here, and how its arrays lie on it."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from typing import Any

import jax

from tunekit.data.spec import BatchSpec
from tunekit.distributed import gathered, process_count
from tunekit.errors import Issue, RecipeError
from tunekit.models.model import Model
from tunekit.models.placement import in_host_memory
from tunekit.models.sharding import batch_shared, layout_specs
from tunekit.plans.resolve import ResolvedPhase
from tunekit.recipe import Recipe
from tunekit.training.layout import Layout, MeshSizes, check_batch, mesh_sizes
from tunekit.training.memory import device_memory
from tunekit.training.mesh_choice import choose_mesh
from tunekit.training.state import partition


def layout_of(recipe: Recipe, model: Model, phases: Sequence[ResolvedPhase]) -> Layout | None:
    """Returns how a run lies on this machine's devices, those of all its processes together.

    `None` where it has one device.

    Raises:
        RecipeError: the mesh asked for does not fit the devices, or a batch does not divide.
    """
    # Those of a process stand together: it then reads neighbouring rows of a batch.
    devices = sorted(jax.devices(), key=lambda device: (device.process_index, device.id))
    if process_count() > 1 and recipe.runtime.mesh == "one":
        message = (
            f"one is a single device, and this run has {process_count()} processes; choose "
            "another, or start a single process."
        )
        raise RecipeError([Issue("runtime.mesh", message)])
    sizes = mesh_sizes(recipe.runtime.mesh, len(devices))
    if sizes is None:
        memory = min(gathered(device_memory(), "memory of a device"))
        sizes = chosen_sizes(recipe, model, phases, len(devices), memory)
    if sizes.devices == 1:
        return None
    return layout_on(recipe, model, phases, sizes, devices)


def layout_on(
    recipe: Recipe,
    model: Model,
    phases: Sequence[ResolvedPhase],
    sizes: MeshSizes,
    devices: Sequence[Any],
) -> Layout:
    """Returns how a run lies on a mesh over these devices, which need not be of this machine.

    Raises:
        RecipeError: a batch does not divide, or the recipe's own sharding does not fit.
    """
    check_batches(recipe, phases, sizes)
    specs = layout_specs(model, asdict(sizes), recipe.runtime.sharding)
    return Layout.on(devices, sizes, specs, lambda mesh: batch_shared(model, mesh))


def loading_place(recipe: Recipe) -> AbstractContextManager[Any]:
    """Returns the block in which a run's model is loaded: in host memory where devices share it."""
    sizes = mesh_sizes(recipe.runtime.mesh, len(jax.devices()))
    is_whole = sizes is not None and sizes.devices == sizes.data
    return nullcontext() if is_whole else in_host_memory()


def check_batches(recipe: Recipe, phases: Sequence[ResolvedPhase], sizes: MeshSizes) -> None:
    """Passes where the batches of all phases fall into equal parts.

    Raises:
        RecipeError: they do not; the message names sizes that do.
    """
    batches: dict[BatchSpec, str] = {}
    for index, phase in enumerate(phases):
        batch = phase.spec.batch
        batches.setdefault(batch or recipe.batch, f"plan[{index}].batch" if batch else "batch")
    for batch, path in batches.items():
        check_batch(path, batch.size, batch.micro_batches, sizes)


def chosen_sizes(
    recipe: Recipe,
    model: Model,
    phases: Sequence[ResolvedPhase],
    devices: int,
    device_bytes: int,
    activations: int | None = None,
) -> MeshSizes:
    """Returns the mesh that "auto" means.

    Args:
        recipe: of the run.
        model: whose variables may be shapes alone.
        phases: of which the largest state counts.
        devices: of the run.
        device_bytes: memory of each.
        activations: bytes of a whole micro-batch's; `None` where they are not known.
    """
    batch = recipe.batch
    state = max(state_bytes(recipe, model, phase) for phase in phases)
    micro = batch.size // batch.micro_batches
    return MeshSizes(**choose_mesh(state, activations, device_bytes, devices, micro))


def state_bytes(recipe: Recipe, model: Model, phase: ResolvedPhase) -> int:
    """Returns the bytes of a phase's weights, gradients and optimizer states together."""
    forward = model.forward()
    shapes = {
        name: jax.ShapeDtypeStruct(tuple(v.shape), v.dtype) for name, v in forward.variables.items()
    }
    optimizer = phase.spec.optimizer or recipe.optimizer
    carried, frozen = jax.eval_shape(
        lambda values: partition(forward, phase, values, optimizer), shapes
    )
    leaves = jax.tree.leaves((carried, frozen, carried.trainable))
    return sum(leaf.size * leaf.dtype.itemsize for leaf in leaves)
