"""Makes the plan of a recipe on a machine: counts, chooses a mesh, compiles, searches."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

from tunekit.meshes import check_batches, chosen_sizes
from tunekit.planning.arithmetic import step_flops
from tunekit.planning.candidates import changed, changes, mesh_text, overrides
from tunekit.planning.costs import Costs, PhaseCost, costs_on
from tunekit.planning.counting import Counted, counted
from tunekit.planning.hardware import Target, target
from tunekit.planning.plan import Change, PhasePlan, Plan
from tunekit.planning.roofline import Speeds, StepTime, step_time
from tunekit.planning.search import Search, largest_batch
from tunekit.planning.settings import Held, Setting
from tunekit.planning.shapes import Planned, planned
from tunekit.planning.topology import CompilerMissing, require_compiler
from tunekit.platforms import Platform
from tunekit.recipe import Recipe
from tunekit.training.layout import MeshSizes, mesh_sizes

_COMPUTE = {"mixed_bfloat16": "bfloat16", "mixed_float16": "float16"}


def plan(
    recipe: Recipe | str | Path,
    *,
    on: str = "this",
    examples: int | None = None,
    labels: Sequence[str] | int | None = None,
    exact: bool = False,
    search: bool = True,
) -> Plan:
    """Returns what a recipe needs on a machine; no weights are fetched, no device is needed.

    Programs are compiled in processes of their own, for what they will run on. Without that
    machine's compiler (``pip install 'tunekit[tpu-plan]'``, ``'tunekit[gpu-plan]'``) the plan
    counts the state's bytes and the operations, and says nothing of activations.

    Args:
        recipe: or the path, or shipped name, of one.
        on: a machine: "v5e-8", "h100-4", "4xh100", or "this", whose peaks are measured.
        examples: of the training data; `None` reads the data that the recipe names. Where it names
            none, the length of a run in epochs stays unknown.
        labels: names of the labels, or how many there are; `None` are those of the data, else two.
        exact: whether a deep network is compiled whole; else with 2 and 4 of its blocks, from which
            the rest is extrapolated, unless that ends near the limit.
        search: whether to look for the largest batch that fits and, where the recipe does not fit,
            for the smallest change with which it does.

    Raises:
        RecipeError: the recipe contradicts itself or the machine.
        TargetError: there is no such machine.
        ModelError: the model cannot be built.
        DataError: the data that the recipe names cannot be opened.

    Example:
        >>> print(tunekit.plan("vision/full", on="v5e-1", examples=600))
    """
    name = str(recipe) if not isinstance(recipe, Recipe) else "recipe"
    recipe = recipe if isinstance(recipe, Recipe) else Recipe.load(recipe)
    planner = Planner(name, target(on), examples, labels, exact=exact)
    return planner.searched(recipe) if search else planner.plan(recipe)


@dataclass
class Planner:
    """Plans variants of one recipe for one machine."""

    name: str
    target: Target
    examples: int | None
    labels: Any
    exact: bool = False
    note: Callable[[str], None] = lambda text: None
    """Told in a line of each thing that is about to be compiled."""

    @property
    def room(self) -> int:
        """Bytes of a device that may be used."""
        return self.target.chip.usable_bytes

    def plan(self, recipe: Recipe) -> Plan:
        """Returns the plan of `recipe` as it is."""
        shapes = self._shapes(recipe)
        mesh = self.mesh(shapes)
        phases = [
            PhasePlan(known, phase.spec.batch or recipe.batch)
            for known, phase in zip(counted(shapes), shapes.phases, strict=True)
        ]
        found = Plan(
            name=self.name,
            recipe=recipe,
            target=self.target,
            mesh=mesh,
            phases=(),
            examples=shapes.examples,
            depth=shapes.blocks if shapes.uniform_blocks else None,
            notes=(*shapes.notes, *_cache_notes(shapes)),
        )
        try:
            require_compiler(self.target)
        except CompilerMissing as missing:
            kind = cast(Platform, self.target.kind)
            flops = (step_flops(shapes, index, kind) for index in range(len(phases)))
            phases = [replace(phase, flops=each) for phase, each in zip(phases, flops, strict=True)]
            note = f"Activations are not told, for they are not guessed: {missing}"
            return replace(found, phases=tuple(phases), notes=(*found.notes, note))
        batch, setting = recipe.batch, recipe.runtime
        self.note(
            f"compiling for {self.target}: {mesh}, batch {batch.size} in {batch.micro_batches}, "
            f"remat {setting.remat}, {recipe.backbone.dtype}"
        )
        costs = costs_on(
            self.target,
            on_mesh(recipe, mesh, self.target),
            examples=self.examples,
            labels=self.labels,
            blocks=found.depth,
            exact=self.exact,
        )
        return self._with_costs(found, phases, costs)

    def mesh(self, shapes: Planned) -> MeshSizes:
        """Returns the mesh that a recipe asks for here, or the one that a run would choose.

        Raises:
            RecipeError: it is not of these devices, or a batch does not divide.
        """
        recipe, phases = shapes.recipe, shapes.phases
        sizes = mesh_sizes(recipe.runtime.mesh, self.target.count)
        if sizes is None:
            sizes = chosen_sizes(recipe, shapes.model, phases, self.target.count, self.room)
        check_batches(recipe, phases, sizes)
        return sizes

    def searched(self, recipe: Recipe) -> Plan:
        """Returns the plan of `recipe` with the largest batch and, if need be, the change."""
        found = self.plan(recipe)
        if not found.is_compiled:
            return found
        setting = Setting.of(recipe, found.mesh, found.worst.batch)
        held = found.worst_held
        if found.fits is False:
            return self._mended(found, setting, held)
        largest = largest_batch(
            setting,
            held,
            self.room,
            lambda size: self._held_with(recipe, setting, replace(setting, batch=size)),
            self.examples,
        )
        return replace(found, largest_batch=largest and largest[0])

    def _mended(self, found: Plan, setting: Setting, held: Held) -> Plan:
        """The plan with the smallest change with which it fits, or with what was tried."""
        plans: dict[tuple[str, ...], Plan] = {}

        def compiled(change: Any) -> Held:
            plans[change.overrides] = self.plan(changed(found.recipe, change.overrides))
            return plans[change.overrides].worst_held

        search = Search(self.room, compiled, [(setting, held)])
        hosts = self.target.count // self.target.hosts
        fits = search.smallest(changes(found.recipe, setting, hosts))
        tried = tuple((each.change.overrides, each.total) for each in search.tried)
        if fits is None:
            return replace(found, tried=tried)
        texts = fits.change.overrides
        return replace(found, tried=tried, change=Change(texts, plans[texts]))

    def _held_with(self, recipe: Recipe, now: Setting, then: Setting) -> Held:
        texts = [f"runtime.mesh={mesh_text(now.mesh)}", *overrides(recipe, now, then)]
        return self.plan(changed(recipe, texts)).worst_held

    def _with_costs(self, found: Plan, phases: Sequence[PhasePlan], costs: Costs) -> Plan:
        speeds = self._speeds(found.recipe)
        priced = []
        for phase, cost in zip(phases, costs.phases, strict=True):
            held = replace(cost.held, copies=_copies(phase.counted, cost.held, found))
            if self.target.kind == "cpu":
                # Batches that are read ahead lie in the same memory.
                held = replace(held, rest=held.rest + phase.batch.prefetch * cost.inputs)
            time = None if speeds is None else _time(cost, found.mesh.devices, speeds)
            priced.append(replace(phase, flops=cost.flops, held=held, cost=cost, time=time))
        return replace(found, phases=tuple(priced), blocks=costs.blocks)

    def _speeds(self, recipe: Recipe) -> Speeds | None:
        """What a device can do in the recipe's dtype; `None` where nobody knows."""
        dtype = _COMPUTE.get(recipe.backbone.dtype, recipe.backbone.dtype)
        chip = self.target.chip
        if (flops := chip.peak(dtype)) is not None and chip.bandwidth is not None:
            return Speeds(flops, chip.bandwidth, chip.link_bandwidth)
        if not self.target.is_this_machine:
            return None
        from tunekit.training.device_peak import device_peak

        peak = device_peak()
        return Speeds(peak.flops.get(dtype, peak.flops["float32"]), peak.bandwidth)

    def _shapes(self, recipe: Recipe) -> Planned:
        return planned(recipe, examples=self.examples, labels=self.labels)


def _cache_notes(shapes: Planned) -> Iterator[str]:
    for number, feed in enumerate(shapes.feeds, 1):
        if feed.start is not None:
            yield (
                f"steps of phase {number} begin at {feed.start}, whose outputs are kept: computing "
                "them, once, is left out."
            )


def on_mesh(recipe: Recipe, mesh: MeshSizes, machine: Target) -> Recipe:
    """Returns the recipe with its mesh said in sizes, where there are several devices."""
    if machine.count == 1:
        return recipe
    return changed(recipe, [f"runtime.mesh={mesh_text(mesh)}"])


def _time(cost: PhaseCost, devices: int, speeds: Speeds) -> StepTime:
    return step_time(
        flops=cost.flops,
        least_bytes=cost.least_bytes,
        bytes_accessed=cost.bytes_accessed,
        collectives=cost.collectives,
        devices=devices,
        speeds=speeds,
    )


def _copies(known: Counted, held: Held, found: Plan) -> float:
    """Bytes of a device that hold weights as they were, and as they were best.

    A run keeps the model as it was until it ends: on the device where there is one, else in the
    memory of the host. Where it evaluates, it keeps what was best.
    """
    data = found.recipe.data
    evaluates = data.validation is not None or data.validation_fraction > 0
    share = held.trained / max(known.state["trained"], 1)
    own = known.moved if found.mesh.devices == 1 else 0
    return own + (known.moved * share if evaluates else 0)
