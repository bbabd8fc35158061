"""What may be changed of a recipe so that it needs less memory: every way, the cheapest first.

What changes neither result nor time comes before what takes time, and that before what changes the
result: how devices share the work, micro-batches, activations computed anew, the dtype, a packed
base, a lower rank.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from tunekit import recipe_text
from tunekit.errors import Issue, RecipeError
from tunekit.planning.settings import BYTES, Setting, split
from tunekit.plans.phase import Phase
from tunekit.recipe import Recipe
from tunekit.training.layout import MeshSizes

LEAST_RANK = 4
_MOST_SPLITS = 6
"""Doublings of the micro-batches that are thought of."""


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
        if mesh != now.mesh and split(mesh) >= split(now.mesh):
            yield "mesh", mesh, 0.5 + 0.5 * (tensor - 1)
        tensor *= 2


def _micro_batches(now: Setting) -> Iterator[Option]:
    for doublings in range(_MOST_SPLITS + 1):
        yield (
            "accumulate",
            now.accumulate * 2**doublings,
            0.0 if not doublings else 1 + doublings / 4,
        )


def _remats(now: Setting) -> Iterator[Option]:
    yield "remat", now.remat, 0.0
    if now.remat in ("none", "dots"):
        yield "remat", "blocks", 3.0


def _dtypes(now: Setting) -> Iterator[Option]:
    yield "dtype", now.dtype, 0.0
    if now.dtype == "float32":
        yield "dtype", "mixed_bfloat16", 5.0
    if BYTES[now.dtype] > 2:
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
