"""What this machine's device can do at most: a large product of matrices, a long copy; measured.

Measured once and kept in ``$XDG_CACHE_HOME/tunekit/peaks`` or ``~/.cache/tunekit/peaks``, a file
for each kind of device. A machine that was busy then counts as slower than it is: delete the file,
or ask anew.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import platform
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from tunekit.data.feature_store import default_folder

DTYPES = ("float32", "bfloat16")
SECONDS = 0.5
"""For each figure: the best of the repeats that begin within it."""
_SIDE = {"cpu": 2048}
_SIDE_OF_ACCELERATOR = 8192
_COPIED_BYTES = 2**27


@dataclass(frozen=True)
class Peak:
    """What one device reached."""

    device: str
    """Its kind, as JAX or the kernel calls it."""
    flops: Mapping[str, float]
    """Operations a second of a product of matrices, by dtype."""
    bandwidth: float
    """Bytes a second, read and written, of an array too large for any cache."""


def device_peak(*, anew: bool = False) -> Peak:
    """Returns what the first device that JAX sees here can do, all cores of a CPU together.

    Args:
        anew: whether to measure although a measurement is kept.
    """
    device = _device_name()
    file = _kept_file(device)
    if not anew and (kept := _read(file)) is not None:
        return kept
    flops = {dtype: _product_flops(dtype) for dtype in DTYPES}
    peak = Peak(device, flops, _copy_bandwidth())
    _keep(file, peak)
    return peak


def _product_flops(dtype: str) -> float:
    side = _SIDE.get(jax.default_backend(), _SIDE_OF_ACCELERATOR)
    matrix = jnp.ones((side, side), dtype)
    return 2 * side**3 / _best_seconds(jax.jit(jnp.matmul), matrix, matrix)


def _copy_bandwidth() -> float:
    array = jnp.ones((_COPIED_BYTES // 4,), jnp.float32)
    return 2 * array.nbytes / _best_seconds(jax.jit(lambda x: x + 1), array)


def _best_seconds(program: Callable[..., jax.Array], *arguments: jax.Array) -> float:
    """The shortest time of the compiled program's repeats, the first being its compilation."""
    program(*arguments).block_until_ready()
    best, until = float("inf"), time.perf_counter() + SECONDS
    while (since := time.perf_counter()) < until:
        program(*arguments).block_until_ready()
        best = min(best, time.perf_counter() - since)
    return best


def _device_name() -> str:
    device = jax.devices()[0]
    if device.platform != "cpu":
        return device.device_kind
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{_processor()}, {cores} cores"


def _processor() -> str:
    """The model of the processor, as Linux tells it; else its architecture."""
    told = Path("/proc/cpuinfo")
    lines = told.read_text().splitlines() if told.exists() else []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.machine())


def _kept_file(device: str) -> Path:
    key = hashlib.sha256(f"{device}, jax {jax.__version__}".encode()).hexdigest()[:16]
    return default_folder().parent / "peaks" / f"{key}.json"


def _read(file: Path) -> Peak | None:
    """What is kept; `None` where there is nothing, or a file cut short."""
    try:
        told: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        return Peak(told["device"], dict(told["flops"]), float(told["bandwidth"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _keep(file: Path, peak: Peak) -> None:
    """Writes the measurement; a folder that cannot be written to means to measure each time."""
    text = json.dumps(dataclasses.asdict(peak), indent=2)
    scratch = file.with_suffix(f".{os.getpid()}")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        scratch.write_text(text, encoding="utf-8")
        os.replace(scratch, file)
    except OSError:
        return
