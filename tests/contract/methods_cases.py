"""Every method on every family where it is possible, as cases of the contract's tests."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.contract.methods_families import ALL
from tunekit.errors import ModelError, SelectionError
from tunekit.methods.spec import (
    IA3,
    Bottleneck,
    LoRA,
    Method,
    Plain,
    PrefixTuning,
    PromptTuning,
    VeRA,
    VisualPrompt,
    is_adapter,
)

METHODS: dict[str, Method] = {
    "lora": LoRA(rank=2),
    "rslora": LoRA(rank=2, rslora=True),
    "dora": LoRA(rank=2, dora=True),
    "lora+": LoRA(rank=2, b_rate=16.0),
    "pissa": LoRA(rank=2, init="pissa"),
    "olora": LoRA(rank=2, init="olora"),
    "orthogonal": LoRA(rank=2, init="orthogonal"),
    "eva": LoRA(rank=2, init="eva"),
    "biased": LoRA(rank=2, bias="all", dropout=0.3),
    "vera": VeRA(rank=4),
    "ia3": IA3(),
    "houlsby": Bottleneck(kind="houlsby", reduction=4, activation="gelu"),
    "pfeiffer": Bottleneck(kind="pfeiffer", reduction=4, activation="gelu"),
    "parallel": Bottleneck(kind="parallel", reduction=4, activation="gelu"),
    "prefix": PrefixTuning(length=2),
    "prompt": PromptTuning(length=2),
    "visual_prompt": VisualPrompt(length=2),
    "bitfit": Plain("bitfit"),
    "norm": Plain("norm"),
}
IMPOSSIBLE: dict[tuple[str, str], tuple[type[Exception], str]] = {
    ("vera", "resnet"): (SelectionError, "'auto' is query.*It has convolutions"),
    ("parallel", "resnet"): (ModelError, "runs beside an MLP.*'pfeiffer'"),
    ("prefix", "resnet"): (ModelError, "no attention"),
    ("prompt", "resnet"): (ModelError, "embedding"),
    ("prompt", "vit"): (ModelError, "embedding"),
    ("visual_prompt", "resnet"): (ModelError, "tokens"),
    ("visual_prompt", "bert"): (ModelError, "PromptTuning"),
    ("visual_prompt", "llama"): (ModelError, "PromptTuning"),
    ("bitfit", "llama"): (SelectionError, "'bitfit' trains none"),
}
MOVES_THE_START = ("prefix", "prompt", "visual_prompt")
"""Positions that are attended to change what comes out, whatever they hold."""
ROUNDED = ("dora", "pissa", "olora", "orthogonal")
"""Fresh, their effect cancels to rounding and not to the bit."""
UNMERGEABLE = ("houlsby", "pfeiffer", "parallel", *MOVES_THE_START)

CASES = [(m, f) for m in METHODS for f in ALL if (m, f) not in IMPOSSIBLE]
ADAPTED = [(m, f) for m, f in CASES if is_adapter(METHODS[m])]


def every(cases: list[tuple[str, str]]) -> Any:
    return pytest.mark.parametrize(("method", "family"), cases, ids=map("-".join, cases))


def assert_equal(left: dict[str, np.ndarray], right: dict[str, np.ndarray]) -> None:
    assert left.keys() == right.keys()
    for name in left:
        np.testing.assert_array_equal(left[name], right[name], err_msg=name)
