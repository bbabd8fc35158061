"""Programs traced here as another machine would trace them.

While tracing, Keras and KerasHub ask ``jax.devices()`` which machine they are on and choose by it
(the Splash kernel of a TPU, Gemma's fused attention), and JAX asks its CUDA backend whether cuDNN's
attention is at hand. Both are answered for the target in this file.

Replaces ``jax.devices`` and ``jax.default_backend``, which Keras 3.15 and KerasHub 0.32 call as
attributes of ``jax``, and ``check_cudnn_version``, ``check_compute_capability`` and
``is_cuda_compute_capability_equal`` of ``jax._src.cudnn.fused_attention_stablehlo``, as of JAX
0.10.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import jax
from absl import logging
from jax._src.cudnn import fused_attention_stablehlo as cudnn

from tunekit.planning.chips import Chip
from tunekit.platforms import Platform, tracing_for

CUDNN_VERSION = 91000
"""9.10.0: what a CUDA installation of JAX 0.10 brings at least."""


@dataclass(frozen=True)
class EmulatedDevice:
    """What of a device Keras and JAX look at while they trace."""

    platform: Platform
    device_kind: str
    compute_capability: str = ""


@contextmanager
def dispatched(chip: Chip, *, kernels: bool = True) -> Iterator[None]:
    """Within the block what is traced is what a machine with this chip would trace.

    To be lowered in the block and not called: kernels of that machine do not run here.

    Args:
        chip: of the machine.
        kernels: whether cuDNN is at hand there.
    """
    kind = cast(Platform, chip.kind)
    capability = chip.capability or (0, 0)
    named = ".".join(map(str, capability)) if chip.capability else ""
    device = EmulatedDevice(kind, (chip.device_kinds or (chip.label,))[0], named)

    def at_least(asked: str) -> bool:
        return kind == "gpu" and capability >= _parts(asked)

    def equal(asked: str) -> bool:
        return kind == "gpu" and capability == _parts(asked)

    answers: list[tuple[Any, str, Any]] = [
        (jax, "devices", lambda backend=None: [device]),
        (jax, "default_backend", lambda: kind),
        (cudnn, "check_compute_capability", at_least),
        (cudnn, "is_cuda_compute_capability_equal", equal),
    ]
    if kind == "gpu" and kernels:
        answers.append((cudnn, "check_cudnn_version", lambda: CUDNN_VERSION))
    own = [(owner, name, getattr(owner, name)) for owner, name, _ in answers]
    # Keras logs a traceback for each kernel that it tries in vain, of which there is one a layer.
    heard = logging.get_verbosity()
    with tracing_for(kind):
        try:
            logging.set_verbosity(logging.FATAL)
            for owner, name, answer in answers:
                setattr(owner, name, answer)
            yield
        finally:
            logging.set_verbosity(heard)
            for owner, name, answer in own:
                setattr(owner, name, answer)


def _parts(capability: str) -> tuple[int, ...]:
    return tuple(int(part) for part in capability.split("."))
