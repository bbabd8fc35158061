"""Every shipped recipe lowers for TPU and CUDA, offline, on a machine that has neither."""

from __future__ import annotations

import pytest

from tunekit.planning.exporting import exported_phases
from tunekit.planning.hardware import target
from tunekit.planning.shapes import Planned, planned
from tunekit.recipe import Recipe
from tunekit.shipped import shipped_recipes

BLOCKS = {"vision/resnet50": 4}
"""Of the networks; two, but where a recipe trains the last ones by number."""


def shrunk(name: str) -> Planned:
    return planned(Recipe.load(name), examples=640, blocks=BLOCKS.get(name, 2))


def different(run: Planned) -> list[int]:
    """The phases that are programs of their own."""
    keys = run.programs().keys
    return [index for index, key in enumerate(keys) if key not in keys[:index]]


@pytest.mark.parametrize("name", list(shipped_recipes()))
def test_a_shipped_recipe_lowers_for_tpu_and_cuda(name: str) -> None:
    run = shrunk(name)
    phases = different(run)
    lowered = exported_phases(run, target("v5e-1"), platforms=["tpu", "cuda"], phases=phases)
    assert [phase.label for phase in lowered] == [run.phases[i].label for i in phases]
    for phase in lowered:
        assert phase.exported.platforms == ("tpu", "cuda")
        named = {each["name"] for each in phase.arguments}
        carried = {name for name in named if name.startswith("carried/")}
        assert carried == {name for name in phase.results if name.startswith("carried/")}
        assert any(name.startswith("carried/trainable/") for name in named)


BFLOAT16 = "backbone.dtype=mixed_bfloat16"


@pytest.mark.parametrize(
    ("card", "dtype", "flash"),
    [
        ("h100-1", BFLOAT16, True),
        ("a100-80gb-1", BFLOAT16, True),
        ("h100-1", "backbone.dtype=float32", False),
        ("v100-1", BFLOAT16, False),
    ],
)
def test_a_card_takes_cudnn_attention_where_it_would(card: str, dtype: str, flash: bool) -> None:
    run = planned(Recipe.load("llm/sft_lora", [dtype]), examples=640, blocks=2)
    (phase,) = exported_phases(run, target(card))
    assert ("__cudnn$fmhaScaleBiasSoftmaxBackward" in phase.exported.mlir_module()) == flash


def test_cudnn_trains_no_odd_number_of_tokens() -> None:
    # A ViT's patches and its token for the class: 197.
    (phase,) = exported_phases(shrunk("vision/vit"), target("h100-1"), phases=[1])
    assert "__cudnn" not in phase.exported.mlir_module()


@pytest.mark.parametrize("name", ["vision/vit", "llm/sft_lora"])
def test_a_recipe_lowers_for_a_slice_of_eight(name: str) -> None:
    run = shrunk(name)
    (phase,) = exported_phases(run, target("v5e-8"), phases=[0])
    assert phase.exported.nr_devices == 8
    rows = [each["sharding"] for each in phase.arguments if each["name"].startswith("batch/")]
    assert rows and all(spec[0] == ["data", "fsdp"] for spec in rows)
