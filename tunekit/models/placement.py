"""Arrays on a mesh of devices, and whole again in this process' memory.

A program runs where its arguments lie: what is computed beside values that lie on a mesh is put
there too.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

MESH_AXES = ("data", "fsdp", "tensor")
"""Copies of the model; shares of its weights; shares of its products."""
BATCH_AXES = ("data", "fsdp")
"""The axes that share a batch."""


def placed(value: Any, sharding: NamedSharding) -> jax.Array:
    """Returns an array as it lies by `sharding`; the very array where it lies so already.

    Args:
        value: of NumPy or JAX, the same in every process of the run; or one that lies on the mesh.
        sharding: how it is to lie.
    """
    if isinstance(value, jax.Array):
        if value.sharding.is_equivalent_to(sharding, value.ndim):
            return value
        if not value.is_fully_addressable:
            return jax.jit(lambda x: x, out_shardings=sharding)(value)
        if jnp.issubdtype(value.dtype, jax.dtypes.prng_key):
            data = placed(jax.random.key_data(value), sharding)
            return jax.random.wrap_key_data(data, impl=jax.random.key_impl(value))
    if sharding.is_fully_addressable:
        return jax.device_put(value, sharding)
    whole = np.asarray(value)
    return jax.make_array_from_callback(whole.shape, sharding, lambda index: whole[index])


def fetched(value: Any) -> np.ndarray:
    """Returns the whole array in this process' memory; every process of the run asks for it."""
    if isinstance(value, jax.Array) and not value.is_fully_addressable:
        if not value.is_fully_replicated:
            mesh = mesh_of({"": value})
            assert mesh is not None
            value = placed(value, NamedSharding(mesh, PartitionSpec()))
        return np.asarray(value.addressable_data(0))
    return np.asarray(value)


def mesh_of(values: Mapping[str, Any]) -> Mesh | None:
    """Returns the mesh that the values lie on, where it is of several devices."""
    for value in values.values():
        sharding = getattr(value, "sharding", None)
        if isinstance(sharding, NamedSharding) and sharding.mesh.size > 1:
            mesh = sharding.mesh
            return mesh if isinstance(mesh, Mesh) else None
    return None


def beside(values: Mapping[str, Any], inputs: Any) -> Any:
    """Returns the inputs of a program where its `values` lie: unchanged but on a mesh.

    There each device gets its rows; where their number does not divide, all get all of them.
    """
    mesh = mesh_of(values)
    if mesh is None:
        return inputs
    shards = mesh.shape["data"] * mesh.shape["fsdp"]

    def put(array: Any) -> jax.Array:
        spec = PartitionSpec(BATCH_AXES) if len(array) % shards == 0 else PartitionSpec()
        return placed(array, NamedSharding(mesh, spec))

    return jax.tree.map(put, inputs)


def in_host_memory() -> contextlib.AbstractContextManager[Any]:
    """Within the block new arrays are in the memory of the host, not of an accelerator.

    A model that several devices share may be larger than the memory of any.
    """
    try:
        host = jax.local_devices(backend="cpu")[0]
    except RuntimeError:  # JAX was told to know no CPU.
        return contextlib.nullcontext()
    return jax.default_device(host)
