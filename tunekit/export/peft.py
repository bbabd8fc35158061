"""An adapter as Hugging Face PEFT writes it: for PEFT, and for vLLM and llama.cpp after it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tunekit.errors import ExportError, ModelError
from tunekit.methods.peft_names import FAMILIES, is_known
from tunekit.methods.spec import IA3, LoRA, VeRA
from tunekit.models.model import Model


def export_peft(model: Model, folder: Path, *, adapter: str | None, recipe: Any) -> Path:
    """Writes one adapter with its head as PEFT's files, and returns the folder.

    Args:
        model: that the adapter is on.
        folder: new, empty, or of an earlier adapter; it appears whole or not at all.
        adapter: its name; `None` is the one that is active.
        recipe: kept with it, in JSON's types.

    Raises:
        ExportError: PEFT has no form of it; the message says what can be done instead.
    """
    adapters = model.adapters
    if not adapters.entries:
        raise ExportError(
            "format 'peft' holds adapters, and this model has none: all of it was trained, or its "
            "head. Save the whole: result.save(path)."
        )
    if adapters.merged:
        names = ", ".join(repr(name) for name, _ in adapters.merged)
        raise ExportError(
            f"adapter {names} is merged into the network. Take it out with result.model.unmerge(), "
            "or save the whole: result.save(path)."
        )
    name = _only_active(model) if adapter is None else adapter
    _check_has_a_form(model, name)
    try:
        return model.save_adapter(folder, name, recipe)
    except ModelError as error:
        raise ExportError(f"adapter {name!r} cannot be written for PEFT: {error}") from error


def _only_active(model: Model) -> str:
    names = [name for name, _ in model.adapters.active]
    if len(names) == 1:
        return names[0]
    raise ExportError(
        f"expected one active adapter to export, and {len(names)} are. Name one of "
        f"{', '.join(map(repr, model.adapters.entries))}: result.export(path, adapter=...)."
    )


def _check_has_a_form(model: Model, name: str) -> None:
    spec, family = model.adapters[name].adapter.spec, model.backbone.family
    instead = (
        f"Keep it for tunekit with result.model.save_adapter(path, {name!r}) or result.save(path)"
    )
    if not isinstance(spec, LoRA | IA3 | VeRA):
        raise ExportError(
            f"PEFT's files hold LoRA, DoRA, IA3 and VeRA; adapter {name!r} is of method "
            f"'{spec.name}'. {instead}."
        )
    if not is_known(family):
        raise ExportError(
            f"PEFT's files name the modules of Hugging Face's models, and no such names are known "
            f"for a '{family}' (but for {', '.join(sorted(FAMILIES))}). {instead}; or merge it, "
            "result.model.merge(), and save the whole."
        )
