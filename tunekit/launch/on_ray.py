"""A recipe on the workers of a Ray cluster, by Ray Train's `JaxTrainer`.

Ray places and starts the workers. They find together as any processes of ours do, in place of Ray's
own backend, which joins TPU and GPU workers alone and learns of a lost one by JAX' abort (read from
ray 2.60: ``ray/train/v2/jax/config.py``).
"""

from __future__ import annotations

import os
from importlib import import_module
from pathlib import Path
from typing import Any

from tunekit.distributed import await_end, initialise, part, tell
from tunekit.errors import DistributedError, TunekitError
from tunekit.launch.work import trained
from tunekit.recipe import Recipe
from tunekit.rendezvous import free_port
from tunekit.result import RUN_FOLDER
from tunekit.run import how_to_resume

_KINDS = {"cpu": "cpu", "gpu": "cuda"}
"""What a worker is given, and what JAX calls it."""


def run_on_ray(recipe: Recipe, *, workers: int = 1, accelerator: str = "cpu") -> dict[str, Any]:
    """Returns the metrics and sample answers of the run; its result is in `runtime.out`.

    The cluster is the one that the variable RAY_ADDRESS names, else this machine.

    Args:
        recipe: with `runtime.out`, a folder that all workers share.
        workers: processes.
        accelerator: what each is given: "cpu", "gpu", or several as in "gpu:4".

    Raises:
        DistributedError: Ray is not installed, or a worker has failed.
    """
    kind, count = _given(workers, accelerator)
    ray, train, jax_trainer, failed = _ray()
    assert recipe.runtime.out is not None
    out = Path(recipe.runtime.out).expanduser().absolute()
    started_here = not ray.is_initialized()
    if started_here:
        # A cluster of one's own is nobody else's: it listens on this machine alone.
        own = {"include_dashboard": False, "_node_ip_address": "127.0.0.1"}
        ray.init(**({} if "RAY_ADDRESS" in os.environ else own))
    trainer = jax_trainer(
        _work,
        train_loop_config={"recipe": recipe.model_dump(mode="json"), "folder": os.getcwd()},
        jax_config=_joining(),
        scaling_config=train.ScalingConfig(
            num_workers=workers,
            use_gpu=kind == "gpu",
            resources_per_worker={kind.upper(): count},
        ),
        run_config=train.RunConfig(
            storage_path=str(out / "ray"),
            worker_runtime_env={"env_vars": {"JAX_PLATFORMS": _KINDS[kind]}},
        ),
    )
    try:
        return trainer.fit().return_value
    except failed as error:
        message = f"{_reason(error)} {how_to_resume(out / RUN_FOLDER)}"
        raise DistributedError(message) from error
    finally:
        if started_here:
            ray.shutdown()


def _work(config: dict[str, Any]) -> dict[str, Any]:
    """What each worker does; Ray hands the first one's back."""
    if Path(config["folder"]).is_dir():
        os.chdir(config["folder"])  # Paths of the recipe are of where it was launched.
    try:
        found = trained(Recipe.model_validate(config["recipe"]))
    except Exception as error:
        if not isinstance(error, TunekitError):
            await_end()
        tell(1, f"{type(error).__name__}: {error}")
        raise
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


def _given(workers: int, accelerator: str) -> tuple[str, int]:
    kind, _, count = accelerator.partition(":")
    if kind not in _KINDS or not (count or "1").isdigit():
        raise DistributedError(
            f"--accelerator: a worker of Ray is given {', '.join(_KINDS)} or several as in gpu:4, "
            f"got {accelerator!r}."
        )
    if workers < 1:
        raise DistributedError(f"--workers: expected 1 or more, got {workers}.")
    return kind, int(count or 1)


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
    """What each worker failed of, in a line."""
    failures = getattr(error, "worker_failures", None) or {"?": error}
    lines = {
        rank: str(each).strip().splitlines() or [repr(each)] for rank, each in failures.items()
    }
    return " ".join(f"worker {rank} of Ray failed: {text[-1]}." for rank, text in lines.items())
