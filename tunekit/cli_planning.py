"""The commands that say what a recipe will need on a machine that need not be here."""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

from tunekit.cli_tables import print_table
from tunekit.errors import TunekitError


def add_plan(sub: argparse.ArgumentParser) -> None:
    """`sub` has the options of `tunekit plan`."""
    where = sub.add_mutually_exclusive_group()
    where.add_argument(
        "--on", metavar="MACHINE", help="v5e-8, h100-4, 4xh100…; this: measured here; else this"
    )
    where.add_argument(
        "--compare", metavar="MACHINES", help="several, a line each: v5e-4,v5e-8,h100-1"
    )
    sub.add_argument("--examples", type=int, metavar="N", help="number of training examples")
    sub.add_argument("--labels", type=int, metavar="N", help="number of labels; else the data's")
    about = "compile a deep network whole; else with 2 and 4 of its blocks"
    sub.add_argument("--exact", action="store_true", help=about)
    about = "neither the largest batch that fits nor the change that makes it fit"
    sub.add_argument("--no-search", action="store_true", help=about)
    sub.add_argument("--json", action="store_true", help="print JSON")
    sub.add_argument("--plot", type=Path, metavar="FILE.png", help="picture of the memory")


def plan(args: argparse.Namespace) -> None:
    """Prints what a recipe needs on one machine, or on several side by side."""
    found = _found(args)
    print(json.dumps(found.to_json(), indent=2) if args.json else found)
    if args.plot:
        path = found.plot(args.plot)
        if not args.json:
            print(f"written: {path}")


def add_compile(sub: argparse.ArgumentParser) -> None:
    """`sub` has the options of `tunekit compile`."""
    sub.add_argument("--on", metavar="MACHINE", required=True, help="v5e-8, h100-4, this…")
    sub.add_argument("--out", metavar="DIR", type=Path, required=True, help="folder to write")
    sub.add_argument("--examples", type=int, metavar="N", help="number of training examples")
    sub.add_argument("--labels", type=int, metavar="N", help="number of labels; else the data's")


def compile_steps(args: argparse.Namespace) -> None:
    """Writes the lowered steps of a recipe into a folder."""
    if args.on.strip().lower() != "this":
        # This process only traces: it takes no device, nor looks for one that it lacks.
        os.environ.setdefault("JAX_PLATFORMS", "cpu")
    from tunekit.planning.artifact import write_artifact
    from tunekit.planning.hardware import target
    from tunekit.recipe import Recipe

    machine = target(args.on)
    recipe = Recipe.load(args.recipe, args.overrides)
    written = write_artifact(recipe, machine, args.out, examples=args.examples, labels=args.labels)
    rows = [
        (
            phase["label"],
            " ".join(phase["platforms"]),
            str(len(phase["arguments"])),
            phase["program"],
        )
        for phase in written.manifest["phases"]
    ]
    print_table([("trains", "lowered for", "arguments", "program"), *rows])
    print(f"{machine}, {_mesh_text(written.manifest['mesh'])}: written in {args.out}")


def _mesh_text(mesh: dict[str, int]) -> str:
    used = [f"{axis} {size}" for axis, size in mesh.items() if size > 1]
    return " x ".join(used) or "one device"


def _found(args: argparse.Namespace) -> Any:
    from tunekit.planning.comparison import Comparison
    from tunekit.recipe import Recipe

    machines = [args.on or "this"]
    if args.compare is not None:
        machines = [name for name in args.compare.split(",") if name.strip()]
    if not machines:
        raise TunekitError("--compare: expected names of machines, such as v5e-8,h100-1.")
    if "this" not in machines:
        # This process only counts: it takes no device, nor looks for one that it lacks.
        os.environ.setdefault("JAX_PLATFORMS", "cpu")
    recipe = Recipe.load(args.recipe, args.overrides)
    plans = []
    for planner in [_planner(args, name) for name in machines]:
        plans.append(planner.plan(recipe) if args.no_search else planner.searched(recipe))
    return plans[0] if args.compare is None else Comparison(tuple(plans))


def _planner(args: argparse.Namespace, machine: str) -> Any:
    from tunekit.planning.hardware import target
    from tunekit.planning.planner import Planner

    return Planner(
        args.recipe,
        target(machine),
        args.examples,
        args.labels,
        exact=args.exact,
        note=lambda text: print(text, file=sys.stderr, flush=True),
    )
