"""Heads of token models: pooling without padding, and the classifiers of Hugging Face's folders.

The expected logits are of tests/reference/make_text_references.py. Float32 sums in another order
differ by about 1e-6; a wrong activation, a missing layer or another token shows from 1e-2 up.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jax
import keras
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tests.reference import text_folders as text
from tunekit.errors import ModelError
from tunekit.models.loading import load_model
from tunekit.models.model import Model
from tunekit.models.spec import HeadSpec

ITEMS = {"token_ids": text.TOKEN_IDS, "padding_mask": text.PADDING_MASK}
LABELS = ["dull", "plain", "bright"]


def load(name: str, folder: Path, **options: Any) -> Model:
    return load_model(text.write(name, folder), **options)


def change_tensors(folder: Path, change: dict[str, np.ndarray | None]) -> None:
    tensors: dict[str, Any] = {**load_file(folder / "model.safetensors"), **change}
    kept = {name: value for name, value in tensors.items() if value is not None}
    save_file(kept, folder / "model.safetensors")


@pytest.mark.parametrize("name", text.CLASSIFIERS)
def test_a_classifier_of_texts_gives_the_logits_of_transformers(name: str, tmp_path: Path) -> None:
    model = load(name, tmp_path)
    assert model.labels == tuple(LABELS)
    expected = np.load(text.EXPECTED)[f"{name}/logits"]
    assert expected.shape == (2, 3) and np.ptp(expected) > 1
    np.testing.assert_allclose(model.logits(ITEMS), expected, rtol=1e-5, atol=1e-5)
