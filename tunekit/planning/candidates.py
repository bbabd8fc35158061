"""What may be changed of a recipe so that it needs less memory: every way, the cheapest first.

What changes neither result nor time comes before what takes time, and that before what changes the
result: how devices share the work, micro-batches, activations computed anew, the dtype, a packed
base, a lower rank.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any

from tunekit import recipe_text
from tunekit.data.spec import BatchSpec
from tunekit.errors import Issue, RecipeError
from tunekit.plans.phase import Phase
from tunekit.recipe import Recipe
from tunekit.training.layout import MeshSizes

LEAST_RANK = 4
_MOST_SPLITS = 6
"""Doublings of the micro-batches that are thought of."""
_BYTES = {"float32": 4, "mixed_bfloat16": 4, "mixed_float16": 4, "bfloat16": 2, "float16": 2}
_COMPUTED = {"float32": 4, "mixed_bfloat16": 2, "mixed_float16": 2, "bfloat16": 2, "float16": 2}
_PACKED = {"int8": 1.0, "int4": 0.5, "nf4": 0.5}
_LEFT_BY_REMAT = {"none": 1.0, "blocks": 0.1, "full": 0.1}
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
            batch.accumulate,
            recipe.runtime.remat,
            recipe.backbone.dtype,
            recipe.backbone.quantize,
            getattr(recipe.method, "rank", None),
        )


@dataclass(frozen=True)
class Change:
    """A setting, what it costs the user, and how a recipe gets it."""

    setting: Setting
    cost: float
    overrides: tuple[str, ...]
    """As ``tunekit run`` takes them."""


def changes(recipe: Recipe, now: Setting, devices_of_host: int) -> list[Change]:
    """Returns every combination of what may be changed, the cheapest first; not all may fit.

    Args:
        recipe: that is changed.
        now: its setting.
        devices_of_host: devices over which a layer may be split.
    """
    options = (
        list(_meshes(now, devices_of_host)),
        list(_micro_batches(now)),
        list(_remats(now)),
        list(_dtypes(now)),
        list(_packings(recipe, now)),
        list(_ranks(now)),
    )
    found = []
    for combination in itertools.product(*options):
        setting = Setting(batch=now.batch, **{key: value for key, value, _ in combination})
        shares = setting.mesh.batch_shards * setting.accumulate
        if setting != now and now.batch % shares == 0:
            cost = sum(each for _, _, each in combination)
            found.append(Change(setting, cost, overrides(recipe, now, setting)))
    return sorted(found, key=lambda change: change.cost)


Option = tuple[str, Any, float]
"""A field of `Setting`, a value of it, and what that costs."""


def _meshes(now: Setting, devices_of_host: int) -> Iterator[Option]:
    yield "mesh", now.mesh, 0.0
    count, tensor = now.mesh.devices, 1
    while count % tensor == 0 and tensor <= devices_of_host:
        mesh = MeshSizes(1, count // tensor, tensor)
        if mesh != now.mesh and _split(mesh) >= _split(now.mesh):
            yield "mesh", mesh, 0.5 + 0.5 * (tensor - 1)
        tensor *= 2


def _split(mesh: MeshSizes) -> int:
    """Parts that weights fall into."""
    return mesh.fsdp * mesh.tensor


def _micro_batches(now: Setting) -> Iterator[Option]:
    for doublings in range(_MOST_SPLITS + 1):
        yield (
            "accumulate",
            now.accumulate * 2**doublings,
            0.0 if not doublings else 1 + doublings / 4,
        )


def _remats(now: Setting) -> Iterator[Option]:
    yield "remat", now.remat, 0.0
    if now.remat == "none":
        yield "remat", "blocks", 3.0


def _dtypes(now: Setting) -> Iterator[Option]:
    yield "dtype", now.dtype, 0.0
    if now.dtype == "float32":
        yield "dtype", "mixed_bfloat16", 5.0
    if _BYTES[now.dtype] > 2:
        yield "dtype", "bfloat16", 6.0


def _packings(recipe: Recipe, now: Setting) -> Iterator[Option]:
    yield "quantize", now.quantize, 0.0
    keeps_base = getattr(recipe.method, "targets", None) is not None
    if keeps_base and now.quantize is None:
        yield "quantize", "int8", 8.0
        yield "quantize", "nf4", 9.0


def _ranks(now: Setting) -> Iterator[Option]:
    yield "rank", now.rank, 0.0
    rank, cost = (now.rank or 0) // 2, 12.0
    while rank >= LEAST_RANK:
        yield "rank", rank, cost
        rank, cost = rank // 2, cost + 1


def overrides(recipe: Recipe, now: Setting, then: Setting) -> tuple[str, ...]:
    """Returns what turns `recipe`, whose setting is `now`, into one of the setting `then`."""
    texts = []
    if then.mesh != now.mesh:
        texts.append(f"runtime.mesh={mesh_text(then.mesh)}")
    places = ["batch"] + [
        f"plan.{index}.batch"
        for index, item in enumerate(recipe.plan)
        if isinstance(item, Phase) and item.batch is not None
    ]
    for name, value in (("size", then.batch), ("accumulate", then.accumulate)):
        if value != getattr(now, {"size": "batch"}.get(name, name)):
            texts += [f"{place}.{name}={value}" for place in places]
    named = {
        "remat": "runtime.remat",
        "dtype": "backbone.dtype",
        "quantize": "backbone.quantize",
        "rank": "method.rank",
    }
    for field, path in named.items():
        if (value := getattr(then, field)) != getattr(now, field):
            texts.append(f"{path}={value}")
    return tuple(texts)


def mesh_text(mesh: MeshSizes) -> str:
    """Returns the mesh as a recipe has it, in one word where there is one."""
    for name, size in (("data", mesh.data), ("fsdp", mesh.fsdp), ("tensor", mesh.tensor)):
        if size == mesh.devices:
            return name if size > 1 else "one"
    named = ("data", mesh.data), ("fsdp", mesh.fsdp), ("tensor", mesh.tensor)
    return "{" + ", ".join(f"{name}: {size}" for name, size in named) + "}"


def changed(recipe: Recipe, texts: Sequence[str]) -> Recipe:
    """Returns the recipe with these overrides.

    Raises:
        RecipeError: with every mistake in them, or in what they make of it.
    """
    if not texts:
        return recipe
    tree = recipe.model_dump(mode="json")
    issues: list[Issue] = []
    for text in texts:
        recipe_text.override(tree, text, issues)
    if issues:
        raise RecipeError(issues)
    return Recipe(**tree)


def is_lighter(one: Setting, other: Setting) -> bool:
    """Whether `one` needs no more than `other` by every field."""
    pairs = zip(_weights(one), _weights(other), strict=True)
    return all(a <= b for a, b in pairs)


def _weights(setting: Setting) -> tuple[float, ...]:
    """Of each field a number that is the smaller, the less memory it means."""
    return (
        1 / _split(setting.mesh),
        setting.batch / setting.accumulate,
        _LEFT_BY_REMAT[setting.remat],
        _BYTES[setting.dtype],
        _COMPUTED[setting.dtype],
        _base_bytes(setting),
        float(setting.rank or 0),
    )


def _base_bytes(setting: Setting) -> float:
    """Of a frozen parameter, at least."""
    if setting.quantize is None:
        return float(_BYTES[setting.dtype])
    return _PACKED[setting.quantize]


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


def at_least(known: Held, of: Setting, then: Setting) -> float:
    """Returns bytes that a device needs at least with the setting `then`.

    By arithmetic, from what was found for another that needs no less in any way: a share that can
    only be larger in truth, so that what it does not fit need not be compiled.

    Args:
        known: what a device holds.
        of: with this setting.
        then: the lighter one.
    """
    split = _split(of.mesh) / _split(then.mesh)
    rank = (then.rank or 1) / (of.rank or 1)
    # Whatever the mesh, all of its devices share the activations: by rows, or within a layer.
    micro = (then.batch / then.accumulate) / (of.batch / of.accumulate)
    remat = _LEFT_BY_REMAT[then.remat] / _LEFT_BY_REMAT[of.remat]
    computed = _COMPUTED[then.dtype] / _COMPUTED[of.dtype]
    return (
        known.frozen * split * _base_bytes(then) / _base_bytes(of)
        + (known.trained + known.optimizer) * split * rank
        + known.copies * split * rank * _BYTES[then.dtype] / _BYTES[of.dtype]
        # Gradients are split, or fewer, as what trains is: perhaps none of the rest is theirs.
        + max(known.rest - known.trained, 0) * micro * remat * computed
    )
