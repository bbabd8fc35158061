"""What XLA is told before JAX starts: it reads the environment once. Importable without JAX."""

from __future__ import annotations

import os
import re
import sys
import warnings

_FUSIONS = "xla_cpu_experimental_ynn_fusion_type"
_FIRST, _LAST = (0, 10, 2), (0, 11)


def keep_sums_right() -> None:
    """XLA computes the sums of programs for CPUs itself, and does not leave them to YNNPACK.

    In jaxlib 0.10.2 and 0.11, YNNPACK gives wrong sums without a word where what is summed is a
    matrix product or a broadcast that XLA has fused with the sum (jax-ml/jax issue 39103, google/
    XNNPACK pull request 11243), and ends the process on arrays of seven axes (issue 39257).
    Matrix products stay with it. A choice of fusions that is in XLA_FLAGS already is left alone;
    a newer jaxlib is, too: XLA ends a process that names a flag which it does not know.
    """
    from jaxlib.version import __version__

    version = tuple(int(part) for part in re.findall(r"\d+", __version__)[:3])
    flags = os.environ.get("XLA_FLAGS", "")
    if not _FIRST <= version or version[:2] > _LAST or _FUSIONS in flags:
        return
    choice = f"--{_FUSIONS}=-reduce"
    if _runs_on_a_cpu():
        warnings.warn(
            "JAX had run before tunekit was imported, so it is too late to keep XLA from a way of "
            f"computing sums on CPUs that is wrong in jaxlib {__version__}. Import tunekit first, "
            f"or set XLA_FLAGS={choice}.",
            RuntimeWarning,
            stacklevel=3,
        )
        return
    os.environ["XLA_FLAGS"] = f"{flags} {choice}".strip()


def _runs_on_a_cpu() -> bool:
    """Whether JAX has opened its devices, which is when XLA reads its flags, and they are CPUs."""
    bridge = sys.modules.get("jax._src.xla_bridge")
    if bridge is None or not bridge.backends_are_initialized():
        return False
    return sys.modules["jax"].default_backend() == "cpu"
