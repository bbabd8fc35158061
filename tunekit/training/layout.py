"""Where arrays lie when several devices share a run: every value by its name, batches by rows.

A `Layout` is a mesh of devices and one partition of it for each variable. Optimizer states and
moving averages lie as their variables do. Nothing else knows of devices: the step is the same
program, which XLA divides (https://arxiv.org/abs/2105.04663, GSPMD).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from tunekit.errors import Issue, RecipeError
from tunekit.models.placement import BATCH_AXES, MESH_AXES, fetched, placed
from tunekit.training.spec import MeshSpec, MeshWord
from tunekit.training.step import Carried, ForwardPass, Values

Tree = TypeVar("Tree")


@dataclass(frozen=True)
class MeshSizes:
    """Devices along each axis of a mesh."""

    data: int = 1
    fsdp: int = 1
    tensor: int = 1

    @property
    def shape(self) -> tuple[int, int, int]:
        """In the order of `MESH_AXES`."""
        return self.data, self.fsdp, self.tensor

    @property
    def devices(self) -> int:
        """Of the whole mesh."""
        return math.prod(self.shape)

    @property
    def batch_shards(self) -> int:
        """Parts that a batch falls into."""
        return self.data * self.fsdp

    def __str__(self) -> str:
        """Returns the axes that are used, such as "data 2 x fsdp 4"."""
        used = zip(MESH_AXES, self.shape, strict=True)
        return " x ".join(f"{name} {size}" for name, size in used if size > 1) or "one device"


def mesh_sizes(asked: MeshWord | MeshSpec, devices: int) -> MeshSizes | None:
    """Returns the mesh that a recipe asks for on so many devices; `None` leaves it to be chosen.

    Raises:
        RecipeError: the numbers do not multiply to that of the devices.
    """
    if asked == "auto":
        return MeshSizes() if devices == 1 else None
    if isinstance(asked, str):
        return MeshSizes() if asked == "one" else MeshSizes(**{asked: devices})
    shared = asked.fsdp * asked.tensor
    data = asked.data
    if data is None and devices % shared == 0:
        data = devices // shared
    if data is None or data * shared != devices:
        told = f"fsdp {asked.fsdp} x tensor {asked.tensor}"
        told = told if asked.data is None else f"data {asked.data} x {told}"
        fits = [n for n in range(1, devices + 1) if devices % n == 0]
        raise RecipeError(
            [
                Issue(
                    "runtime.mesh",
                    f"{told} is not {devices}, the number of devices here. The numbers multiply to "
                    f"that of all devices, so each is one of {', '.join(map(str, fits))}; data: "
                    "null takes what the others leave.",
                )
            ]
        )
    return MeshSizes(data, asked.fsdp, asked.tensor)


def check_batch(path: str, size: int, accumulate: int, sizes: MeshSizes) -> None:
    """Passes where every micro-batch falls into equal parts.

    Args:
        path: of the batch in the recipe, such as "batch".
        size: examples of an optimizer step.
        accumulate: its micro-batches.
        sizes: of the mesh.

    Raises:
        RecipeError: it does not; the message names the nearest sizes that do.
    """
    unit = sizes.batch_shards * accumulate
    if size % unit == 0:
        return
    near = sorted({max(unit, size - size % unit), size - size % unit + unit})
    micro = "" if accumulate == 1 else f" in {accumulate} micro-batches"
    raise RecipeError(
        [
            Issue(
                f"{path}.size",
                f"{size} examples{micro} do not divide by the {sizes.batch_shards} devices that "
                f"share a batch ({sizes}). The nearest that do: {' or '.join(map(str, near))}.",
            )
        ]
    )


@dataclass(frozen=True, eq=False)
class Layout:
    """A mesh, and how each variable lies on it."""

    mesh: Mesh
    """With the axes of `MESH_AXES`."""
    specs: Mapping[str, PartitionSpec]
    """Of every variable by structural name."""
    kept_to_rows: Mapping[Any, Any] = field(default_factory=dict, repr=False)
    """What keeps each device to its rows of a batch within a step (``models.sharding``)."""

    @classmethod
    def on(
        cls,
        devices: Sequence[Any],
        sizes: MeshSizes,
        specs: Mapping[str, PartitionSpec],
        kept_to_rows: Callable[[Mesh], Mapping[Any, Any]] | None = None,
    ) -> Layout:
        """Returns the layout over these devices, neighbours sharing products, then weights.

        Args:
            devices: as many as the sizes multiply to.
            sizes: of the mesh.
            specs: of every variable by structural name.
            kept_to_rows: from the mesh to what keeps each device to its rows.
        """
        mesh = Mesh(np.asarray(devices).reshape(sizes.shape), MESH_AXES)
        return cls(mesh, specs, kept_to_rows(mesh) if kept_to_rows else {})

    @property
    def sizes(self) -> MeshSizes:
        """Devices along each axis."""
        return MeshSizes(**dict(self.mesh.shape))

    def of(self, name: str) -> NamedSharding:
        """Returns how the variable of this name lies."""
        return NamedSharding(self.mesh, self.specs[name])

    @property
    def everywhere(self) -> NamedSharding:
        """A whole copy on each device."""
        return NamedSharding(self.mesh, PartitionSpec())

    @property
    def by_rows(self) -> NamedSharding:
        """Split along the first axis, that of a batch."""
        return NamedSharding(self.mesh, PartitionSpec(BATCH_AXES))

    def shardings(self, carried: Carried) -> Any:
        """Returns how the leaves of what a step carries lie, as a `Carried` of shardings."""
        trainable: Any = {name: self.of(name) for name in carried.trainable}
        mutable: Any = {name: self.of(name) for name in carried.mutable}
        ema: Any = {name: self.of(name) for name in carried.ema}
        states = {
            name: self._of_state(name, state, carried.trainable)
            for name, state in carried.optimizer.items()
        }
        scale: Any = dict.fromkeys(carried.loss_scale, self.everywhere)
        return Carried(trainable, mutable, states, ema, scale)

    def _of_state(self, name: str, state: Any, trainable: Mapping[str, Any]) -> Any:
        """How an optimizer state of the variable lies."""
        return jax.tree.map(lambda leaf: self._beside(name, leaf, trainable), state)

    def _beside(self, name: str, leaf: Any, trainable: Mapping[str, Any]) -> NamedSharding:
        """A moment lies as its variable does; a count is everywhere."""
        same = name in trainable and tuple(leaf.shape) == tuple(trainable[name].shape)
        return self.of(name) if same else self.everywhere

    def values(self, values: Mapping[str, Any]) -> Values:
        """Returns values by structural name as they lie on the mesh."""
        return {name: placed(value, self.of(name)) for name, value in values.items()}

    def carried(self, carried: Carried) -> Carried:
        """Returns what a step carries as it lies on the mesh."""
        return jax.tree.map(placed, carried, self.shardings(carried))

    def rows(self, size: int) -> tuple[int, ...] | None:
        """Returns which rows of a batch lie on this process' devices; `None` where all do."""
        if self.by_rows.is_fully_addressable:
            return None
        parts = self.by_rows.addressable_devices_indices_map((size,)).values()
        found = {row for part in parts if part for row in range(*part[0].indices(size))}
        return tuple(sorted(found))

    def batch(self, columns: Mapping[str, np.ndarray]) -> dict[str, jax.Array]:
        """Returns the columns of a batch, each device with its rows.

        Args:
            columns: of the rows that lie on this process' devices.
        """
        if self.by_rows.is_fully_addressable:
            return {name: placed(column, self.by_rows) for name, column in columns.items()}
        return {
            name: jax.make_array_from_process_local_data(self.by_rows, column)
            for name, column in columns.items()
        }

    def shared(self, tree: Tree) -> Tree:
        """Returns the arrays of `tree` with a whole copy on each device."""
        return jax.tree.map(lambda leaf: placed(leaf, self.everywhere), tree)

    def divided(self, forward: ForwardPass) -> ForwardPass:
        """Returns the same pass, in which each device works on its rows."""
        whole = getattr(forward, "forward", None)
        if whole is None:
            return replace(forward, kept_to_rows=self.kept_to_rows)  # type: ignore[type-var]
        return replace(forward, forward=self.divided(whole))  # type: ignore[type-var]

    def fetched(self, values: Mapping[str, jax.Array]) -> dict[str, np.ndarray]:
        """Returns whole values in this process' memory; every process of the run asks for them."""
        return {name: fetched(value) for name, value in values.items()}

    def templates(self, saved: Mapping[str, Any]) -> dict[str, Any]:
        """Returns the shapes of a checkpoint's arrays with how they lie.

        Args:
            saved: values by structural name, in groups; "optimizer" has states of them instead.
        """
        trainable = {name: saved["moved"][name] for name in saved.get("optimizer", {})}
        laid: dict[str, Any] = {}
        for key, group in saved.items():
            if key == "optimizer":
                lie = {name: self._of_state(name, each, trainable) for name, each in group.items()}
            elif key == "loss_scale":
                lie = dict.fromkeys(group, self.everywhere)
            else:
                lie = {name: self.of(name) for name in group}
            laid[key] = jax.tree.map(_with, group, lie)
        return laid

    def shapes(
        self,
        carried: Carried,
        frozen: Mapping[str, Any],
        anchors: Mapping[str, Any],
        batch: Mapping[str, Any],
    ) -> tuple[Any, ...]:
        """Returns the shapes of a step's arguments with how they lie: what it is lowered for."""
        return (
            jax.tree.map(_with, carried, self.shardings(carried)),
            {name: _with(value, self.of(name)) for name, value in frozen.items()},
            {name: _with(value, self.of(name)) for name, value in anchors.items()},
            {name: _with(column, self.by_rows) for name, column in batch.items()},
        )


def _with(shape: Any, sharding: NamedSharding) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=sharding)
