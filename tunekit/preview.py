"""What a recipe's plan comes to: every phase written out, before anything is trained."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from math import prod
from pathlib import Path
from typing import Any

from tunekit import recipe_text
from tunekit.data.source import open_data
from tunekit.durations import Duration
from tunekit.errors import Issue, RecipeError
from tunekit.methods.spec import default_train, without_data
from tunekit.models.depth import Group
from tunekit.models.initialisation import shapes_only
from tunekit.models.loading import load_model
from tunekit.models.model import Model
from tunekit.models.trainable import put, resolve_trainable
from tunekit.plans.builders import expand_plan
from tunekit.plans.phase import Phase
from tunekit.plans.resolve import ResolvedPhase, resolve_plan
from tunekit.recipe import Recipe
from tunekit.recipe_keywords import IN_MEMORY
from tunekit.report.plan_plot import plot_plan

_LABELS = ("first", "second")
"""Those of the head where the recipe names none and no data is opened."""
_STEPS_PER_EPOCH = 100
"""Resolution of a plan in epochs where the number of examples is not known."""


@dataclass(frozen=True, eq=False)
class Preview:
    """A plan written out: as a table, as YAML to edit and run, as a picture."""

    recipe: Recipe
    """The recipe with every builder replaced by its phases."""
    model: Model
    """As it would be trained, but in shapes only: its variables have no values."""
    groups: tuple[Group, ...]
    """The model's, in depth order."""
    phases: tuple[ResolvedPhase, ...]
    """The phases in names of variables and optimizer steps."""
    epochs: tuple[float, ...]
    """Length of each phase."""
    examples: int | None
    """Of the training data; `None` where they are not known, and steps mean nothing."""

    @property
    def trained(self) -> frozenset[str]:
        """Structural names of what trains in any phase."""
        return frozenset[str]().union(*(phase.trainable for phase in self.phases))

    def table(self) -> str:
        """Returns one line a phase: what trains, how much of the model, how long, how fast."""
        rows = [("phase", "trains", "parameters", "share", "length", "learning rate", "schedule")]
        for number, (phase, told) in enumerate(zip(self.phases, self._told(), strict=True), 1):
            rows.append((str(number), *told, _rates(phase), phase.spec.schedule))
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)

    def to_yaml(self) -> str:
        """Returns a whole recipe that ``tunekit run`` takes, with a comment above each phase.

        What is at its default is left out, but for what is edited most.
        """
        tree = self.recipe.model_dump(mode="json")
        default = Recipe(plan=(Phase(epochs=1),)).model_dump(mode="json")
        said = _changed(tree, default)
        for section, field in (("backbone", "name"), ("data", "path")):
            said[section] = {field: tree[section][field], **said.get(section, {})}
        bodies = {name: recipe_text.dump({name: said[name]}) for name in tree if name in said}
        bodies["plan"] = "plan:\n" + "".join(self._phase_texts(tree["plan"]))
        return "\n".join([f"# {self._headline()}\n", *bodies.values()])

    def plot(self, path: str | Path) -> Path:
        """Writes the plan as a PNG, time by depth, the learning rate as colour; returns its path.

        Args:
            path: of the picture; its folder is made.
        """
        return plot_plan(self.phases, self.groups, self.epochs, path, title=self._headline())

    def _headline(self) -> str:
        phases = "1 phase" if len(self.phases) == 1 else f"{len(self.phases)} phases"
        data = "" if self.examples is None else f", {self.examples:,} training examples"
        name = self.recipe.backbone.name
        return f"{name}: {phases}, {_epochs(sum(self.epochs))}{data}"

    def _told(self) -> Iterator[tuple[str, str, str, str]]:
        """Of each phase what trains, its parameters, their share of all, and how long."""
        sizes = {name: prod(v.shape) for name, v in self.model.variables().items()}
        total = sum(group.parameters for group in self.groups)
        for phase, epochs in zip(self.phases, self.epochs, strict=True):
            count = sum(sizes[name] for name in phase.trainable)
            steps = "" if self.examples is None else f", {phase.steps:,} steps"
            trains = trained_groups(phase.trainable, self.groups)
            yield trains, _count(count), _percent(count / total), _epochs(epochs) + steps

    def _phase_texts(self, trees: Sequence[dict[str, Any]]) -> Iterator[str]:
        """The phases as items of a YAML list, each under its comment."""
        default = Recipe(plan=(Phase(epochs=1),)).model_dump(mode="json")["plan"][0]
        default["epochs"] = None  # a recipe has no phase without a length
        for index, (tree, told) in enumerate(zip(trees, self._told(), strict=True)):
            trains, count, share, length = told
            edited = ("train", "steps" if tree["steps"] else "epochs", "learning_rate", "schedule")
            item = {key: tree[key] for key in edited} | _changed(tree, default)
            text = recipe_text.dump({"plan": [item]}).removeprefix("plan:\n")
            yield f"  # phase {index + 1}: {trains}, {count} parameters, {share}; {length}\n{text}"


def plan_preview(
    recipe: Recipe | str | Path, *, examples: int | None = None, path: str | Path | None = None
) -> Preview:
    """Returns the plan of `recipe` written out, without fetching weights or training anything.

    The head is that of two labels, unless the recipe or its data name others.

    Args:
        recipe: or the path, or shipped name, of one.
        examples: of the training data; `None` opens the data that the recipe names. Where it names
            none, lengths in epochs stay as they are and steps are not told.
        path: where the picture is written; `None` writes none.

    Raises:
        RecipeError: the plan cannot be built for this model, or is in steps and nothing says of how
            many examples.
        SelectionError: a selector selects nothing in this model.
        DataError: the data that the recipe names cannot be opened.
        ModelError: the model that it names cannot be built.

    Example:
        >>> print(plan_preview("vision/lp_ft", examples=600).table())
        phase  trains  parameters  share   length               learning rate  schedule
        1      head    2.6 k       0.07 %  4 epochs, 76 steps   0.001          cosine
        2      all     3.5 M       100 %   8 epochs, 152 steps  0.0002         cosine
    """
    recipe = recipe if isinstance(recipe, Recipe) else Recipe.load(recipe)
    if recipe.backbone.name == IN_MEMORY:
        message = "the recipe was made for a model in memory; name one that can be loaded."
        raise RecipeError([Issue("backbone.name", message)])
    if examples is not None and examples < 1:
        raise RecipeError([Issue("examples", f"expected at least 1, got {examples}.")])
    labels = recipe.data.labels or _LABELS
    if examples is None and recipe.data.path is not None:
        train = open_data(None, recipe.data, seed=recipe.seed).train
        examples, labels = len(train), train.label_names
    model = _built(recipe, labels)
    preview = _preview(recipe, model, examples)
    if path is not None:
        preview.plot(path)
    return preview


def _built(recipe: Recipe, labels: Sequence[str]) -> Model:
    backbone = recipe.backbone
    with shapes_only():
        model = load_model(
            backbone.name,
            image_size=backbone.image_size,
            labels=labels,
            head=recipe.head,
            dtype=backbone.dtype,
            pretrained=False,
            blocks=backbone.blocks,
        )
        put(without_data(recipe.method), model)
    return model


def _preview(recipe: Recipe, model: Model, examples: int | None) -> Preview:
    groups = model.groups()
    whole = ", ".join(default_train(recipe.method))
    plan = expand_plan(recipe.plan, groups)
    plan = [phase if phase.train else replace(phase, train=whole) for phase in plan]
    fields: dict[str, Any] = {name: getattr(recipe, name) for name in type(recipe).model_fields}
    fields["plan"] = plan
    # Made anew and not copied: what a builder makes is checked as if it had been written.
    expanded = Recipe(**fields)
    if examples is None:
        _check_in_epochs(plan)

    def steps_per_epoch(phase: Phase) -> int:
        size = (phase.batch or recipe.batch).size
        return _STEPS_PER_EPOCH if examples is None else -(-examples // size)

    phases = resolve_plan(
        plan,
        lambda selectors: resolve_trainable(selectors, model, recipe.method),
        default_train=(whole,),
        steps_per_epoch=steps_per_epoch,
    )
    epochs = tuple(p.spec.epochs or p.steps / steps_per_epoch(p.spec) for p in phases)
    return Preview(expanded, model, groups, phases, epochs, examples)


def _check_in_epochs(plan: Sequence[Phase]) -> None:
    """Refuses lengths in steps, for it is not known how many make an epoch."""
    message = (
        "is in steps, and nothing says how many make an epoch. Give examples=600 "
        "(--examples 600), or data.path."
    )
    issues = []
    for index, phase in enumerate(plan):
        if phase.steps:
            issues.append(Issue(f"plan[{index}].steps", message))
        if Duration.parse(phase.warmup).unit == "steps":
            issues.append(Issue(f"plan[{index}].warmup", message))
    if issues:
        raise RecipeError(issues)


def trained_groups(trainable: Collection[str], groups: Sequence[Group]) -> str:
    """Returns what trains in selectors, such as "blocks[9:] + top + head".

    Args:
        trainable: structural names.
        groups: the model's, in depth order.
    """
    weighted = [group for group in groups if group.weights]
    trained = {g.name: sum(name in trainable for name in g.weights) for g in weighted}
    whole = [group for group in weighted if trained[group.name] == len(group.weights)]
    part = [group for group in weighted if 0 < trained[group.name] < len(group.weights)]
    words = _selectors(whole, weighted)
    if part:
        words.append("parts of " + ", ".join(_selectors(part, weighted)))
    return " + ".join(words) or "nothing"


def _selectors(chosen: Sequence[Group], groups: Sequence[Group]) -> list[str]:
    """The shortest selectors of the chosen ones of `groups`."""
    names = {group.name for group in chosen}
    if len(names) == len(groups):
        return ["all"]
    if names == {group.name for group in groups if group.kind != "head"}:
        return ["backbone"]
    blocks = [group.name for group in groups if group.kind == "block"]
    words = []
    for (taken, kind), run in groupby(groups, key=lambda group: (group.name in names, group.kind)):
        run_names = [group.name for group in run]
        if taken and kind == "block":
            words.append(_range(run_names, blocks))
        elif taken:
            heads = sum(group.kind == "head" for group in groups)
            words += ["head"] if kind == "head" and len(run_names) == heads else run_names
    return words


def _range(run: Sequence[str], blocks: Sequence[str]) -> str:
    """Consecutive ones of `blocks` as one selector."""
    if len(run) == len(blocks):
        return "blocks"
    if len(run) == 1:
        return run[0]
    first, last = (int(name[len("blocks[") : -1]) for name in (run[0], run[-1]))
    start = "" if run[0] == blocks[0] else first
    stop = "" if run[-1] == blocks[-1] else last + 1
    return f"blocks[{start}:{stop}]"


def _changed(tree: dict[str, Any], default: dict[str, Any]) -> dict[str, Any]:
    """The fields of `tree` that differ from `default`; of sections again those."""
    return {
        key: _changed(value, default[key])
        if isinstance(value, dict) and isinstance(default.get(key), dict)
        else value
        for key, value in tree.items()
        if value != default.get(key)
    }


def _rates(phase: ResolvedPhase) -> str:
    """The highest learning rate, or the lowest and highest over what trains."""
    rates = {phase.spec.learning_rate * factor for factor in phase.multipliers.values()}
    ends = sorted({min(rates), max(rates)}) if rates else [phase.spec.learning_rate]
    return " to ".join(f"{rate:.3g}" for rate in ends)


def _count(number: int) -> str:
    """A number of parameters in three digits or fewer: 5.3 M."""
    for unit, size in (("G", 10**9), ("M", 10**6), ("k", 10**3)):
        if number >= 0.9995 * size:
            scaled = number / size
            return f"{scaled:.0f} {unit}" if scaled >= 99.95 else f"{scaled:.1f} {unit}"
    return str(number)


def _percent(share: float) -> str:
    percent = 100 * share
    if 99.5 <= percent < 100:
        return "over 99 %"
    return f"{percent:.0f} %" if percent >= 9.5 else f"{percent:.1g} %"


def _epochs(number: float) -> str:
    return "1 epoch" if number == 1 else f"{number:.3g} epochs"
