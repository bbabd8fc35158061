"""An adapter in a folder: PEFT's two files where PEFT knows the method, and tunekit's beside them.

``tunekit.json`` holds what PEFT has no word for: the whole spec, the head's labels, samples of the
network that it was trained on, and the recipe. PEFT and what reads its files pass over it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import safetensors.numpy

from tunekit.errors import ModelError
from tunekit.folder import (
    listed,
    mismatches,
    read_json,
    read_tensors,
    replacing,
    write_json,
)
from tunekit.methods.adapter import Adapter, leaves_of
from tunekit.methods.attach import attach
from tunekit.methods.part import Part
from tunekit.methods.part_files import (
    parts_from_json,
    parts_to_json,
    spec_from_json,
    spec_to_json,
)
from tunekit.methods.peft_export import Origin, to_peft
from tunekit.methods.peft_files import CONFIG, TENSORS, PeftFiles, read_peft, write_peft
from tunekit.methods.peft_import import to_leaves
from tunekit.methods.peft_names import is_known
from tunekit.methods.spec import IA3, AdapterSpec, LoRA, VeRA
from tunekit.methods.vera import SHARED
from tunekit.models.adapters import Entry, SavedHead, described_head, head_from_json
from tunekit.models.head_tensors import head_tensors, saved_head
from tunekit.models.targets import places_of

if TYPE_CHECKING:
    from tunekit.models.model import Model

OWN, OWN_TENSORS = "tunekit.json", "tunekit.safetensors"
MARKS = (OWN, CONFIG)
FORMAT = 1
_SAMPLES = 4
"""Values kept of each variable, to tell one network's weights from another's."""
_LARGEST_DIFFERENCE = 0.02
"""Of the samples, as a fraction of their norm: ten times what bfloat16 takes away."""


def save(
    model: Model, entry: Entry, head: SavedHead | None, folder: Path, recipe: Any = None
) -> Path:
    """Writes an adapter with its head; the folder appears whole, read back and compared, or not.

    Args:
        model: whose adapter it is.
        entry: the adapter.
        head: that it was trained with.
        folder: where.
        recipe: of the run that trained it, in JSON's types.

    Raises:
        ModelError: the folder holds other things than an adapter, or what was written reads back
            as something else.
    """
    folder = folder.expanduser().resolve()
    names = (CONFIG, TENSORS, OWN, OWN_TENSORS)
    with replacing(folder, names, marks=MARKS) as new:
        adapter = entry.adapter
        values = {name: np.asarray(value) for name, value in adapter.values().items()}
        as_peft = _as_peft(model, adapter, values, head)
        if as_peft is not None:
            write_peft(new, as_peft)
        own = {n: np.asarray(v) for n, v in head.values.items()} if head else {}
        if as_peft is None:  # What PEFT's files say is not said twice.
            own |= {f"adapter/{name}": value for name, value in values.items()}
        contiguous = {name: np.array(value, order="C") for name, value in own.items()}
        safetensors.numpy.save_file(contiguous, new / OWN_TENSORS, metadata={"format": "tunekit"})
        description = {
            "format": FORMAT,
            "spec": spec_to_json(adapter.spec),
            "parts": None if as_peft is not None else parts_to_json(adapter.parts),
            "base": {
                "source": model.backbone.source,
                "family": model.backbone.family,
                "samples": _samples(model),
            },
            "head": None if head is None else described_head(head),
            "recipe": recipe,
        }
        write_json(new / OWN, description)
        _check_written(model, adapter, new)
    return folder


@dataclass(frozen=True, eq=False)
class Loaded:
    """What a folder holds, made to fit the model."""

    adapter: Adapter
    head: SavedHead | None


def load(model: Model, folder: Path, *, check_base: bool = True) -> Loaded:
    """Returns the adapter of a folder that `save` or PEFT wrote.

    Args:
        model: the network it is for.
        folder: where it is.
        check_base: whether the weights must be those that it was trained on.

    Raises:
        ModelError: the folder holds no adapter, or one of another network; the message names the
            tensors that are missing, too many or of other shapes.
    """
    folder = folder.expanduser()
    own = read_json(folder / OWN) if (folder / OWN).is_file() else None
    if own is not None and own.get("format", 0) > FORMAT:
        raise ModelError(f"{folder} was written by a newer tunekit; upgrade to read it.")
    if own is not None and check_base:
        _check_base(model, folder, own["base"])
    tensors = read_tensors(folder / OWN_TENSORS) if own is not None else {}
    if own is not None and own["parts"] is not None:
        return Loaded(_from_parts(model, folder, own, tensors), _own_head(own, tensors))
    files = read_peft(folder)
    imported = to_leaves(files, model.backbone.family, places_of(model, ()))
    spec: AdapterSpec = imported.spec
    if own is not None:
        spec = _kept_spec(spec_from_json(own["spec"]), spec)
    adapter = _filled(model, imported.spec, spec, imported.leaves)
    if own is not None:
        return Loaded(adapter, _own_head(own, tensors))
    head = saved_head(model, imported.head) if imported.head else None
    return Loaded(adapter, head)


def _as_peft(
    model: Model, adapter: Adapter, values: Mapping[str, np.ndarray], head: SavedHead | None
) -> PeftFiles | None:
    """The adapter in PEFT's terms; `None` where PEFT has none for the method or the family."""
    spec = adapter.spec
    if not isinstance(spec, LoRA | IA3 | VeRA) or not is_known(model.backbone.family):
        return None
    backbone = model.backbone
    is_decoder = backbone.features == "decoder_states"  # An encoder's head is for hidden tokens.
    causal = is_decoder and backbone.language_head is not None and head is None
    origin = Origin(backbone.source, "CAUSAL_LM" if causal else None)
    named = head_tensors(model, head) if head is not None else {}
    return to_peft(
        spec, values, model.backbone.family, places_of(model, ()), origin=origin, head=named
    )


def _filled(
    model: Model, shaped: AdapterSpec, spec: AdapterSpec, leaves: Mapping[str, np.ndarray]
) -> Adapter:
    """A fresh adapter of the spec `shaped` on the layers that have leaves, holding the leaves."""
    places = {
        name.rpartition("/")[0].removeprefix(f"{SHARED}/"): None
        for name in leaves
        if not name.endswith(("/bias", "/bias_scaling"))  # Not only targets have those.
    }
    targets = tuple(place for place in places if place != SHARED)
    adapter = attach(shaped, places_of(model, targets))
    for name, value in leaves.items():
        adapter.variables[name].assign(value)
    return replace(adapter, spec=spec)


def _kept_spec(own: AdapterSpec, imported: AdapterSpec) -> AdapterSpec:
    """What the user said of it, where PEFT's files have not been changed since."""
    same = isinstance(own, type(imported))
    if same and isinstance(own, LoRA) and isinstance(imported, LoRA):
        same = (own.rank, own.alpha, own.dora) == (imported.rank, imported.alpha, imported.dora)
    return own if same else imported


def _from_parts(
    model: Model, folder: Path, own: Mapping[str, Any], tensors: Mapping[str, np.ndarray]
) -> Adapter:
    parts = parts_from_json(own["parts"])
    _check_places(model, folder, parts)
    found = {n.removeprefix("adapter/"): t for n, t in tensors.items() if n.startswith("adapter/")}
    if wrong := mismatches(found, leaves_of(parts)):
        raise ModelError(f"{folder / OWN_TENSORS} is not whole:\n  {listed(wrong)}")
    adapter = Adapter.blank(spec_from_json(own["spec"]), parts)
    for name, variable in adapter.variables.items():
        variable.assign(found[name])
    return adapter


def _check_places(model: Model, folder: Path, parts: tuple[Part, ...]) -> None:
    places = {layer for part in parts for layer in part.layers}
    if missing := sorted(places - model._inference.layers.keys()):
        raise ModelError(
            f"{folder} does not fit this '{model.backbone.family}', which lacks layers that it "
            f"sits on:\n  {listed(missing)}"
        )


def _own_head(own: Mapping[str, Any], tensors: Mapping[str, np.ndarray]) -> SavedHead | None:
    if own["head"] is None:
        return None
    return head_from_json(own["head"], {n: t for n, t in tensors.items() if n.startswith("heads/")})


def _samples(model: Model) -> dict[str, list[float]]:
    """A few values of each of the network's weights that no quantisation touches."""
    found = {}
    for name, variable in model._inference.variables.items():
        if name.startswith("backbone/") and "float" in variable.dtype:
            value = model.adapters.before_merge.get(name, variable.value).reshape(-1)
            places = np.linspace(0, value.size - 1, min(_SAMPLES, value.size)).astype(int)
            found[name] = np.asarray(value[places], np.float32).tolist()
    return found


def _check_base(model: Model, folder: Path, base: Mapping[str, Any]) -> None:
    ours, theirs = _samples(model), base["samples"]
    shared = [name for name in theirs if name in ours and len(ours[name]) == len(theirs[name])]
    before = np.concatenate([np.asarray(theirs[name]) for name in shared] or [np.ones(1)])
    now = np.concatenate([np.asarray(ours[name]) for name in shared] or [np.zeros(1)])
    apart = float(np.linalg.norm(now - before) / max(np.linalg.norm(before), 1e-12))
    if base["family"] == model.backbone.family and apart <= _LARGEST_DIFFERENCE:
        return
    raise ModelError(
        f"{folder} was trained on {base['source']!r} (a '{base['family']}'), and the weights of "
        f"this model, {model.backbone.source!r} (a '{model.backbone.family}'), are others: they "
        f"differ by {apart:.1%}. Load that model, or pass check_base=False to try it on this one."
    )


def _rounding(name: str) -> float:
    """What a leaf may lose: PEFT keeps a bias whole, of which the difference comes back rounded."""
    return 1e-6 if name.endswith("/bias") else 0.0


def _check_written(model: Model, adapter: Adapter, folder: Path) -> None:
    """Passes where the folder reads back as an adapter that computes the same.

    Equal parts and equal values are one program on the same numbers. Where the file's form is
    another one (a PiSSA is a LoRA of twice the rank there), kernels are compared.
    """
    back = load(model, folder).adapter
    if back.parts == adapter.parts:
        differing = [
            name
            for name, variable in adapter.variables.items()
            if adapter.roles[name] != "seed"
            and not np.allclose(variable.value, back.variables[name].value, 0, _rounding(name))
        ]
        if differing:
            raise ModelError(f"it reads back with other values:\n  {listed(differing)}")
        return
    layers, weights = model._inference.layers, model._inference.values()
    one, other = (each.merged(layers, weights, each.values()) for each in (adapter, back))
    differing = sorted(one.keys() ^ other.keys()) + [
        name
        for name in one.keys() & other.keys()
        if not np.allclose(one[name], other[name], 1e-4, 1e-5)
    ]
    if differing:
        raise ModelError(f"it reads back as another update of:\n  {listed(differing)}")
