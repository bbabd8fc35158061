"""What shapes alone say of a phase: parameters, steps, bytes of its state."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any

import jax

from tunekit.planning.shapes import Planned
from tunekit.training.state import partition


@dataclass(frozen=True)
class Counted:
    """One phase, whole: what its shares of devices are shares of."""

    label: str
    """What trains, as the user said it."""
    trained: int
    """Parameters that train."""
    frozen: int
    """Parameters that do not."""
    steps: int
    state: dict[str, int]
    """Bytes: "frozen" and "trained" weights, "optimizer"."""
    moved: int
    """Bytes, as the model has them, of all that this phase and those before it may change."""

    @property
    def parameters(self) -> int:
        """Of the whole model."""
        return self.trained + self.frozen


def counted(planned: Planned) -> tuple[Counted, ...]:
    """Returns what the shapes of a recipe say of each phase; nothing is compiled or allocated."""
    programs, forward = planned.programs(), planned.forward
    shapes = {name: _shape(variable) for name, variable in forward.variables.items()}
    weights = {name: prod(shapes[name].shape) for name in forward.names("weight")}
    moved: set[str] = set()
    found = []
    for index, phase in enumerate(planned.phases):
        carried, frozen = jax.eval_shape(
            lambda values, index=index, phase=phase: partition(
                forward, phase, values, programs.optimizer_of(index)
            ),
            shapes,
        )
        moved |= {*carried.trainable, *carried.mutable}
        trained = sum(prod(shapes[name].shape) for name in phase.trainable)
        found.append(
            Counted(
                label=phase.label,
                trained=trained,
                frozen=sum(weights.values()) - trained,
                steps=phase.steps,
                state={
                    "frozen": _bytes((frozen, carried.mutable)),
                    "trained": _bytes(carried.trainable),
                    "optimizer": _bytes((carried.optimizer, carried.ema)),
                },
                moved=_bytes([shapes[name] for name in moved]),
            )
        )
    return tuple(found)


def _shape(variable: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(tuple(variable.shape), variable.dtype)


def _bytes(tree: Any) -> int:
    return sum(prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))
