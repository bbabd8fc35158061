from __future__ import annotations

import numpy as np
import pytest

from tunekit.errors import DataError
from tunekit.evaluation.evaluate import collect_logits


def test_collected_logits_leave_padding_out_and_keep_the_order():
    batches = [
        {"image": np.asarray([[1.0], [2.0]]), "label": np.asarray([0, 1]), "weight": np.ones(2)},
        {"image": np.asarray([[3.0], [1.0]]), "label": np.asarray([2, 0]), "weight": [1.0, 0.0]},
    ]
    logits, labels = collect_logits(lambda images: np.hstack([images, -images]), batches)
    assert np.array_equal(logits, [[1, -1], [2, -2], [3, -3]])
    assert np.array_equal(labels, [0, 1, 2])
    assert logits.dtype == np.float32


def test_no_batch_is_an_error():
    with pytest.raises(DataError, match="at least one example"):
        collect_logits(lambda images: images, [])
