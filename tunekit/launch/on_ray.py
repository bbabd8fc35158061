"""A recipe on the workers of a Ray cluster, by Ray Train's `JaxTrainer`.

Ray places and starts the workers. They find together as any processes of ours do, in place of Ray's
own backend, which joins TPU and GPU workers alone and learns of a lost one by JAX' abort (read from
ray 2.60: ``ray/train/v2/jax/config.py``).
"""

from __future__ import annotations

import logging
import os
import re
import shutil
from importlib import import_module
from pathlib import Path
from typing import Any

from tunekit.distributed import await_end, initialise, part
from tunekit.errors import DistributedError, TunekitError
from tunekit.launch.work import trained
from tunekit.recipe import Recipe
from tunekit.rendezvous import free_port
from tunekit.result import RUN_FOLDER
from tunekit.run import how_to_resume

_KINDS = {"cpu": "cpu", "gpu": "cuda", "tpu": "tpu"}
"""What a worker is given, and what JAX calls it."""
_PLAIN_PRINT = {"RAY_TRAIN_ENABLE_PRINT_PATCH": "0"}
"""Without it Ray Train has every printed line logged, and so shown, a second time."""


def run_on_ray(recipe: Recipe, *, workers: int = 1, accelerator: str = "cpu") -> dict[str, Any]:
    """Returns the metrics and sample answers of the run; its result is in `runtime.out`.

    The cluster is the one that the variable RAY_ADDRESS names, else this machine.

    Args:
        recipe: with `runtime.out`, a folder that all workers share.
        workers: processes.
        accelerator: what each is given: "cpu", "gpu", "tpu", several as in "gpu:8"; or the slice of
            which each is a machine, as in "tpu-v6e:4x4".

    Raises:
        DistributedError: Ray is not installed, or a worker has failed.
    """
    asked = scaling(workers, accelerator)
    if "RAY_ADDRESS" not in os.environ:
        # A cluster of one's own is nobody else's: Ray then uses this machine's loopback address.
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
    ray, train, jax_trainer, failed = _ray()
    assert recipe.runtime.out is not None
    out = Path(recipe.runtime.out).expanduser().absolute()
    records = out.with_name(f".{out.name}.ray")
    platform = _KINDS[re.split("[-:]", accelerator)[0]]
    started_here = not ray.is_initialized()
    if started_here:
        # Without its dashboard one of Ray's own workers warns every second.
        ray.init(include_dashboard=False, logging_config=ray.LoggingConfig(log_level="ERROR"))
    trainer = jax_trainer(
        _work,
        train_loop_config={"recipe": recipe.model_dump(mode="json"), "folder": os.getcwd()},
        jax_config=_joining(),
        scaling_config=train.ScalingConfig(**asked),
        run_config=train.RunConfig(
            storage_path=str(records),
            worker_runtime_env={"env_vars": {"JAX_PLATFORMS": platform, **_PLAIN_PRINT}},
        ),
    )
    try:
        return trainer.fit().return_value
    except failed as error:
        message = f"{_reason(error)} {how_to_resume(out / RUN_FOLDER)}"
        raise DistributedError(message) from error
    finally:
        shutil.rmtree(records, ignore_errors=True)
        if started_here:
            ray.shutdown()


def _work(config: dict[str, Any]) -> dict[str, Any]:
    """What each worker does; Ray hands the first one's back."""
    for name in ("absl", "jax"):
        # Ray Train shows what is logged from "info" on, which Orbax does at length.
        logging.getLogger(name).setLevel(logging.WARNING)
    if Path(config["folder"]).is_dir():
        os.chdir(config["folder"])  # Paths of the recipe are of where it was launched.
    try:
        found = trained(Recipe.model_validate(config["recipe"]))
    except Exception as error:
        if not isinstance(error, TunekitError):
            await_end()
        raise  # To Ray, which ends the other workers.
    part()
    return found


def _joining() -> Any:
    """How Ray has its workers find together before they work."""
    ray = import_module("ray")
    backend, config = import_module("ray.train.backend"), import_module("ray.train.v2.jax")

    class Joining(backend.Backend):
        def on_start(self, worker_group: Any, backend_config: Any) -> None:
            address = worker_group.execute_single(0, _address)
            count = len(worker_group)
            joined = [
                worker_group.execute_single_async(i, initialise, address, count, i)
                for i in range(count)
            ]
            ray.get(joined)

    class JoiningConfig(config.JaxConfig):
        @property
        def backend_cls(self) -> Any:
            return Joining

    return JoiningConfig()


def _address() -> str:
    """Where the first worker may listen, on its own machine."""
    host = import_module("ray").util.get_node_ip_address()
    return f"{host}:{free_port(host)}"


def scaling(workers: int, accelerator: str) -> dict[str, Any]:
    """Returns what Ray's `ScalingConfig` is given for so many workers of an accelerator.

    Raises:
        DistributedError: they do not make sense.
    """
    kind, _, rest = accelerator.partition(":")
    family, _, generation = kind.partition("-")
    if workers < 1:
        raise DistributedError(f"--workers: expected 1 or more, got {workers}.")
    if kind in _KINDS and (rest or "1").isdigit():
        each = {kind.upper(): int(rest or 1)}
        asked = {"num_workers": workers, "resources_per_worker": each}
        return {**asked, f"use_{kind}": True} if kind != "cpu" else asked
    if family == "tpu" and generation and re.fullmatch(r"\d+(x\d+)+", rest):
        chip = f"TPU-{generation.upper()}"
        slice_ = {"topology": rest, "accelerator_type": chip}
        return {"num_workers": workers, "use_tpu": True, **slice_}
    raise DistributedError(
        "--accelerator: a worker of Ray is given cpu, gpu or tpu, several as in gpu:8, or is a "
        f"machine of a slice as in tpu-v6e:4x4; got {accelerator!r}."
    )


def _ray() -> tuple[Any, Any, Any, Any]:
    names = ("ray", "ray.train", "ray.train.v2.jax", "ray.train.v2.api.exceptions")
    try:
        ray, train, jax, exceptions = (import_module(name) for name in names)
    except ImportError as error:
        raise DistributedError(
            f"--launcher ray needs Ray Train, and it is not here ({error}): "
            "pip install 'tunekit[ray]'"
        ) from None
    return ray, train, jax.JaxTrainer, exceptions.TrainingFailedError


def _reason(error: Any) -> str:
    """What the workers failed of; that of one which said it, where another only ended with it."""
    failures = getattr(error, "worker_failures", None) or {"?": error}
    texts = {rank: str(each).strip() for rank, each in failures.items()}
    said = {rank: text for rank, text in texts.items() if "actor died" not in text}
    if said:
        lines = {rank: text.splitlines()[-1].rstrip(".") for rank, text in said.items()}
        return " ".join(f"Worker {rank} of Ray failed: {line}." for rank, line in lines.items())
    return (
        "A worker of Ray is gone, and the others ended with it: it was killed, or its machine had "
        "no memory left. What they said last is above, and in Ray's own logs."
    )
