"""Each precision trains: a vision transformer and a Llama, close to what float32 gives."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.contract import text_families
from tests.contract.families import SIDE_PX, fixed, images
from tunekit.finetune import finetune
from tunekit.models import hub
from tunekit.models.spec import Dtype

TOLERANCE = {"float16": 0.02, "mixed_float16": 0.02, "bfloat16": 0.08, "mixed_bfloat16": 0.08}
"""Of the losses of two passes, relative: the formats have 11 and 8 bits of a fraction."""


def vit_losses(dtype: Dtype) -> list[float]:
    network = hub.keras_hub().models.ViTBackbone(
        image_shape=(SIDE_PX, SIDE_PX, 3),
        patch_size=16,
        num_layers=1,
        num_heads=2,
        hidden_dim=16,
        mlp_dim=32,
        dropout_rate=0.0,
    )
    result = finetune(
        fixed(network),
        images(),
        precision=dtype,
        train="all",
        epochs=2,
        learning_rate=1e-3,
        warmup="0%",
        batch_size=6,
        validation=0.0,
        progress="none",
    )
    return _losses(result)


def llama_losses(folder: Path, dtype: Dtype) -> list[float]:
    result = finetune(
        text_families.llama(folder / dtype),
        text_families.rows("sft"),
        task="sft",
        method="lora",
        precision=dtype,
        epochs=2,
        learning_rate=1e-3,
        warmup="0%",
        batch_size=4,
        validation=0.0,
        progress="none",
    )
    return _losses(result)


def _losses(result) -> list[float]:
    assert [phase["skipped_steps"] for phase in result.report["phases"]] == [0]
    assert result.report["unexpected_compiles"] == []
    return [row["loss"] for row in result.history]


@pytest.fixture(scope="module")
def exact(tmp_path_factory) -> dict[str, list[float]]:
    """The losses in float32."""
    return {
        "vit": vit_losses("float32"),
        "llama": llama_losses(tmp_path_factory.mktemp("exact"), "float32"),
    }


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_a_vision_transformer_trains_as_in_float32(exact, dtype):
    found = vit_losses(dtype)
    np.testing.assert_allclose(found, exact["vit"], rtol=TOLERANCE[dtype])
    assert found != exact["vit"]


@pytest.mark.parametrize("dtype", ["float16", "mixed_float16"])
def test_a_llama_under_lora_trains_as_in_float32(exact, dtype, tmp_path):
    found = llama_losses(tmp_path, dtype)
    np.testing.assert_allclose(found, exact["llama"], rtol=TOLERANCE[dtype])
    assert found != exact["llama"]
