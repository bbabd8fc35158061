"""Messages between devices, read from compiled programs."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from tunekit.planning.collectives import collectives

ON_FOUR_DEVICES = """
import json, jax, jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec as P
from tunekit.planning.collectives import collectives

mesh = jax.make_mesh((4,), ("d",))

def loss(kernels, x):
    def layer(x, kernel):
        return jnp.tanh(x @ kernel), None
    return jnp.mean(jax.lax.scan(layer, x, kernels)[0] ** 2)

rows, whole = NamedSharding(mesh, P("d")), NamedSharding(mesh, P())
kernels = jax.ShapeDtypeStruct((6, 32, 32), jnp.float32, sharding=whole)
x = jax.ShapeDtypeStruct((8, 32), jnp.float32, sharding=rows)
step = jax.jit(jax.value_and_grad(loss), out_shardings=(whole, whole))
compiled = step.lower(kernels, x).compile()
print(json.dumps(collectives(compiled.as_text())))
"""

TPU_TEXT = """\
HloModule jit_f, is_scheduled=true

%all-reduce-scatter.1 (input: bf16[1024,64]) -> bf16[128,64] {
  %input = bf16[1024,64]{1,0:T(8,128)(2,1)} parameter(0)
  %all-reduce.5 = bf16[1024,64]{1,0:T(8,128)} all-reduce(%input), replica_groups={{0,1,2,3,4,5,6,7}}
  ROOT %dynamic-slice.39 = bf16[128,64]{1,0} dynamic-slice(%all-reduce.5, %a, %b)
}

%body.1 (wide: (s32[], bf16[128,64], /*index=2*/bf16[1024,64])) -> (s32[], bf16[128,64]) {
  %all-gather.10 = bf16[1,1024,64]{2,1,0} all-gather(%x), replica_groups=mesh['axis_0'=8] {'axis_0'}
  %fusion.43 = bf16[128,64]{1,0} fusion(%fusion.42), kind=kCustom, calls=%all-reduce-scatter.1
}

%condition.1 (wide: (s32[], bf16[128,64])) -> pred[] {
  %constant.70 = s32[]{:T(128)} constant(6)
  ROOT %lt.7 = pred[]{:T(512)} compare(%i, %constant.70), direction=LT
}

ENTRY %main (p: bf16[128,64]) -> f32[] {
  %while.1 = (s32[], /*index=1*/bf16[128,64]) while(%t), condition=%condition.1, body=%body.1
  ROOT %all-reduce.2 = f32[] all-reduce(%sum), replica_groups={{0,1,2,3,4,5,6,7}}, to_apply=%add
}
"""

GPU_TEXT = """\
%body (p: (s32[], f32[8])) -> (s32[], f32[8]) {
  %ag = (bf16[256,64]{1,0}, bf16[1024,64]{1,0}) all-gather-start(%p), replica_groups={{0,1,2,3}}
  %agd = bf16[1024,64]{1,0} all-gather-done(%ag)
  %rs = ((bf16[1024,64]{1,0}), bf16[256,64]{1,0}) reduce-scatter-start(%g), to_apply=%add
  %sync = f32[4]{0} reduce-scatter(%h), replica_groups=[2,4]<=[8], dimensions={0}
}

ENTRY %main (p: f32[8]) -> f32[] {
  %w = (s32[], f32[8]) while(%t), body=%body, backend_config={"known_trip_count":{"n":"5"}}
  %ar = (f32[], f32[16]{0}) all-reduce-start(%a, %b), replica_groups={{0,1,2,3}}
}
"""


def test_a_data_parallel_step_reduces_each_gradient() -> None:
    flags = "--xla_force_host_platform_device_count=4"
    settings = {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", ON_FOUR_DEVICES]
    done = subprocess.run(command, env=settings, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    found = {each["kind"]: each for each in json.loads(done.stdout)}
    # Six kernels of 32 x 32 float32, and the loss.
    assert found["all-reduce"]["bytes"] == 6 * 32 * 32 * 4 + 4
    assert set(found) == {"all-reduce"}


def test_a_tpu_program_counts_loops_and_its_fused_reduce_scatter() -> None:
    array = 1024 * 64 * 2
    assert collectives(TPU_TEXT) == [
        {"kind": "all-reduce", "count": 1, "bytes": 4},
        {"kind": "all-gather", "count": 6, "bytes": 6 * array},
        {"kind": "reduce-scatter", "count": 6, "bytes": 6 * array},
    ]


def test_a_gpu_program_counts_asynchronous_messages_once() -> None:
    array = 1024 * 64 * 2
    assert collectives(GPU_TEXT) == [
        {"kind": "all-reduce", "count": 1, "bytes": 4 + 16 * 4},
        {"kind": "all-gather", "count": 5, "bytes": 5 * array},
        {"kind": "reduce-scatter", "count": 10, "bytes": 5 * (array + 4 * 4 * 4)},
    ]


@pytest.mark.parametrize("text", ["", "HloModule jit_f\n\nENTRY %main () -> f32[] {\n}\n"])
def test_a_program_of_one_device_has_none(text: str) -> None:
    assert collectives(text) == []
