"""Which process of a run this is: as it is told, by its environment, or by a cluster of JAX.

Of JAX' private names, the detection of clusters is used (read from jax 0.10.2:
``jax/_src/clusters``).
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tunekit.errors import DistributedError

ADDRESS, COUNT, INDEX = "JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"
"""Environment variables that stand in for what is not told."""
WAIT_SECONDS = 300.0
"""For all processes to start."""
_OPTIONS = {"coordinator": ADDRESS, "processes": COUNT, "process": INDEX}


@dataclass(frozen=True)
class Place:
    """Which process this is, and where process 0 listens."""

    host: str
    port: int
    index: int
    count: int

    def __str__(self) -> str:
        """Returns the address of process 0."""
        return f"{self.host}:{self.port}"


def found_place(given: Mapping[str, Any]) -> tuple[Place | None, Any]:
    """Returns where this process stands, and which devices are its own, where it is told.

    The place is `None` where nothing speaks of several processes.

    Args:
        given: "coordinator", "processes" and "process"; `None` for what is not told.

    Raises:
        DistributedError: some is known and some is not, or it makes no sense.
    """
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
    if "JOB_COMPLETION_INDEX" not in os.environ:
        # Of Kubernetes, an indexed job: any other pod, such as a notebook's, is alone.
        kinds = [kind for kind in kinds if kind.__name__ != "K8sCluster"]
    kind = next((kind for kind in kinds if kind.is_env_present()), None)
    if kind is None:
        return None
    detect = ClusterEnv.auto_detect_unset_distributed_params
    address, count, index, devices = detect(None, None, None, None, kind.name, int(WAIT_SECONDS))
    return {"coordinator": address, "processes": count, "process": index}, devices
