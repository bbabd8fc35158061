"""Writes text_shapes.json and text_expected.npz: what transformers computes in tiny token models.

Run from the repository root, in an environment with torch and transformers 5:

    PYTHONPATH=. python tests/reference/make_text_references.py [folder of all-MiniLM-L6-v2]
"""

from __future__ import annotations

import json
import re
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
import transformers

from tests.reference import text_folders as text

_CONFIGS = {**text.CONFIGS, **text.CLASSIFIERS}


def _model(name: str) -> torch.nn.Module:
    config = transformers.AutoConfig.for_model(**_CONFIGS[name])
    return getattr(transformers, _CONFIGS[name]["architectures"][0])(config)


def _answers(model: torch.nn.Module, ids: np.ndarray, mask: np.ndarray) -> dict[str, np.ndarray]:
    model.eval()
    inputs = {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(mask)}
    with torch.no_grad():
        answers = {"hidden": model.base_model(**inputs).last_hidden_state.numpy()}
        if re.search("CausalLM|LMHead|MaskedLM|SequenceClassification", type(model).__name__):
            answers["logits"] = model(**inputs).logits.numpy()
    return answers


def main() -> None:
    """Writes both files beside this one."""
    shapes = {}
    for name in _CONFIGS:
        model = _model(name)
        # Tied tensors are saved once.
        with tempfile.TemporaryDirectory() as scratch:
            model.save_pretrained(scratch)
            saved = transformers.modeling_utils.load_state_dict(f"{scratch}/model.safetensors")
        shapes[name] = {key: list(value.shape) for key, value in saved.items()}
    text.SHAPES.write_text(json.dumps(shapes, indent=0) + "\n")
    expected = {}
    for name in _CONFIGS:
        with tempfile.TemporaryDirectory() as scratch:
            folder = text.write(name, Path(scratch))
            architecture = getattr(transformers, _CONFIGS[name]["architectures"][0])
            model, info = architecture.from_pretrained(folder, output_loading_info=True)
        assert not any(info[key] for key in ("missing_keys", "unexpected_keys")), (name, info)
        for key, value in _answers(model, text.TOKEN_IDS, text.PADDING_MASK).items():
            expected[f"{name}/{key}"] = value
    if len(sys.argv) > 1:
        model = transformers.AutoModel.from_pretrained(sys.argv[1])
        answers = _answers(model, text.MINILM_IDS, (text.MINILM_IDS > 0).astype(int))
        expected["minilm/hidden"] = answers["hidden"]
    np.savez_compressed(text.EXPECTED, **expected)


if __name__ == "__main__":
    main()
