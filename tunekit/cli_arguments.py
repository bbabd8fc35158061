"""The arguments of the commands, by name: several commands share most of them."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tunekit.cli_launch import add_launch

RECIPE = ("recipe", "overrides")
"""Arguments of every command that takes a recipe."""
ARGUMENTS: dict[str, Callable[[argparse.ArgumentParser], object]] = {
    "recipe": lambda sub: sub.add_argument("recipe", help="a YAML file, or a name from tunekit ls"),
    "overrides": lambda sub: sub.add_argument(
        "overrides", nargs="*", metavar="PATH=VALUE", help="such as plan.0.epochs=2"
    ),
    "to": lambda sub: sub.add_argument("to", type=Path, help="the new file, or its folder"),
    "force": lambda sub: sub.add_argument(
        "--force", action="store_true", help="overwrite the file"
    ),
    "resume": lambda sub: sub.add_argument(
        "--resume", action="store_true", help="go on from the last checkpoint in the folder"
    ),
    "out": lambda sub: sub.add_argument(
        "--out", metavar="DIR", help="folder of the result; runs/<recipe> where none is given"
    ),
    "launch": lambda sub: add_launch(sub),
    "profile": lambda sub: _add_profile(sub),
    "folder": lambda sub: sub.add_argument("out", help="folder of a saved result"),
    "data": lambda sub: sub.add_argument("data", help="image folder, CSV, JSONL… file"),
    "files": lambda sub: sub.add_argument("files", nargs="+", help="images, texts or .txt files"),
    "chat": lambda sub: texts().add_chat(sub),
    "inspect": lambda sub: texts().add_inspect(sub),
    "retention": lambda sub: texts().add_retention(sub),
    "json": lambda sub: sub.add_argument("--json", action="store_true", help="print JSON"),
    "model": lambda sub: sub.add_argument("model", help="bundled name, preset or folder"),
    "marks": lambda sub: _add_marks(sub),
    "target": lambda sub: sub.add_argument("target", help="the new folder"),
    "export": lambda sub: _add_export(sub),
    "merge": lambda sub: _add_merge(sub),
    "plan": lambda sub: planning().add_plan(sub),
    "compile": lambda sub: planning().add_compile(sub),
    "preview": lambda sub: _add_preview(sub),
    "probe": lambda sub: _add_probe(sub),
    "space": lambda sub: _add_space(sub),
}
SPACE = (
    "values: learning_rate=1e-4,1e-3; plan.0.train=head,[head,norm]; seed=0..7 (both ends); one "
    "value is one for all. Ranges to search with --trials, ends included: log(1e-5,1e-1), "
    "uniform(0,0.5), int(1,8). learning_rate scales the rates of all phases, the highest to the "
    "value. Members with one value each but different seeds are one line of the table."
)


def _add_profile(sub: argparse.ArgumentParser) -> None:
    about = "say what the time goes to, and write a trace of some steps into the folder's profile/"
    sub.add_argument("--profile", action="store_true", help=about)
    about = "the steps of the trace, counted from 0: 10:13 are 10, 11 and 12"
    sub.add_argument("--profile-steps", metavar="A:B", help=about)


def _add_marks(sub: argparse.ArgumentParser) -> None:
    group = sub.add_mutually_exclusive_group()
    group.add_argument(
        "--train", nargs="+", metavar="SELECTOR", help="mark what these select: head, 'last 2'"
    )
    group.add_argument("--recipe", help="mark what trains in any phase of this recipe")
    targets = "list where an adapter on these would sit: auto, attention, linear, a pattern"
    group.add_argument("--targets", nargs="+", metavar="TARGET", help=targets)
    method = "of that adapter, as in a recipe: ia3, '{name: lora, rank: 4}'; else lora"
    sub.add_argument("--method", help=method)


def _add_export(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--format", default="peft", help="peft: files of Hugging Face PEFT")
    sub.add_argument("--adapter", metavar="NAME", help="which, where several act or none does")


def _add_merge(sub: argparse.ArgumentParser) -> None:
    about = "on which to forecast what changes; needed where the backbone is quantised"
    sub.add_argument("--data", metavar="IMAGES", help=about)
    about = "share of predictions on them that must stay the same; else 0.95"
    sub.add_argument("--least-agreement", type=float, default=0.95, metavar="SHARE", help=about)


def _add_preview(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--examples", type=int, metavar="N", help="number of training examples")
    sub.add_argument("--yaml", type=Path, metavar="FILE", help="the recipe to write")
    sub.add_argument("--plot", type=Path, metavar="FILE.png", help="the picture to write")


def _add_space(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("space", nargs="*", metavar="PATH=VALUES", help="see below")
    sub.add_argument("--metric", help="validation metric to compare by; runtime.monitor if none")
    sub.add_argument("--trials", type=int, metavar="N", help="draws of a searched range")
    sub.add_argument(
        "--out", metavar="DIR", help="folder to save in; runs/sweep-<recipe> where none is given"
    )


def _add_probe(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--examples", type=int, metavar="N", help="of each split, at most; else 5000")
    sub.add_argument("--out", metavar="DIR", help="folder for plan.yaml, probe.png, probe.json")


def texts() -> Any:
    """Returns the module of the commands for texts, imported where one is asked for."""
    from tunekit import cli_texts

    return cli_texts


def planning() -> Any:
    """Returns the module of the commands that plan, imported where one is asked for."""
    from tunekit import cli_planning

    return cli_planning
