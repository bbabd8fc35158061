"""Which mesh is chosen where a recipe leaves it open."""

import pytest

from tunekit.training.mesh_choice import choose_mesh

GB = 10**9


def chosen(state, activations, *, count=8, batch=32, device=16 * GB, **host):
    return choose_mesh(state, activations, device, count, batch, **host)


def test_what_fits_each_device_is_replicated_and_the_batch_split():
    assert chosen(4 * GB, 8 * GB) == {"data": 8, "fsdp": 1, "tensor": 1}


def test_one_device_splits_nothing():
    assert chosen(4 * GB, 8 * GB, count=1) == {"data": 1, "fsdp": 1, "tensor": 1}


def test_a_state_too_large_for_one_device_is_split():
    assert chosen(15 * GB, 8 * GB) == {"data": 1, "fsdp": 8, "tensor": 1}


def test_activations_count_by_the_share_of_a_device():
    assert chosen(10 * GB, 8 * 4 * GB)["data"] == 8
    assert chosen(10 * GB, 8 * 5 * GB)["fsdp"] == 8


def test_half_of_the_room_is_left_for_activations_that_nobody_knows():
    assert chosen(7 * GB, None)["data"] == 8
    assert chosen(8 * GB, None)["fsdp"] == 8


def test_a_tenth_of_a_device_is_left_alone():
    assert chosen(int(14.3 * GB), 0)["data"] == 8
    assert chosen(int(14.5 * GB), 0)["fsdp"] == 8


@pytest.mark.parametrize(("batch", "split"), [(4, 4), (6, 2), (3, 1), (12, 4)])
def test_devices_that_the_batch_does_not_divide_over_split_layers(batch, split):
    expected = {"data": 1, "fsdp": split, "tensor": 8 // split}
    assert chosen(40 * GB, GB, batch=batch) == expected
    assert chosen(GB, GB, batch=batch) == {**expected, "data": split, "fsdp": 1}


def test_a_layer_is_never_split_over_hosts():
    of_two_hosts = chosen(40 * GB, GB, count=16, batch=1, devices_of_host=8)
    assert of_two_hosts == {"data": 1, "fsdp": 2, "tensor": 8}
    of_single_devices = chosen(40 * GB, GB, count=8, batch=2, devices_of_host=1)
    assert of_single_devices == {"data": 1, "fsdp": 8, "tensor": 1}
