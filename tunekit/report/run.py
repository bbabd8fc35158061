"""What a run stood on and what it cost, as JSON: kept beside the weights."""

from __future__ import annotations

import math
import os
from collections.abc import Collection, Mapping, Sequence
from importlib import metadata
from typing import Any

import jax
import numpy as np

from tunekit import __version__
from tunekit.data.source import Source, Splits
from tunekit.distributed import process_count
from tunekit.folder import plain
from tunekit.methods.spec import shortest
from tunekit.models.merging import packed_kernels
from tunekit.models.model import Model

PACKAGES = ("keras", "keras-hub", "jax", "numpy")
"""What decides the numbers of a run, besides tunekit."""


def versions() -> dict[str, str]:
    """Returns the version of every package that decides the numbers."""
    others = {name.replace("-", "_"): metadata.version(name) for name in PACKAGES}
    return {"tunekit": __version__, **others}


def run_report(
    model: Model,
    splits: Splits,
    *,
    trained: Collection[str],
    seconds: float,
    compiles: int,
    phases: Sequence[Mapping[str, Any]],
    audit: Mapping[str, Any],
) -> dict[str, Any]:
    """Returns versions, device, data, parameters, phases and cost of a run.

    Args:
        model: after training.
        splits: what it was trained and judged on.
        trained: structural names of the variables that trained in any phase.
        seconds: of the whole run.
        compiles: programs compiled for training steps.
        phases: what became of each.
        audit: how far each part moved.
    """
    sizes = _parameters(model)
    moved = sum(sizes[name] for name in trained)
    device = jax.devices()[0]
    return {
        "versions": versions(),
        "device": {
            "platform": device.platform,
            "kind": device.device_kind,
            "count": jax.device_count(),
            "processes": process_count(),
            "cores": os.cpu_count(),
        },
        "data": {name: _source_report(source) for name, source in splits.items()},
        "parameters": {"trained": moved, "frozen": sum(sizes.values()) - moved},
        "adapters": [_adapter_report(model, name) for name in model.adapters.entries],
        "memory": _largest([phase.get("memory") or {} for phase in phases]),
        "seconds": seconds,
        "compiles": compiles,
        "phases": list(phases),
        "audit": dict(audit),
    }


def _parameters(model: Model) -> dict[str, int]:
    """How many numbers each variable holds; of packed kernels, how many their codes stand for."""
    packed = packed_kernels(model)
    codes = tuple(f"{name}_" for name in packed)
    whole = {n: v.shape for n, v in model.variables().items() if not n.startswith(codes)}
    return {name: math.prod(shape) for name, shape in {**whole, **packed}.items()}


def _adapter_report(model: Model, name: str) -> dict[str, Any]:
    """What is on the model under `name`; targets are the layers, none of the whole network."""
    adapter = model.adapters[name].adapter
    return {
        "name": name,
        "method": plain(shortest(adapter.spec)),
        "active": name in dict(model.adapters.active),
        "parameters": adapter.parameters,
        "targets": list(dict.fromkeys(layer for part in adapter.parts for layer in part.layers)),
    }


def _largest(memories: Sequence[Mapping[str, int | None]]) -> dict[str, int | None]:
    """The memory of the phase that held most."""
    return dict(max(memories, key=lambda m: sum(filter(None, m.values())), default={}))


def _source_report(source: Source) -> dict[str, Any]:
    labels, names = source.label_array, source.label_names
    counts: list[int] = []
    if source.multi_label:
        counts = (labels > 0.5).sum(axis=0).tolist()
    elif len(labels) == len(source) and labels.dtype.kind == "i":
        counts = np.bincount(labels, minlength=len(names)).tolist()
    known = names if counts else ()  # Of tags and numbers, an example has no one label.
    skipped = getattr(source, "skipped_count", 0)
    return {
        "fingerprint": source.fingerprint,
        "examples": len(source),
        "examples_by_label": dict(zip(known, counts, strict=True)),
        **({"skipped": skipped} if skipped else {}),
    }
