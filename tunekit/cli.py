"""The command ``tunekit``: recipes listed, checked and run; saved results evaluated and asked.

Every command imports what it needs itself, so that ``tunekit --help`` answers at once.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from tunekit import __version__
from tunekit.cli_arguments import ARGUMENTS, RECIPE, SPACE, planning, texts
from tunekit.cli_launch import join, launched
from tunekit.cli_tables import print_metrics, print_profile, print_table
from tunekit.distributed import await_end, gathered, is_first, leave, process_count
from tunekit.errors import Issue, RecipeError, TunekitError, did_you_mean

Command = Callable[[argparse.Namespace], None]


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code: 0, 2 for a mistake, 130 for Ctrl-C."""
    argv = sys.argv[1:] if argv is None else list(argv)
    parser, commands = _parsers()
    if not argv:
        parser.print_help()
        return 2
    if argv[0] not in commands:
        if not argv[0].startswith("-"):
            hint = did_you_mean(argv[0], commands)
            parser.error(f"no such command: {argv[0]!r}.{hint} It has {', '.join(commands)}.")
        parser.parse_args(argv)
    # Intermixed: overrides and files may stand on both sides of an option.
    args = commands[argv[0]].parse_intermixed_args(argv[1:])
    try:
        args.command(args)
        sys.stdout.flush()
    except KeyboardInterrupt:
        print("tunekit: interrupted.", file=sys.stderr)
        leave(130, "interrupted")
        return 130
    except BrokenPipeError:
        # The reader (`| head`) has enough; the flush at exit must not find the pipe again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (TunekitError, OSError) as error:
        if args.traceback:
            raise
        print(f"tunekit: {error}", file=sys.stderr)
        leave(2, str(error))
        return 2
    except Exception as error:
        if process_count() > 1:
            _leave_by(error)
        raise
    return 0


def _leave_by(error: Exception) -> None:
    """Ends this process and the others, unless it only fails because another has ended."""
    await_end()
    traceback.print_exception(error)
    leave(1, f"{type(error).__name__}: {error}")


def _parsers() -> tuple[argparse.ArgumentParser, dict[str, argparse.ArgumentParser]]:
    parser = argparse.ArgumentParser(
        prog="tunekit", description="Transfer learning on pretrained models.", allow_abbrev=False
    )
    parser.add_argument("--version", action="version", version=f"tunekit {__version__}")
    menu = parser.add_subparsers(metavar="COMMAND")
    commands: dict[str, argparse.ArgumentParser] = {}

    def add(name: str, command: Command, about: str, *arguments: str) -> argparse.ArgumentParser:
        sub = menu.add_parser(name, help=about, description=about, allow_abbrev=False)
        sub.add_argument("--traceback", action="store_true", help="show where an error arose")
        sub.set_defaults(command=command)
        for argument in arguments:
            ARGUMENTS[argument](sub)
        commands[name] = sub
        return sub

    add("ls", _ls, "list the shipped recipes: name, what it does, measured result")
    add("show", _show, "print a recipe as it is written", "recipe")
    add("cp", _cp, "copy a recipe, to change it", "recipe", "to", "force")
    add("validate", _validate, "check a recipe and overrides, training nothing", *RECIPE)
    about = "what a recipe needs on a machine that need not be here: memory, time, what fits"
    add("plan", _plan, about, *RECIPE, "plan")
    about = "write a recipe's steps, lowered for a machine that need not be here"
    add("compile", _compile, about, *RECIPE, "compile")
    add("run", _run, "train what a recipe says", *RECIPE, "resume", "out", "launch", "profile")
    about = "train a recipe with many values and seeds, side by side where they share a prefix"
    add("sweep", _sweep, about, "recipe", "space").epilog = SPACE
    add("eval", _eval, "metrics of a saved result on new data", "folder", "data", "json")
    about = "what a saved result says of images, or of texts"
    add("predict", _predict, about, "folder", "files", "json")
    add("chat", _chat, "talk with a saved language model in the terminal", "chat")
    about = "what a recipe's data hold, and which tokens of them it learns; trains nothing"
    add("inspect", _inspect, about, *RECIPE, "inspect")
    about = "what a tuned language model has forgotten, and how much less tuning would keep"
    add("retention", _retention, about, "folder", "retention")
    about = "write the adapter of a saved result for other software"
    add("export", _export, about, "folder", "target", "export")
    about = "save a result anew with its adapters merged into the network"
    add("merge", _merge, about, "folder", "target", "merge")
    add("schema", _schema, "print the JSON schema of recipes, for editors")
    about = "print a model's layers as a tree, and which train; or where an adapter would sit"
    add("layers", _layers, about, "model", "marks")
    about = "print a plan as a recipe of single phases; or write it and draw it"
    add("plan-preview", _plan_preview, about, *RECIPE, "preview", "force")
    about = "what each depth of a model knows of the labels, and a plan drafted from it"
    add("probe", _probe, about, "model", "data", "probe")
    return parser, commands


def _ls(args: argparse.Namespace) -> None:
    from tunekit.shipped import shipped_recipes

    rows = [(recipe.name, recipe.about, recipe.result) for recipe in shipped_recipes().values()]
    print_table([("recipe", "what it does", "measured result"), *rows])


def _show(args: argparse.Namespace) -> None:
    from tunekit.shipped import recipe_path

    print(recipe_path(args.recipe).read_text(encoding="utf-8"), end="")


def _cp(args: argparse.Namespace) -> None:
    from tunekit.shipped import recipe_path

    source = recipe_path(args.recipe)
    target = args.to / source.name if args.to.is_dir() else args.to
    if target.exists() and not args.force:
        raise TunekitError(f"{target} exists; choose another name, or overwrite it with --force.")
    if not target.parent.is_dir():
        raise TunekitError(f"{target.parent} is no folder; make it first.")
    target.write_text(source.read_text(encoding="utf-8"), encoding="utf-8")
    print(target)


def _validate(args: argparse.Namespace) -> None:
    from tunekit.recipe import Recipe

    recipe = Recipe.load(args.recipe, args.overrides)
    built = [name for item in recipe.plan if (name := getattr(item, "build", None))]
    phases = len(recipe.plan) - len(built)
    named = ["1 phase" if phases == 1 else f"{phases} phases"] if phases else []
    plan = ", ".join([*named, *built])
    print(f"{args.recipe} is a valid recipe: {recipe.backbone.name}, {plan}.")


def _run(args: argparse.Namespace) -> None:
    from tunekit.recipe import Recipe

    overrides = list(args.overrides)
    # A JSON string is a YAML one, whatever is in it.
    overrides += [f"runtime.out={json.dumps(args.out)}"] if args.out else []
    overrides += ["runtime.resume=true"] if args.resume else []
    overrides += ["runtime.profile=true"] if args.profile or args.profile_steps else []
    if args.profile_steps:
        overrides.append(f"runtime.profile_steps={json.dumps(args.profile_steps)}")
    recipe = Recipe.load(args.recipe, overrides)
    if recipe.data.path is None:
        message = f"is required to run: tunekit run {args.recipe} data.path=photos/"
        raise RecipeError([Issue("data.path", message)])
    join(args)
    out = recipe.runtime.out or str(_free_folder(Path("runs") / Path(args.recipe).stem))
    out = gathered(out, "folder of the result")[0]
    recipe = recipe.model_copy(update={"runtime": replace(recipe.runtime, out=out)})
    found = launched(args, recipe)
    if not is_first():
        return
    print_metrics(found["metrics"])
    if answers := found["samples"]:
        texts().print_answers(answers)
    if profile := found["profile"]:
        print_profile(profile)
    print(f"saved in {out}")


def _sweep(args: argparse.Namespace) -> None:
    from tunekit.sweep import sweep

    out = args.out or str(_free_folder(Path("runs") / f"sweep-{Path(args.recipe).stem}"))
    found = sweep(args.recipe, args.space, metric=args.metric, trials=args.trials, out=out)
    print(found.table())
    print(f"saved in {out}")
    if found.best_row is None:
        raise TunekitError(f"no member has a result; {out}/sweep.csv says why of each.")


def _free_folder(folder: Path) -> Path:
    """Returns `folder`, or the first of `folder`-2, `folder`-3… that does not exist."""
    free, number = folder, 1
    while free.exists():
        number += 1
        free = folder.with_name(f"{folder.name}-{number}")
    return free


def _eval(args: argparse.Namespace) -> None:
    from tunekit.result import load

    metrics = load(args.out).evaluate(args.data)
    if args.json:
        print(json.dumps(metrics, indent=2))
    else:
        print_metrics(metrics)


def _predict(args: argparse.Namespace) -> None:
    from tunekit.result import load

    predictions = load(args.out).predict(args.files)
    if args.json:
        print(json.dumps([prediction.to_json() for prediction in predictions], indent=2))
        return
    from tunekit.tasks.prediction import Prediction

    if not all(isinstance(each, Prediction) for each in predictions):
        print("\n".join(str(each) for each in predictions))
        return
    rows = [(each.id, ", ".join(each.labels), f"{each.probability:.3f}") for each in predictions]
    print_table([("input", "label", "probability"), *rows])


def _chat(args: argparse.Namespace) -> None:
    texts().chat(args)


def _inspect(args: argparse.Namespace) -> None:
    texts().inspect(args)


def _retention(args: argparse.Namespace) -> None:
    texts().retention(args)


def _export(args: argparse.Namespace) -> None:
    from tunekit import cli_adapters

    cli_adapters.export(args)


def _merge(args: argparse.Namespace) -> None:
    from tunekit import cli_adapters

    cli_adapters.merge(args)


def _schema(args: argparse.Namespace) -> None:
    from tunekit.recipe import Recipe

    print(json.dumps(Recipe.json_schema(), indent=2))


def _layers(args: argparse.Namespace) -> None:
    if args.method and (args.train or args.recipe):
        raise TunekitError("--method is of an adapter; give it with --targets or alone.")
    if args.targets or args.method:
        from tunekit import cli_adapters

        cli_adapters.layers(args, print_table)
        return
    if args.recipe:
        from tunekit.preview import plan_preview
        from tunekit.recipe import Recipe

        recipe = Recipe.load(args.recipe, [f"backbone.name={json.dumps(args.model)}"])
        # What trains does not depend on how many examples there are.
        preview = plan_preview(recipe, examples=1)
        print(preview.model.layers(preview.trained))
        return
    from tunekit.models.loading import load_model

    model = load_model(args.model)
    if not args.train:
        print(model.layers())
        return
    from tunekit.models.selection import resolve_selection

    if not model.labels:
        model.replace_head(["first", "second"])
    print(model.layers(resolve_selection(args.train, model)))


def _plan(args: argparse.Namespace) -> None:
    planning().plan(args)


def _compile(args: argparse.Namespace) -> None:
    planning().compile_steps(args)


def _plan_preview(args: argparse.Namespace) -> None:
    from tunekit.preview import plan_preview
    from tunekit.recipe import Recipe

    recipe = Recipe.load(args.recipe, args.overrides)
    if args.yaml and args.yaml.exists() and not args.force:
        message = f"{args.yaml} exists; choose another name, or overwrite it with --force."
        raise TunekitError(message)
    preview = plan_preview(recipe, examples=args.examples, path=args.plot)
    if not (args.yaml or args.plot):
        print(preview.to_yaml(), end="")
        return
    print(preview.table())
    if args.yaml:
        args.yaml.write_text(preview.to_yaml(), encoding="utf-8")
    for path in filter(None, (args.yaml, args.plot)):
        print(f"written: {path}")


def _probe(args: argparse.Namespace) -> None:
    from tunekit.probe import probe

    given = {} if args.examples is None else {"max_examples": args.examples}
    found = probe(args.model, args.data, **given)
    print(found)
    if args.out:
        print(f"saved in {found.save(args.out)}")


if __name__ == "__main__":
    sys.exit(main())
