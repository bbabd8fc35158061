"""What XLA's compiler must know of an NVIDIA card: its target configuration.

The numbers are those of the files under ``xla/backends/gpu/target_config/specs`` of openxla/xla
(The OpenXLA Authors, Apache License 2.0), which were read off the cards; of cards that are not
there (L4, L40S, A10G, RTX 4090, T4), those of NVIDIA's data sheets and, for what all cards of a
compute capability have in common, of the table "Technical specifications per compute capability"
of the CUDA C++ Programming Guide.
"""

from __future__ import annotations

from typing import NamedTuple

from tunekit.planning.chips import Chip


class _Card(NamedTuple):
    cores: int
    """Streaming multiprocessors."""
    fpus: int
    """Float32 units of each."""
    l2_bytes: int
    clock_ghz: float


class _Architecture(NamedTuple):
    """What the cards of one compute capability have in common."""

    shared_bytes: int
    """Shared memory of a multiprocessor."""
    shared_bytes_a_block: int
    """The most of it that one block can have."""
    threads: int
    """Of a multiprocessor."""


_MIB = 2**20

_ARCHITECTURES = {
    (7, 0): _Architecture(98304, 98304, 2048),
    (7, 5): _Architecture(65536, 65536, 1024),
    (8, 0): _Architecture(167936, 166912, 2048),
    (8, 6): _Architecture(102400, 101376, 1536),
    (8, 9): _Architecture(102400, 101376, 1536),
    (9, 0): _Architecture(233472, 232448, 2048),
    (10, 0): _Architecture(233472, 232448, 2048),
}

_CARDS = {
    "a100-40gb": _Card(108, 64, 40 * _MIB, 1.41),
    "a100-80gb": _Card(108, 64, 40 * _MIB, 1.41),
    "h100": _Card(132, 128, 50 * _MIB, 1.98),
    "h200": _Card(132, 128, 50 * _MIB, 1.98),
    "b200": _Card(148, 128, 132644864, 1.965),
    "l4": _Card(58, 128, 48 * _MIB, 2.04),
    "l40s": _Card(142, 128, 96 * _MIB, 2.52),
    "a10g": _Card(80, 128, 6 * _MIB, 1.71),
    "rtx4090": _Card(128, 128, 72 * _MIB, 2.52),
    "a6000": _Card(84, 128, 6 * _MIB, 1.8),
    "v100": _Card(80, 64, 6 * _MIB, 1.53),
    "t4": _Card(40, 64, 4 * _MIB, 1.59),
}

_TEXT = """\
gpu_device_info {{
  threads_per_block_limit: 1024
  threads_per_warp: 32
  shared_memory_per_block: 49152
  shared_memory_per_core: {shared}
  shared_memory_per_block_optin: {shared_a_block}
  threads_per_core_limit: {threads}
  core_count: {cores}
  fpus_per_core: {fpus}
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  thread_dim_limit_x: 1024
  thread_dim_limit_y: 1024
  thread_dim_limit_z: 64
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
  memory_bandwidth: {bandwidth}
  l2_cache_size: {l2}
  clock_rate_ghz: {clock}
  device_memory_size: {memory}
  cuda_compute_capability {{ major: {major} minor: {minor} feature_extension: {features} }}
  name: "{name}"
  driver_version: "13.0.0"
  runtime_version: "12.8.0"
  compile_time_toolkit_version: "12.8.0"
  dnn_version: "9.10.0"
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 10 patch: 0 }}
device_description_str: "{name}"
"""


def target_config(chip: Chip) -> str:
    """Returns the text of XLA's ``GpuTargetConfigProto`` for a card."""
    assert chip.capability is not None and chip.bandwidth is not None
    card, architecture = _CARDS[chip.name], _ARCHITECTURES[chip.capability]
    major, minor = chip.capability
    return _TEXT.format(
        shared=architecture.shared_bytes,
        shared_a_block=architecture.shared_bytes_a_block,
        threads=architecture.threads,
        cores=card.cores,
        fpus=card.fpus,
        bandwidth=int(chip.bandwidth),
        l2=card.l2_bytes,
        clock=card.clock_ghz,
        memory=chip.memory_bytes,
        major=major,
        minor=minor,
        # Instructions of this one architecture (wgmma), which later ones do not keep.
        features="ACCELERATED_FEATURES" if major >= 9 else "NONE",
        name=chip.device_kinds[0],
    )
