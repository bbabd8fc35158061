"""A head as torch keeps it, for PEFT's files, and back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from tunekit.errors import ModelError, did_you_mean
from tunekit.folder import listed
from tunekit.models.adapters import SavedHead
from tunekit.models.backbone import Backbone
from tunekit.models.head_names import POOLER, HeadNames, head_names
from tunekit.models.heads import pooling_kind
from tunekit.models.spec import HeadSpec

if TYPE_CHECKING:
    from tunekit.models.model import Model

_PREFIX = "heads/label/"
_NO_POOLER = " without a pooler (load the folder of a BERT that holds one, as a base does)"


def head_tensors(model: Model, head: SavedHead) -> dict[str, np.ndarray]:
    """Returns the head's tensors as Hugging Face's classifier of the family has them.

    "classifier.weight" [C, D], say; of a BERT also its pooler, where it is not the base's. Empty
    for a head that the family's classifier cannot be: tunekit's own file has it, and `unlike` says
    why.

    Raises:
        ModelError: the classifier of this family is not known.
    """
    names = head_names(model.backbone.family)
    if unlike(model.backbone, head.spec):
        return {}
    found = {t: np.asarray(head.values[name]).T for name, t in _tensors(names).items()}
    base = _own_pooler(model.backbone)
    if base and all(np.array_equal(found[name], value) for name, value in base.items()):
        found = {name: value for name, value in found.items() if name not in base}
    return found


def unlike(backbone: Backbone, spec: HeadSpec) -> str:
    """Returns what sets a head apart from Hugging Face's classifier of the family; or "".

    Raises:
        ModelError: the classifier of this family is not known.
    """
    theirs = head_names(backbone.family).spec(backbone.dim)
    ours = _resolved(backbone, spec)
    differs = [
        f"{field}={getattr(ours, field)!r} where it has {getattr(theirs, field)!r}"
        for field in ("kind", "pooling", "hidden", "activation", "bias")
        if getattr(ours, field) != getattr(theirs, field)
    ]
    if not differs:
        return ""
    return (
        f"the head is not the classifier that Hugging Face has for a '{backbone.family}': "
        f"{', '.join(differs)}. A head that is: {theirs}."
    )


def saved_head(model: Model, tensors: Mapping[str, np.ndarray]) -> SavedHead:
    """Returns the head that these tensors are, with the model's labels where their number fits.

    BERT's pooler is the base's own where the tensors leave it out, as PEFT's files do.

    Args:
        model: whose backbone it stands on.
        tensors: as Hugging Face's classifier of the family has them: "classifier.weight" [C, D].

    Raises:
        ModelError: tensors are missing, too many or of other shapes: they are named.
    """
    backbone = model.backbone
    names = head_names(backbone.family)
    given = {**_own_pooler(backbone), **tensors}
    _check(backbone, names, given)
    count = len(given[f"{names.logits}.weight"])
    # The model's own way to write the same, and with it the graph that it has.
    same = not unlike(backbone, model.head_spec)
    spec = model.head_spec if same else names.spec(backbone.dim)
    fits = len(model.labels) == count
    labels = model.labels if fits else tuple(str(index) for index in range(count))
    values: Any = {name: given[tensor].T for name, tensor in _tensors(names).items()}
    return SavedHead(labels, spec, fits and model.multi_label, values)


def _tensors(names: HeadNames) -> dict[str, str]:
    """The tensor that each variable of the head is; the order of their axes is turned."""
    layers = {"hidden_0": names.hidden, "logits": names.logits}
    found = {
        f"{_PREFIX}{layer}/{ours}": f"{module}.{theirs}"
        for layer, module in layers.items()
        for ours, theirs in (("kernel", "weight"), ("bias", "bias"))
        if module
    }
    if not names.bias:
        del found[f"{_PREFIX}logits/bias"]
    return found


def _resolved(backbone: Backbone, spec: HeadSpec) -> HeadSpec:
    """The spec with what its defaults stand for."""
    kind = pooling_kind(spec.pooling, backbone.features, backbone.prefix_tokens)
    return replace(spec, pooling=kind, hidden=spec.widths)


def _own_pooler(backbone: Backbone) -> dict[str, np.ndarray]:
    layer = backbone.pooler
    if layer is None:
        return {}
    return {f"{POOLER.hidden}.weight": layer.kernel.T, f"{POOLER.hidden}.bias": layer.bias}


def _check(backbone: Backbone, names: HeadNames, tensors: Mapping[str, np.ndarray]) -> None:
    wanted = list(_tensors(names).values())
    wrong = [f"missing: {name}" for name in wanted if name not in tensors]
    wrong += [
        f"unexpected: {name}.{did_you_mean(name, wanted)}" for name in tensors if name not in wanted
    ]
    dim = backbone.dim
    logits = tensors.get(f"{names.logits}.weight")
    count = "C" if logits is None or logits.ndim != 2 else len(logits)
    shapes = {names.logits: [count, 2 * dim if names.pooling == "token+avg" else dim]}
    if names.hidden:
        shapes[names.hidden] = [dim, dim]
    for module, shape in shapes.items():
        for name, fits in ((f"{module}.weight", shape), (f"{module}.bias", shape[:1])):
            got = list(tensors[name].shape) if name in tensors else fits
            if got != fits:
                wrong.append(f"{name}: expected shape {fits}, got {got}")
    if wrong:
        hint = "" if backbone.pooler or names is not POOLER else _NO_POOLER
        raise ModelError(
            f"the adapter's head does not fit '{backbone.source}', a '{backbone.family}'{hint}:"
            f"\n  {listed(wrong)}"
        )
