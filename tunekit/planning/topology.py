"""From a machine's name to its devices, as JAX's compilers describe them without having one.

A TPU slice is described by ``libtpu``, GPUs by XLA's target configuration of the card. The
compilers read the environment once, so that it is set before JAX is imported: in a process of its
own (``tunekit.planning.worker``).
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from typing import Any

from tunekit.errors import TunekitError
from tunekit.planning.cards import target_config
from tunekit.planning.hardware import Target


class CompilerMissing(TunekitError, ImportError):
    """The compiler of the asked kind of machine is not installed."""


_NEEDED = {"tpu": ("libtpu", "tpu-plan"), "gpu": ("jax_cuda12_plugin", "gpu-plan")}


def require_compiler(target: Target) -> None:
    """Passes where programs for the target can be compiled here.

    Raises:
        CompilerMissing: its compiler is not installed; the message says how it is.
    """
    if target.kind not in _NEEDED:
        return
    module, extra = _NEEDED[target.kind]
    if importlib.util.find_spec(module) is None:
        raise CompilerMissing(
            f"compiling for {target} needs the package {module}: pip install 'tunekit[{extra}]'. "
            "No such device is needed."
        )


def environment(
    target: Target, inherited: Mapping[str, str], *, optimization: str = "O0"
) -> dict[str, str]:
    """Returns the environment of a process that compiles for the target.

    Args:
        target: the machine.
        inherited: environment of this process.
        optimization: effort of XLA for a TPU. At "O0" it compiles several times faster, and the
            memory that it plans is within a tenth of that at "O1".
    """
    settings = {
        **inherited,
        "KERAS_BACKEND": "jax",
        # A program for devices that are not here cannot be read back from the cache.
        "JAX_ENABLE_COMPILATION_CACHE": "false",
        "TF_CPP_MIN_LOG_LEVEL": "2",
    }
    if target.is_this_machine:
        return settings
    # The devices are described, and not opened: this machine's own stay free.
    settings["JAX_PLATFORMS"] = "cpu"
    flags = inherited.get("XLA_FLAGS", "").split()
    # Virtual devices of this process' tests are none of the worker's.
    flags = [flag for flag in flags if "host_platform_device_count" not in flag]
    if target.kind == "tpu":
        settings |= {
            "JAX_OPTIMIZATION_LEVEL": optimization,
            "TPU_ACCELERATOR_TYPE": "v5litepod-8",
            "TPU_WORKER_HOSTNAMES": "localhost",
            "TPU_SKIP_MDS_QUERY": "1",
            # Another process may hold the library, or its device.
            "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
        }
    if target.kind == "gpu":
        # Without a card to try them on, XLA 0.10 cannot choose among Triton's products.
        flags.append("--xla_gpu_enable_triton_gemm=false")
    return {**settings, "XLA_FLAGS": " ".join(flags)}


def topology_devices(target: Target) -> list[Any]:
    """Returns descriptions of the target's devices, to make a mesh of and compile for.

    To be called in a process with the target's `environment`.

    Raises:
        CompilerMissing: the compiler is not installed.
    """
    import jax
    from jax.experimental import topologies

    require_compiler(target)
    if target.is_this_machine:
        return list(jax.devices())
    if target.kind == "gpu":
        described = topologies.get_topology_desc(
            platform="cuda",
            topology_name=target.chip.name,
            # Partitions, hosts of each, cards of each.
            topology=f"1x{target.hosts}x{target.count // target.hosts}",
            target_config=target_config(target.chip),
        )
    else:
        described = topologies.get_topology_desc(
            platform="tpu",
            topology_name=f"{target.chip.name}:{'x'.join(map(str, target.grid))}",
            chips_per_host_bounds=_host_bounds(target),
            # Its two cores are one device.
            **({"chip_config_name": "megacore"} if target.chip.name == "v4" else {}),
        )
    return list(described.devices)


def _host_bounds(target: Target) -> tuple[int, int, int]:
    """Chips of one host along each side."""
    if target.hosts > 1:
        return 2, 2, 1
    rows, columns, *layers = target.grid
    return rows, columns, layers[0] if layers else 1
