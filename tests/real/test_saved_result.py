"""A pretrained model saved here and loaded in a fresh process, without its preset."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from sklearn.datasets import load_sample_images

from tunekit.models.loading import load_model
from tunekit.result import Result
from tunekit.tasks.image_classification import ImageClassification

ROOT = Path(__file__).parents[2]

FRESH = """
import json, sys, tunekit
from sklearn.datasets import load_sample_images
result = tunekit.load(sys.argv[1])
predictions = result.predict(load_sample_images().images)
print(json.dumps([each.to_json() for each in predictions]))
"""


def test_a_pretrained_network_predicts_the_same_in_a_fresh_process(tmp_path):
    model = load_model("efficientnet_lite0")
    result = Result(model, {"seed": 0}, [], {}, {}, ImageClassification(model.labels))
    predictions = result.predict(load_sample_images().images)
    assert predictions[1].label == "daisy"  # the second sample photo is of a flower
    fresh = subprocess.run(
        [sys.executable, "-c", FRESH, str(result.save(tmp_path / "out"))],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        check=False,
    )
    assert fresh.returncode == 0, fresh.stderr
    assert json.loads(fresh.stdout) == [each.to_json() for each in predictions]
