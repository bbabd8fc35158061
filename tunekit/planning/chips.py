"""Accelerators as plain data: memory, peak arithmetic and bandwidths of one JAX device of a kind.

Peaks are of dense matrices, as the makers publish them, so that a time computed from them is a
lower bound. Sources:

- TPU: the pages "TPU v4", "v5e", "v5p", "v6e" and "TPU7x" of Google Cloud's TPU documentation.
  Memory is what libtpu 0.0.42.1 lets one program use, as its compiler says when it refuses one
  that is too big; it is less than the page says.
- NVIDIA: the data sheets of the cards and, for the Ada cards, "NVIDIA Ada GPU Architecture".
  Memory is what the driver reports to a program (``device_memory_size`` of openxla/xla's target
  configurations where it has the card), with error correction on where the card has it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

Kind = Literal["cpu", "gpu", "tpu"]

GIB = 2**30

GPU_SHARE = 0.75
"""Of a GPU's memory JAX takes this share for itself, unless XLA_PYTHON_CLIENT_MEM_FRACTION says
another ("GPU memory allocation" in JAX's documentation)."""


@dataclass(frozen=True)
class Chip:
    """One device as JAX counts them: a chip, a card, or one of the two halves of a TPU7x chip."""

    name: str
    kind: Kind
    label: str
    """As its maker writes it."""
    memory_bytes: int
    """Of a device."""
    flops: Mapping[str, float]
    """Peak operations a second by dtype, two for a multiply-add; "tensorfloat32" is of float32
    matrices at the precision that JAX uses by default. A dtype that is missing has no unit."""
    bandwidth: float | None
    """Bytes a second between the device and its memory."""
    link_bandwidth: float | None
    """Bytes a second that a device can send to its neighbours over all its links; `None` alone."""
    capability: tuple[int, int] | None = None
    """CUDA's compute capability."""
    device_kinds: tuple[str, ...] = field(default=(), repr=False)
    """How ``jax.Device.device_kind`` begins for it."""

    @property
    def usable_bytes(self) -> int:
        """What one program may use where nobody changed JAX's defaults."""
        return int(self.memory_bytes * GPU_SHARE) if self.kind == "gpu" else self.memory_bytes

    def peak(self, dtype: str) -> float | None:
        """Returns the operations a second of matrices of `dtype` at JAX's default precision.

        A TPU multiplies float32 in one pass of bfloat16, a card with TensorFloat-32 in that.
        Types without a unit of their own are computed in float32.
        """
        if dtype == "float32" and "tensorfloat32" in self.flops:
            return self.flops["tensorfloat32"]
        return self.flops.get(dtype, self.flops.get("float32"))


def _tpu(
    name: str, label: str, memory_gib: float, bfloat16: float, int8: float, **rest: object
) -> Chip:
    flops = {"bfloat16": bfloat16, "float16": bfloat16, "float32": bfloat16, "int8": int8}
    teraflops = {dtype: peak * 1e12 for dtype, peak in flops.items()}
    return Chip(name, "tpu", label, int(memory_gib * GIB), teraflops, **rest)  # type: ignore[arg-type]


def _gpu(
    name: str,
    label: str,
    memory_bytes: int,
    *,
    tensor: Mapping[str, float],
    float32: float,
    **rest: object,
) -> Chip:
    """`tensor` are the peaks of the tensor cores in teraflops."""
    flops = {dtype: peak * 1e12 for dtype, peak in {**tensor, "float32": float32}.items()}
    return Chip(name, "gpu", label, memory_bytes, flops, **rest)  # type: ignore[arg-type]


def _tensor(half: float, tensorfloat32: float, int8: float) -> dict[str, float]:
    return {"bfloat16": half, "float16": half, "tensorfloat32": tensorfloat32, "int8": int8}


_PCIE3, _PCIE4 = 16e9, 32e9
_HOPPER = _tensor(989.4, 494.7, 1978.9)
_AMPERE = _tensor(312, 156, 624)

CHIPS: tuple[Chip, ...] = (
    _tpu(
        "v4", "TPU v4", 30.75, 275, 275, bandwidth=1228e9, link_bandwidth=300e9,
        device_kinds=("TPU v4",),
    ),
    _tpu(
        "v5e", "TPU v5e", 15.75, 197, 394, bandwidth=819e9, link_bandwidth=200e9,
        device_kinds=("TPU v5 lite", "TPU v5e"),
    ),
    _tpu(
        "v5p", "TPU v5p", 95.74, 459, 918, bandwidth=2765e9, link_bandwidth=600e9,
        device_kinds=("TPU v5p", "TPU v5"),
    ),
    _tpu(
        "v6e", "TPU v6e (Trillium)", 31.25, 918, 1836, bandwidth=1640e9, link_bandwidth=448e9,
        device_kinds=("TPU v6 lite", "TPU v6e"),
    ),
    # Half a chip of 2307 teraflops, 7380 GB/s and 600 GB/s each way.
    _tpu(
        "tpu7x", "TPU7x (Ironwood)", 94.75, 1153.5, 2307, bandwidth=3690e9, link_bandwidth=300e9,
        device_kinds=("TPU7x", "TPU v7"),
    ),
    _gpu(
        "a100-40gb", "NVIDIA A100 SXM 40 GB", 42331013120, tensor=_AMPERE, float32=19.5,
        bandwidth=1555.2e9, link_bandwidth=300e9, capability=(8, 0),
        device_kinds=("NVIDIA A100-SXM4-40GB", "NVIDIA A100-PCIE-40GB"),
    ),
    _gpu(
        "a100-80gb", "NVIDIA A100 SXM 80 GB", 85100068864, tensor=_AMPERE, float32=19.5,
        bandwidth=2039e9, link_bandwidth=300e9, capability=(8, 0),
        device_kinds=("NVIDIA A100-SXM4-80GB", "NVIDIA A100 80GB"),
    ),
    _gpu(
        "h100", "NVIDIA H100 SXM", 84942979072, tensor=_HOPPER, float32=66.9,
        bandwidth=3352.3e9, link_bandwidth=450e9, capability=(9, 0),
        device_kinds=("NVIDIA H100",),
    ),
    _gpu(
        "h200", "NVIDIA H200 SXM", 151397597184, tensor=_HOPPER, float32=66.9,
        bandwidth=4800e9, link_bandwidth=450e9, capability=(9, 0),
        device_kinds=("NVIDIA H200",),
    ),
    _gpu(
        "b200", "NVIDIA B200 SXM", 191514411008, tensor=_tensor(2250, 1125, 4500), float32=75,
        bandwidth=7672.3e9, link_bandwidth=900e9, capability=(10, 0),
        device_kinds=("NVIDIA B200",),
    ),
    _gpu(
        "l4", "NVIDIA L4", 23808966656, tensor=_tensor(121, 60, 242), float32=30.3,
        bandwidth=300e9, link_bandwidth=_PCIE4, capability=(8, 9), device_kinds=("NVIDIA L4",),
    ),
    _gpu(
        "l40s", "NVIDIA L40S", 47810936832, tensor=_tensor(362, 183, 733), float32=91.6,
        bandwidth=864e9, link_bandwidth=_PCIE4, capability=(8, 9), device_kinds=("NVIDIA L40S",),
    ),
    _gpu(
        "a10g", "NVIDIA A10G", 23836229632, tensor=_tensor(70, 35, 140), float32=31.5,
        bandwidth=600e9, link_bandwidth=_PCIE4, capability=(8, 6), device_kinds=("NVIDIA A10G",),
    ),
    _gpu(
        "rtx4090", "NVIDIA GeForce RTX 4090", 25393692672, tensor=_tensor(165.2, 82.6, 660.6),
        float32=82.6, bandwidth=1008e9, link_bandwidth=_PCIE4, capability=(8, 9),
        device_kinds=("NVIDIA GeForce RTX 4090",),
    ),
    _gpu(
        "a6000", "NVIDIA RTX A6000", 51041271808, tensor=_tensor(154.8, 77.4, 309.7),
        float32=38.7, bandwidth=768.1e9, link_bandwidth=_PCIE4, capability=(8, 6),
        device_kinds=("NVIDIA RTX A6000",),
    ),
    # Neither multiplies bfloat16 or TensorFloat-32 in its tensor cores.
    _gpu(
        "v100", "NVIDIA V100 SXM2 16 GB", 16935682048, tensor={"float16": 125}, float32=15.7,
        bandwidth=898e9, link_bandwidth=150e9, capability=(7, 0),
        device_kinds=("Tesla V100-SXM2-16GB",),
    ),
    _gpu(
        "t4", "NVIDIA T4", 15655829504, tensor={"float16": 65, "int8": 130}, float32=8.1,
        bandwidth=320e9, link_bandwidth=_PCIE3, capability=(7, 5), device_kinds=("Tesla T4",),
    ),
)  # fmt: skip
