"""What of a recipe says how much memory it needs, and how little that may be: arithmetic alone."""

from __future__ import annotations

from dataclasses import dataclass, fields

from tunekit.data.spec import BatchSpec
from tunekit.recipe import Recipe
from tunekit.training.layout import MeshSizes

BYTES = {"float32": 4, "mixed_bfloat16": 4, "mixed_float16": 4, "bfloat16": 2, "float16": 2}
_COMPUTED = {"float32": 4, "mixed_bfloat16": 2, "mixed_float16": 2, "bfloat16": 2, "float16": 2}
_PACKED = {"int8": 1.0, "int4": 0.5, "nf4": 0.5}
_LEFT_BY_REMAT = {"none": 1.0, "dots": 0.3, "blocks": 0.1, "full": 0.1, "offload": 0.05}
"""Share of the activations that is kept at least."""


@dataclass(frozen=True)
class Setting:
    """The values of a recipe that say how much memory it needs, beside the model's and data's."""

    mesh: MeshSizes
    batch: int
    accumulate: int
    remat: str
    dtype: str
    quantize: str | None
    rank: int | None

    @classmethod
    def of(cls, recipe: Recipe, mesh: MeshSizes, batch: BatchSpec) -> Setting:
        """Returns those of `recipe` on this mesh, with the batches of one of its phases."""
        return cls(
            mesh,
            batch.size,
            batch.micro_batches,
            recipe.runtime.remat,
            recipe.backbone.dtype,
            recipe.backbone.quantize,
            getattr(recipe.method, "rank", None),
        )


@dataclass(frozen=True)
class Held:
    """Bytes of one device."""

    frozen: float
    trained: float
    optimizer: float
    copies: float
    """Of weights, as they were before training and as they were best."""
    rest: float
    """Activations and all else that a step needs."""

    @property
    def total(self) -> float:
        """All of them."""
        return sum(getattr(self, field.name) for field in fields(self))


def split(mesh: MeshSizes) -> int:
    """Returns the parts that weights fall into."""
    return mesh.fsdp * mesh.tensor


def is_lighter(one: Setting, other: Setting) -> bool:
    """Returns whether `one` needs no more than `other` by every field."""
    pairs = zip(_weights(one), _weights(other), strict=True)
    return all(a <= b for a, b in pairs)


def _weights(setting: Setting) -> tuple[float, ...]:
    """Of each field a number that is the smaller, the less memory it means."""
    return (
        1 / split(setting.mesh),
        setting.batch / setting.accumulate,
        _LEFT_BY_REMAT[setting.remat],
        BYTES[setting.dtype],
        _COMPUTED[setting.dtype],
        _base_bytes(setting),
        float(setting.rank or 0),
    )


def _base_bytes(setting: Setting) -> float:
    """Of a frozen parameter, at least."""
    if setting.quantize is None:
        return float(BYTES[setting.dtype])
    return _PACKED[setting.quantize]


def at_least(known: Held, of: Setting, then: Setting) -> float:
    """Returns bytes that a device needs at least with the setting `then`.

    By arithmetic, from what was found for another that needs no less in any way: a share that can
    only be larger in truth, so that what it does not fit need not be compiled.

    Args:
        known: what a device holds.
        of: with this setting.
        then: the lighter one.
    """
    shares = split(of.mesh) / split(then.mesh)
    rank = (then.rank or 1) / (of.rank or 1)
    # Whatever the mesh, all of its devices share the activations: by rows, or within a layer.
    micro = (then.batch / then.accumulate) / (of.batch / of.accumulate)
    remat = _LEFT_BY_REMAT[then.remat] / _LEFT_BY_REMAT[of.remat]
    computed = _COMPUTED[then.dtype] / _COMPUTED[of.dtype]
    return (
        known.frozen * shares * _base_bytes(then) / _base_bytes(of)
        + (known.trained + known.optimizer) * shares * rank
        + known.copies * shares * rank * BYTES[then.dtype] / BYTES[of.dtype]
        # Gradients are split, or fewer, as what trains is: perhaps none of the rest is theirs.
        + max(known.rest - known.trained, 0) * micro * remat * computed
    )
