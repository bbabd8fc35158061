"""Folders of timm and Hugging Face answer as their own libraries do, preprocessing included.

The answers were written by tests/reference/make_references.py in an environment with torch. Pixels
must be equal bit for bit. Logits may differ by 1e-4 of the largest logit: both sides compute in
float32 with sums in another order, which through dozens of layers leaves relative errors of about
1e-6; a wrong padding, epsilon, activation or interpolation shows from 1e-3 up. DINOv2's positions
are interpolated from 518 pixels to the 224 of its processor; "@160" asks for another size.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import keras
import numpy as np
import pytest
import sklearn.datasets
from PIL import Image

from tests.reference.folders import folder
from tunekit.models.backbone import Backbone
from tunekit.models.loading import load_backbone
from tunekit.models.spec import BackboneSpec

REFERENCE = Path(__file__).parents[1] / "reference"
EXPECTED = json.loads((REFERENCE / "expected.json").read_text())
IMAGES = Path(sklearn.datasets.__file__).parent / "images"
CASES = sorted({key.rpartition("/")[0] for key in EXPECTED["cases"]})


def answer(backbone: Backbone, pixels: np.ndarray) -> np.ndarray:
    """Logits of the pretrained classifier, or the class token where there is none: [C]."""
    images = backbone.preprocessing.normalise(pixels)[None]
    features = np.asarray(keras.ops.convert_to_numpy(backbone.keras(images)))[0]
    head = backbone.pretrained_head
    if head is None:
        return features[0]
    if backbone.features == "map":
        pooled = features.mean((0, 1))
    else:
        pooled = features[0]
        if head.pooling == "token+avg":
            pooled = np.concatenate([pooled, features[backbone.prefix_tokens :].mean(0)])
    return pooled @ head.kernel + head.bias


@pytest.mark.parametrize("case", CASES)
def test_pixels_and_logits_equal_the_original_library(case: str) -> None:
    name, _, size = case.partition("@")
    spec = BackboneSpec(image_size=int(size) if size else None)
    backbone = load_backbone(folder(name), spec)
    expected = np.load(REFERENCE / "expected.npz")
    for file, sha256 in EXPECTED["images"].items():
        data = (IMAGES / file).read_bytes()
        assert hashlib.sha256(data).hexdigest() == sha256, f"{file} is another file here"
        pixels = backbone.preprocessing.to_pixels(Image.open(IMAGES / file))
        wanted = EXPECTED["cases"][f"{case}/{file}"]
        assert list(pixels.shape) == wanted["shape"]
        digest = hashlib.sha256(np.ascontiguousarray(pixels)).hexdigest()
        assert digest == wanted["pixels_sha256"], f"pixels of {file} differ"
        logits = expected[f"{case}/{file}"]
        error = np.abs(answer(backbone, pixels) - logits).max() / np.abs(logits).max()
        print(f"{case}/{file}: {error:.1e} of the largest logit")
        assert error < 1e-4
