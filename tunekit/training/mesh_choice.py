"""Which mesh "auto" means: the simplest that a model's state and a batch's activations fit in."""

from __future__ import annotations

ROOM = 0.9
"""Share of a device's memory that may be planned for; the rest is the runtime's and chance's."""
DEVICES_OF_HOST = 8
"""Devices that are linked closely, where nothing else is known of them."""


def choose_mesh(
    state_bytes: int,
    activations: int | None,
    device_bytes: int,
    count: int,
    batch: int,
    *,
    devices_of_host: int = DEVICES_OF_HOST,
) -> dict[str, int]:
    """Returns the size of each mesh axis: "data", "fsdp", "tensor"; their product is `count`.

    Data parallel where each device has room for all of the state beside its share of the
    activations; else the state is split as well ("fsdp"). Devices that the batch does not divide
    over split the layers themselves ("tensor"), within a host alone: beyond one, the mesh is of
    more parts than the batch has, and it is the batch that must change.

    Args:
        state_bytes: of weights, gradients and optimizer in all.
        activations: bytes of what a step keeps besides, for the whole (micro-)batch on one device;
            `None` where it is not known: half of the room is left for them.
        device_bytes: memory of one device.
        count: devices.
        batch: examples of a (micro-)batch.
        devices_of_host: devices of one host, over which a layer may be split.

    Example:
        >>> choose_mesh(16 * 10**9, None, 17 * 10**9, count=8, batch=32)
        {'data': 1, 'fsdp': 8, 'tensor': 1}
    """
    split = _parts_of_batch(count, batch, devices_of_host)
    room = ROOM * device_bytes
    needed = room / 2 if activations is None else activations / split
    is_replicated = state_bytes + needed <= room
    of_batch = {"data": split, "fsdp": 1} if is_replicated else {"data": 1, "fsdp": split}
    return {**of_batch, "tensor": count // split}


def _parts_of_batch(count: int, batch: int, devices_of_host: int) -> int:
    """The most parts that `count` and `batch` divide into, what is left being within a host."""
    near = [n for n in range(1, count + 1) if count % n == 0 and count // n <= devices_of_host]
    even = [n for n in near if batch % n == 0]
    return max(even) if even else min(near)
