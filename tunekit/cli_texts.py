"""The commands that are for texts alone: chat, inspect, retention."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from typing import Any

ANSWERS_SHOWN = 5
"""Prompts of a run whose answers are printed; all are in its report."""


def add_chat(sub: argparse.ArgumentParser) -> None:
    """`sub` has the options of `tunekit chat`."""
    from tunekit import cli_chat

    cli_chat.add_arguments(sub)


def add_inspect(sub: argparse.ArgumentParser) -> None:
    """`sub` has the options of `tunekit inspect`."""
    about = "show so many training examples as tokens, those trained on in colour"
    sub.add_argument("--tokens", type=int, default=0, metavar="N", help=about)
    sub.add_argument("--json", action="store_true", help="print JSON")


def add_retention(sub: argparse.ArgumentParser) -> None:
    """`sub` has the options of `tunekit retention`."""
    about = "texts or dialogues that it should still know"
    sub.add_argument("--retain", required=True, metavar="FILE", help=about)
    about = "examples of the new task that it was not trained on"
    sub.add_argument("--data", required=True, metavar="FILE", help=about)
    about = "strengths of the tuning: 0 the base, 1 the tuned model; else 0 to 1.25 by quarters"
    sub.add_argument("--scales", nargs="+", type=float, metavar="A", help=about)
    about = "name the best strength whose retained perplexity rises by this share at most"
    sub.add_argument("--budget", type=float, metavar="SHARE", help=about)
    about = "the model before, where all of it was trained; else what the result names"
    sub.add_argument("--base", metavar="MODEL", help=about)
    sub.add_argument("--plot", metavar="DIR", help="folder for retention.png and retention.json")
    sub.add_argument("--json", action="store_true", help="print JSON")


def chat(args: argparse.Namespace) -> None:
    """Talks with the model of a saved result."""
    from tunekit import cli_chat

    cli_chat.chat(args)


def inspect(args: argparse.Namespace) -> None:
    """Prints what the data of a recipe hold."""
    from tunekit import inspection

    inspection.command(args)


def retention(args: argparse.Namespace) -> None:
    """Prints and draws what a tuned model has forgotten."""
    from tunekit.result import load
    from tunekit.retention import SCALES, retention

    scales = args.scales or SCALES
    found = retention(
        load(args.out), retain=args.retain, data=args.data, scales=scales, base=args.base
    )
    print(json.dumps(found.to_json(), indent=2) if args.json else found)
    if args.budget is not None and not args.json:
        best = found.best(args.budget)
        print(f"best within {args.budget:.1%}: scale {best.scale:g}, new {best.perplexity:.4g}")
    if args.plot:
        folder = found.save(args.plot)
        if not args.json:
            print(f"saved in {folder}")


def print_answers(rows: Sequence[Mapping[str, Any]]) -> None:
    """Prints some prompts with the answers of base and tuned model, side by side."""
    from tunekit.report.samples import print_samples

    print_samples(rows[:ANSWERS_SHOWN])
