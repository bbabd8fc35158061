"""Parts as JSON and back: what an adapter is, apart from its values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any

from tunekit.errors import ModelError
from tunekit.methods.bias import BiasPart
from tunekit.methods.bottleneck import BottleneckPart
from tunekit.methods.ia3 import IA3Part
from tunekit.methods.linear import ConvForm, DenseForm, EmbeddingForm
from tunekit.methods.lora import LoRAPart
from tunekit.methods.part import Leaf, Part
from tunekit.methods.prefix import PrefixPart, PrefixPositions
from tunekit.methods.prompt import PromptPart
from tunekit.methods.spec import METHOD_NAMES, AdapterSpec, named_method
from tunekit.methods.vera import VeRAPart
from tunekit.methods.visual_prompt import VisualPromptPart

_CLASSES: dict[str, type] = {
    kind.__name__: kind
    for kind in (
        BiasPart,
        BottleneckPart,
        ConvForm,
        DenseForm,
        EmbeddingForm,
        IA3Part,
        Leaf,
        LoRAPart,
        PrefixPart,
        PrefixPositions,
        PromptPart,
        VeRAPart,
        VisualPromptPart,
    )
}
_KIND = "kind_of_part"


def parts_to_json(parts: Sequence[Part]) -> list[Any]:
    """Returns the parts as JSON values."""
    return [_to_json(part) for part in parts]


def parts_from_json(values: Sequence[Any]) -> tuple[Part, ...]:
    """Returns the parts that `parts_to_json` gave.

    Raises:
        ModelError: one is of a kind that this version does not know.
    """
    return tuple(_from_json(value) for value in values)


def spec_to_json(spec: AdapterSpec) -> dict[str, Any]:
    """Returns the spec as JSON values."""
    return {f.name: getattr(spec, f.name) for f in fields(spec)}


def spec_from_json(value: Mapping[str, Any]) -> AdapterSpec:
    """Returns the spec that `spec_to_json` gave.

    Raises:
        ModelError: it is of a method that this version does not know.
    """
    name = str(value.get("name"))
    if name not in METHOD_NAMES:
        raise ModelError(f"it holds an adapter of method {name!r}, unknown here; upgrade tunekit.")
    kind: Any = type(named_method(name))
    known = {f.name for f in fields(kind)}
    if unknown := sorted(value.keys() - known):
        raise ModelError(f"method '{name}' has no {', '.join(unknown)} here; upgrade tunekit.")
    return kind(**{key: _tupled(item) for key, item in value.items()})


def _to_json(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        held = {f.name: _to_json(getattr(value, f.name)) for f in fields(value)}
        return {_KIND: type(value).__name__, **held}
    if isinstance(value, tuple):
        return [_to_json(item) for item in value]
    return value


def _from_json(value: Any) -> Any:
    if isinstance(value, Mapping):
        kind = _CLASSES.get(str(value.get(_KIND)))
        held = {key: _from_json(item) for key, item in value.items() if key != _KIND}
        if kind is None or held.keys() != {f.name for f in fields(kind)}:
            name = value.get(_KIND)
            raise ModelError(f"it holds a part of kind {name!r}, unknown here; upgrade tunekit.")
        return kind(**held)
    if isinstance(value, list):
        return tuple(_from_json(item) for item in value)
    return value


def _tupled(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
