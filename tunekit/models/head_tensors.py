"""A head as torch keeps it, for PEFT's files, and back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from tunekit.errors import ModelError
from tunekit.methods.peft_names import family_of
from tunekit.models.adapters import SavedHead
from tunekit.models.spec import HeadSpec

if TYPE_CHECKING:
    from tunekit.models.model import Model

_LOGITS = "heads/label/logits/"


def head_tensors(model: Model, head: SavedHead) -> dict[str, np.ndarray]:
    """Returns the head's tensors under the names of the family's classifier on Hugging Face.

    Empty for a head that has no such form (several layers, cosine): tunekit's own file has it.
    """
    names = family_of(model.backbone.family).head
    plain = {f"{_LOGITS}kernel", f"{_LOGITS}bias"}
    if len(names) != 1 or not set(head.values) <= plain or head.spec.kind != "linear":
        return {}
    found = {f"{names[0]}.weight": np.asarray(head.values[f"{_LOGITS}kernel"]).T}
    if f"{_LOGITS}bias" in head.values:
        found[f"{names[0]}.bias"] = np.asarray(head.values[f"{_LOGITS}bias"])
    return found


def saved_head(model: Model, tensors: Mapping[str, np.ndarray]) -> SavedHead:
    """Returns the head that PEFT's tensors are: linear, with the model's labels where they fit.

    Raises:
        ModelError: they are no linear classifier on this backbone's features.
    """
    names = family_of(model.backbone.family).head
    wanted = {f"{names[0]}.weight", f"{names[0]}.bias"}
    weight = tensors.get(f"{names[0]}.weight")
    if weight is None or len(names) != 1 or not set(tensors) <= wanted:
        raise ModelError(
            f"expected a linear head ({', '.join(sorted(wanted))}) in the adapter, got "
            f"{', '.join(sorted(tensors))}; give the model that head first and load the adapter "
            "without it (delete the tensors)."
        )
    labels = model.labels
    if len(labels) != len(weight):
        labels = tuple(str(index) for index in range(len(weight)))
    bias = tensors.get(f"{names[0]}.bias")
    values: dict[str, Any] = {f"{_LOGITS}kernel": weight.T}
    if bias is not None:
        values[f"{_LOGITS}bias"] = bias
    same = model.head_spec.kind == "linear"
    pooling = model.head_spec.pooling if same else "auto"
    return SavedHead(labels, HeadSpec(pooling=pooling, bias=bias is not None), False, values)
