"""Several processes as one run: joined before JAX begins, and asked the same everywhere.

In a single process every question here costs nothing and is answered at once. Of JAX' private
names, the detection of clusters is used (read from jax 0.10.2: ``jax/_src/clusters``).
"""

from __future__ import annotations

import atexit
import hashlib
import json
import os
import sys
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any, TextIO

from tunekit.errors import DistributedError, TunekitError
from tunekit.peers import Peers, Place, exit_with
from tunekit.rendezvous import join

WAIT_SECONDS = 300.0
"""For all processes to start."""
ADDRESS, COUNT, INDEX = "JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"
"""Environment variables that stand in for arguments of `initialise`."""
LOG = "TUNEKIT_LOG"
"""Environment variable: begins the names of the files in which the other processes speak."""
_OPTIONS = {"coordinator": ADDRESS, "processes": COUNT, "process": INDEX}
_HEARTBEAT_SECONDS = 50
"""Of JAX' own service, which is only the second to notice a death."""

_peers: Peers | None = None


def initialise(
    coordinator: str | None = None,
    processes: int | None = None,
    process: int | None = None,
    *,
    wait_seconds: float = WAIT_SECONDS,
) -> None:
    """Makes this process one of a run's, where it is started as one of several.

    The arguments come from the environment where they are not given: from the variables
    JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID, or from what JAX finds of Cloud
    TPU, Slurm, Kubernetes and Open MPI. Nothing happens in a process that is alone, or that has
    joined before. To be called before JAX has any device.

    Args:
        coordinator: "host:port" of process 0, reachable from all.
        processes: how many there are.
        process: which this is, from 0.
        wait_seconds: until all must be there.

    Raises:
        DistributedError: some are given and some are not, or the processes do not find together.
    """
    global _peers
    if _peers is not None:
        return
    given = {"coordinator": coordinator, "processes": processes, "process": process}
    place, devices = _place(given)
    if place is None or place.count == 1:
        return
    import jax

    _check_untouched()
    peers, told = join(place, wait_seconds)
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    # JAX would swallow SIGTERM, to be asked about it at every step.
    jax.config.update("jax_enable_preemption_service", False)
    address = f"{place.host}:{told['port']}"
    jax.distributed.initialize(
        address,
        place.count,
        place.index,
        local_device_ids=devices,
        cluster_detection_method="deactivate",
        coordinator_bind_address=address if _is_loopback(place.host) else None,
        heartbeat_timeout_seconds=_HEARTBEAT_SECONDS,
        shutdown_timeout_seconds=_HEARTBEAT_SECONDS,
    )
    _peers = peers
    # JAX says good-bye at exit, which waits for all: not where this process has failed.
    atexit.register(_part_at_exit)


def process_index() -> int:
    """Returns which process of the run this is, from 0."""
    return 0 if _peers is None else _peers.place.index


def process_count() -> int:
    """Returns the number of processes of the run."""
    return 1 if _peers is None else _peers.place.count


def is_first() -> bool:
    """Whether this process writes and speaks for the run."""
    return process_index() == 0


@cache
def own_log() -> TextIO | None:
    """Returns where a process that is not the first writes what it would say.

    A file for each, named by the variable TUNEKIT_LOG and the index of the process; `None` where
    the variable is not set.
    """
    name = os.environ.get(LOG)
    if not name or is_first():
        return None
    return open(f"{name}.{process_index()}", "a", encoding="utf-8", buffering=1)


def gathered(value: Any, what: str) -> list[Any]:
    """Returns what each process gives here, JSON, by its index; without the devices' help.

    Args:
        value: of this process.
        what: a name for it, the same everywhere.
    """
    return [value] if _peers is None else _peers.gathered(value, what)


def together(what: str) -> None:
    """Returns once every process is here."""
    gathered(None, what)


def check_agreed(what: Mapping[str, Any]) -> None:
    """Passes where every process has the same here.

    Args:
        what: JSON values by the name that an error gives them; mappings within are looked into.

    Raises:
        DistributedError: they differ; says in what.
    """
    if process_count() == 1:
        return
    flat = dict(_flat("", json.loads(json.dumps(what, default=str))))
    digests = {name: hashlib.sha256(json.dumps(v).encode()).hexdigest() for name, v in flat.items()}
    shown = {name: json.dumps(value)[:120] for name, value in flat.items()}
    everyone = gathered([digests, shown], "the recipe and the data")
    differences = []
    for index, (theirs, texts) in enumerate(everyone):
        first, first_texts = everyone[0]
        for name in sorted(first.keys() | theirs.keys()):
            if first.get(name) != theirs.get(name):
                ours, other = first_texts.get(name, "absent"), texts.get(name, "absent")
                differences.append(f"{name} is {ours} in process 0 and {other} in process {index}")
    if differences:
        more = f", and {len(differences) - 5} more" if differences[5:] else ""
        raise DistributedError(
            f"the processes are not of one run: {'; '.join(differences[:5])}{more}. Give all of "
            "them the same recipe, overrides and data."
        )


def check_shared(folder: Path) -> None:
    """Passes where `folder` is the same one in every process; made if absent.

    Raises:
        DistributedError: a process does not find there what process 0 wrote.
    """
    if process_count() == 1:
        return
    token = folder / ".tunekit-shared"
    word = gathered(os.urandom(8).hex(), "a word")[0]
    if is_first():
        folder.mkdir(parents=True, exist_ok=True)
        token.write_text(word)
    together("a word written")
    found = token.is_file() and token.read_text() == word
    finders = gathered(found, "a word read")
    if is_first():
        token.unlink(missing_ok=True)
    without = [str(index) for index, finds in enumerate(finders) if not finds]
    if without:
        raise DistributedError(
            f"runtime.out: {folder} is not one folder for all processes: what process 0 writes "
            f"there, process {', '.join(without)} does not find. Name one on a file system that "
            "all share."
        )


def advise(text: Callable[[], str]) -> None:
    """Sets what a process prints last when another one is gone: what to do."""
    if _peers is not None:
        _peers.advice = text


def await_end() -> None:
    """Waits some seconds for another process' end to end this one, which may fail of it only."""
    if _peers is not None:
        _peers.wait_for_end()


def tell(code: int, message: str) -> None:
    """Ends the other processes, with this one's mistake as the reason.

    Args:
        code: what they exit with.
        message: what went wrong here.
    """
    if _peers is not None:
        _peers.leave(code, message)


def leave(code: int, message: str) -> None:
    """Ends this process, and the others by `tell`; returns where it is alone.

    Args:
        code: what all of them exit with.
        message: what went wrong, printed here already.
    """
    if _peers is not None:
        tell(code, message)
        exit_with(code)


def part() -> None:
    """Ends the connections to the other processes, once all of them are here; a run is over."""
    global _peers
    if _peers is not None:
        _peers.part()
        _peers = None


def _part_at_exit() -> None:
    # Set where an error has ended the main thread: the others would wait for it.
    if (error := getattr(sys, "last_value", None)) is not None:
        if not isinstance(error, TunekitError):
            await_end()
        leave(1, f"{type(error).__name__}: {error}")
    part()


def _place(given: Mapping[str, Any]) -> tuple[Place | None, Any]:
    """Where this process stands, and which devices are its own; `None` where it is alone."""
    told = {name: os.environ.get(variable) for name, variable in _OPTIONS.items()}
    told |= {name: value for name, value in given.items() if value is not None}
    devices = None
    if None in told.values() and (cluster := _cluster()) is not None:
        found, devices = cluster
        told |= {name: found[name] for name, value in told.items() if value is None}
    missing = [name for name, value in told.items() if value is None]
    if len(missing) == len(told):
        return None, None
    if missing:
        raise DistributedError(
            f"expected --coordinator, --processes and --process together, got no "
            f"{' and no '.join(f'--{name}' for name in missing)}. The environment variables "
            f"{', '.join(_OPTIONS.values())} can stand for them."
        )
    return _checked(**told), devices


def _checked(coordinator: Any, processes: Any, process: Any) -> Place:
    host, _, port = str(coordinator).rpartition(":")
    if not host or not port.isdigit():
        raise DistributedError(f"--coordinator: expected HOST:PORT, got {coordinator!r}")
    count, index = _whole("processes", processes), _whole("process", process)
    if not 0 <= index < count:
        raise DistributedError(
            f"--process: expected 0 to {count - 1} of {count} processes, got {index}"
        )
    return Place(host.strip("[]"), int(port), index, count)


def _whole(name: str, value: Any) -> int:
    try:
        return int(value)
    except ValueError:
        raise DistributedError(f"--{name}: expected a whole number, got {value!r}") from None


def _cluster() -> tuple[dict[str, Any], Any] | None:
    """What JAX knows of the cluster that this process is started in, and its devices there."""
    import jax  # noqa: F401  (fills the list of clusters)
    from jax._src.clusters import ClusterEnv

    kinds = [kind for kind in ClusterEnv._cluster_types if not kind.opt_in_only_method]
    if not any(kind.is_env_present() for kind in kinds):
        return None
    detect = ClusterEnv.auto_detect_unset_distributed_params
    address, count, index, devices = detect(None, None, None, None, None, int(WAIT_SECONDS))
    return {"coordinator": address, "processes": count, "process": index}, devices


def _check_untouched() -> None:
    """Passes where JAX has neither devices nor processes yet."""
    import jax
    from jax._src import xla_bridge

    if jax.distributed.is_initialized() or xla_bridge.backends_are_initialized():
        raise DistributedError(
            "JAX has its devices already, and can no longer be joined with other processes: call "
            "tunekit.distributed.initialise() before anything else that uses JAX, and in place of "
            "jax.distributed.initialize()."
        )


def _is_loopback(host: str) -> bool:
    return host in ("localhost", "::1") or host.startswith("127.")


def _flat(prefix: str, value: Any) -> Any:
    if not isinstance(value, dict) or not value:
        yield prefix, value
        return
    for key, item in value.items():
        yield from _flat(f"{prefix}.{key}" if prefix else str(key), item)
