"""Meshes as recipes ask for them, and what does not fit them."""

from __future__ import annotations

from pathlib import Path

import pytest

from tunekit.errors import RecipeError
from tunekit.training.layout import MeshSizes, check_batch, mesh_sizes
from tunekit.training.spec import MeshSpec


@pytest.mark.parametrize(
    ("asked", "devices", "sizes"),
    [
        ("one", 8, MeshSizes()),
        ("data", 8, MeshSizes(data=8)),
        ("fsdp", 4, MeshSizes(fsdp=4)),
        ("tensor", 2, MeshSizes(tensor=2)),
        ("auto", 1, MeshSizes()),
        (MeshSpec(fsdp=4), 8, MeshSizes(2, 4)),
        (MeshSpec(tensor=2), 8, MeshSizes(4, 1, 2)),
        (MeshSpec(data=2, fsdp=2, tensor=2), 8, MeshSizes(2, 2, 2)),
    ],
)
def test_a_mesh_takes_all_devices(asked, devices: int, sizes: MeshSizes) -> None:
    assert mesh_sizes(asked, devices) == sizes


def test_auto_is_left_to_be_chosen_where_there_are_several_devices() -> None:
    assert mesh_sizes("auto", 8) is None


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        (MeshSpec(data=2, fsdp=2), r"data 2 x fsdp 2 x tensor 1 is not 8.*one of 1, 2, 4, 8"),
        (MeshSpec(fsdp=3), r"fsdp 3 x tensor 1 is not 8"),
        (MeshSpec(fsdp=16), r"fsdp 16 x tensor 1 is not 8"),
    ],
)
def test_a_mesh_of_another_number_of_devices_is_refused(asked: MeshSpec, told: str) -> None:
    with pytest.raises(RecipeError, match=told):
        mesh_sizes(asked, 8)


def test_a_batch_that_divides_passes() -> None:
    check_batch("batch", 32, 2, MeshSizes(data=2, fsdp=4, tensor=3))


@pytest.mark.parametrize(
    ("size", "accumulate", "near"),
    [(30, 1, "24 or 32"), (4, 1, "8"), (20, 2, "16 or 32"), (33, 4, "32 or 64")],
)
def test_a_batch_that_does_not_divide_is_refused_with_the_nearest(
    size: int, accumulate: int, near: str
) -> None:
    with pytest.raises(RecipeError, match=rf"batch.size: {size} .*nearest that do: {near}\."):
        check_batch("batch", size, accumulate, MeshSizes(data=2, fsdp=4))


def test_the_page_shows_the_refusal_of_a_batch_as_it_is() -> None:
    page = (Path(__file__).parents[3] / "docs" / "devices.md").read_text(encoding="utf-8")
    with pytest.raises(RecipeError) as refused:
        check_batch("batch", 30, 1, MeshSizes(fsdp=8))
    assert str(refused.value.issues[0]) in page
