"""Several processes as one run: joined before JAX begins, and asked the same everywhere.

In a single process every question here costs nothing and is answered at once.
"""

from __future__ import annotations

import atexit
import os
import sys
from collections.abc import Callable
from functools import cache
from typing import Any, TextIO

from tunekit.errors import DistributedError, TunekitError
from tunekit.peers import Peers, exit_with
from tunekit.place import WAIT_SECONDS, found_place
from tunekit.rendezvous import join

LOG = "TUNEKIT_LOG"
"""Environment variable: begins the names of the files in which the other processes speak."""
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
    place, devices = found_place(given)
    if place is None or place.count == 1:
        return
    import absl.logging
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
    if not is_first():
        # Orbax would warn in every process, of what the first one mends.
        absl.logging.set_verbosity(absl.logging.ERROR)
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
