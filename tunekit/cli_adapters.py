"""The commands about adapters: where one would sit, and what becomes of a trained one."""

from __future__ import annotations

import argparse
import math
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

from tunekit.errors import Issue, RecipeError, TunekitError

Table = Callable[[Sequence[Sequence[str]]], None]


def export(args: argparse.Namespace) -> None:
    """Writes the model of a saved result, or its adapter, for other software."""
    from tunekit.result import load

    folder = load(args.out).export(args.target, args.format, adapter=args.adapter)
    print(f"written: {folder}")


def merge(args: argparse.Namespace) -> None:
    """Saves a result anew with its adapters in the network's own values."""
    from tunekit.result import load

    if Path(args.target).expanduser().resolve() == Path(args.out).expanduser().resolve():
        raise TunekitError(f"{args.target} is the result itself; name another folder to save in.")
    result = load(args.out)
    if result.model.quantization is not None and not args.data:
        raise TunekitError(
            f"the backbone in {args.out} is quantised ({result.model.quantization}), and merging "
            "rounds the sums at random. Name images by --data, to forecast on what changes."
        )
    forecast = result.merge(args.data, least_agreement=args.least_agreement)
    if forecast is not None:
        print(forecast)
    result.save(args.target)
    print(f"saved in {args.target}")


def layers(args: argparse.Namespace, print_table: Table) -> None:
    """Prints the places that an adapter would have, and how many parameters it adds to each."""
    from tunekit.methods.part import layer_of
    from tunekit.methods.spec import without_data
    from tunekit.models.loading import load_model

    spec: Any = without_data(_spec(args))
    model = load_model(args.model)
    variables = model.variables()
    total = sum(math.prod(variables[name].shape) for name in model.weight_names())
    adapter = model.add_adapter("adapter", spec).adapters["adapter"].adapter
    added: Counter[str] = Counter()
    for part, leaf in ((p, leaf) for p in adapter.parts for leaf in p.leaves):
        if leaf.role == "weight":
            added[layer_of(part, leaf) or "(the network)"] += math.prod(leaf.shape)
    rows = []
    for place, count in added.items():
        kernel = variables.get(f"{place}/kernel")
        shape = "" if kernel is None else " x ".join(map(str, kernel.shape))
        rows.append((place, shape, f"{count:,}"))
    print_table([("place", "kernel", "parameters"), *rows])
    share = adapter.parameters / total
    places = "1 place" if len(rows) == 1 else f"{len(rows)} places"
    print(f"{spec.name} adds {adapter.parameters:,} parameters ({share:.2%}) in {places}")


def _spec(args: argparse.Namespace) -> Any:
    """The method that the command names, on the targets that it names."""
    from tunekit import recipe_text
    from tunekit.methods.spec import is_adapter
    from tunekit.plans.phase import Phase
    from tunekit.recipe import Recipe

    issues: list[Issue] = []
    said = recipe_text.parse(args.method or "lora", issues, where="--method")
    if issues:
        raise RecipeError(issues)
    tree: Any = {"name": said} if isinstance(said, str) else said
    if isinstance(tree, dict) and args.targets:
        tree["targets"] = args.targets
    method: Any = Recipe(method=cast(Any, tree), plan=(Phase(epochs=1),)).method
    if not is_adapter(method):
        raise TunekitError(
            f"method '{method.name}' puts nothing on a model; mark what trains by --train instead."
        )
    return method
