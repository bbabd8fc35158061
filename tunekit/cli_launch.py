"""``tunekit run`` as one of several processes, or through an engine that starts them elsewhere."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from tunekit.distributed import initialise
from tunekit.errors import TunekitError

if TYPE_CHECKING:
    from tunekit.recipe import Recipe


def add_launch(sub: argparse.ArgumentParser) -> None:
    """Gives the command the options that say where its processes are."""
    joined = sub.add_argument_group(
        "one of several processes", "not needed on Cloud TPU, Slurm, Kubernetes and Open MPI"
    )
    joined.add_argument("--coordinator", metavar="HOST:PORT", help="where process 0 listens")
    joined.add_argument("--processes", type=int, metavar="N", help="how many there are")
    joined.add_argument("--process", type=int, metavar="I", help="which this is, from 0")
    engine = sub.add_argument_group("elsewhere")
    about = "ray: workers of a Ray cluster; kinetic: a TPU or GPU machine in the cloud"
    engine.add_argument("--launcher", choices=("ray", "kinetic"), help=about)
    engine.add_argument("--workers", type=int, metavar="N", help="of Ray; else 1")
    about = "of Kinetic, such as tpu-v5e-1; or of each worker of Ray: cpu, gpu, gpu:8"
    engine.add_argument("--accelerator", metavar="NAME", help=about)


def join(args: argparse.Namespace) -> None:
    """Makes this process one of a run's, where it is started as one of several.

    Raises:
        TunekitError: the options do not go together, or the processes do not find together.
    """
    if args.launcher is None:
        for name in ("workers", "accelerator"):
            if getattr(args, name) is not None:
                raise TunekitError(f"--{name} is of an engine; name it with --launcher.")
        initialise(args.coordinator, args.processes, args.process)
        return
    for name in ("coordinator", "processes", "process"):
        if getattr(args, name) is not None:
            raise TunekitError(f"--{name}: --launcher {args.launcher} sees to that; leave it out.")


def launched(args: argparse.Namespace, recipe: Recipe) -> dict[str, Any]:
    """Returns the metrics and sample answers of the recipe, run here or by the engine asked for.

    Raises:
        TunekitError: the run, or the engine, fails.
    """
    if args.launcher == "ray":
        from tunekit.launch.on_ray import run_on_ray

        workers = 1 if args.workers is None else args.workers
        return run_on_ray(recipe, workers=workers, accelerator=args.accelerator or "cpu")
    if args.launcher == "kinetic":
        from tunekit.launch.on_kinetic import run_on_kinetic

        if args.workers is not None:
            message = "Kinetic runs on a single machine; leave it out, or use --launcher ray."
            raise TunekitError(f"--workers: {message}")
        return run_on_kinetic(recipe, accelerator=args.accelerator or "tpu-v5e-1")
    from tunekit.launch.work import trained

    return trained(recipe)
