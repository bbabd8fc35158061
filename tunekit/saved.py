"""A model as files: architecture and facts as JSON, weights as safetensors; nothing is pickled."""

from __future__ import annotations

import importlib
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import jax
import keras
import numpy as np
import safetensors.numpy

from tunekit.errors import ModelError
from tunekit.folder import listed, mismatches, read_tensors
from tunekit.methods.adapter import Adapter
from tunekit.methods.part_files import (
    parts_from_json,
    parts_to_json,
    spec_from_json,
    spec_to_json,
)
from tunekit.models import hub, masked_head, merging
from tunekit.models.adapters import (
    AdapterSet,
    Entry,
    described_head,
    head_from_json,
    head_spec_from_json,
)
from tunekit.models.backbone import Backbone, HiddenLayer
from tunekit.models.initialisation import without_values
from tunekit.models.model import Model
from tunekit.models.preprocessing import ImagePreprocessing

_HEADS = "adapter_heads/"
"""Before the names of the values of heads that adapters remember."""
_POOLER = "pooler/"
"""Before the names of the arrays of BERT's pooler, which no graph has before a classifier's."""


def described(model: Model) -> dict[str, Any]:
    """Returns everything of `model` but its weights, as JSON values.

    Raises:
        ModelError: a layer cannot be described.
    """
    backbone = model.backbone
    preprocessing = backbone.preprocessing
    return {
        "backbone": {
            "architecture": _architecture(backbone.keras),
            "dtype": backbone.keras.dtype_policy.name,
            "preprocessing": preprocessing and preprocessing.to_json(),
            "features": backbone.features,
            "prefix_tokens": backbone.prefix_tokens,
            "family": backbone.family,
            "source": backbone.source,
            "license": backbone.license,
            "takes": backbone.takes,
            "vocabulary": backbone.vocabulary,
            "max_length_tokens": backbone.max_length_tokens,
            "sentence_pooling": backbone.sentence_pooling,
        },
        "language_head": masked_head.described(backbone.language_head),
        "pooler": backbone.pooler
        and {"shape": backbone.pooler.kernel.shape, "activation": backbone.pooler.activation},
        "quantize": model.quantization,
        "labels": list(model.labels),
        "head": asdict(model.head_spec),
        "multi_label": model.multi_label,
        "adapters": {
            name: {
                "spec": spec_to_json(entry.adapter.spec),
                "parts": parts_to_json(entry.adapter.parts),
                "head": entry.head and described_head(entry.head),
            }
            for name, entry in _apart(model).items()
        },
        "active": [list(pair) for pair in model.adapters.active],
    }


def _apart(model: Model) -> dict[str, Entry]:
    """The adapters that are not in the network's own values, which are saved as they are."""
    merged = dict(model.adapters.merged)
    return {name: entry for name, entry in model.adapters.entries.items() if name not in merged}


def rebuilt(description: Mapping[str, Any]) -> Model:
    """Returns the model that `described` gave, its weights placeholders.

    Raises:
        ModelError: a layer is a Lambda, or of a class that is not registered.
    """
    facts = dict(description["backbone"])
    with _policy(facts.pop("dtype")):
        body = _built(facts.pop("architecture"))
        own_head = masked_head.rebuilt(body, description.get("language_head"))
    given = facts.pop("preprocessing")
    preprocessing = None if given is None else ImagePreprocessing.from_json(given)
    backbone = Backbone(
        keras=body,
        preprocessing=preprocessing,
        language_head=own_head,
        pooler=_blank_pooler(description.get("pooler")),
        **facts,
    )
    model = Model(
        backbone,
        description["labels"],
        head_spec_from_json(description["head"]),
        multi_label=description["multi_label"],
    )
    if (mode := description.get("quantize")) is not None:
        merging.make_room_for_packed(model, mode)
    entries = {name: _entry(each) for name, each in description.get("adapters", {}).items()}
    active = tuple((name, float(weight)) for name, weight in description.get("active", ()))
    return model.take_adapters(AdapterSet(entries, active))


def _blank_pooler(description: Mapping[str, Any] | None) -> HiddenLayer | None:
    if description is None:
        return None
    inputs, outputs = description["shape"]
    kernel, bias = np.zeros((inputs, outputs), np.float32), np.zeros(outputs, np.float32)
    return HiddenLayer(kernel, bias, description["activation"])


def _pooler_arrays(model: Model) -> dict[str, np.ndarray]:
    pooler = model.backbone.pooler
    if pooler is None:
        return {}
    return {f"{_POOLER}kernel": pooler.kernel, f"{_POOLER}bias": pooler.bias}


def _entry(description: Mapping[str, Any]) -> Entry:
    parts = parts_from_json(description["parts"])
    adapter = Adapter.blank(spec_from_json(description["spec"]), parts)
    head = description["head"]
    return Entry(adapter, None if head is None else head_from_json(head))


def check_same(model: Model, copy: Model) -> None:
    """Passes where `copy` gives the same logits as `model`, bit for bit: same program, same values.

    Raises:
        ModelError: what differs.
    """
    theirs = arrays(copy)
    for name, ours in arrays(model).items():
        if np.asarray(ours).tobytes() != np.asarray(theirs[name]).tobytes():
            raise ModelError(f"{name} reads back with other values than it was written with")
    (text, constants), (text_copy, constants_copy) = _program(model), _program(copy)
    if text != text_copy or constants != constants_copy:
        raise ModelError(
            "the model built from its own configuration computes something else: a layer was "
            "changed after it was made, or its get_config leaves an argument out"
        )


def _program(model: Model) -> tuple[str, list[bytes]]:
    """The forward pass as JAX traces it, and the constants in it; nothing is compiled."""
    forward = model.forward()
    values = {name: jax.ShapeDtypeStruct(v.shape, v.dtype) for name, v in forward.variables.items()}
    traced = jax.make_jaxpr(lambda v, x: forward(v, x, training=False)[0])(values, _inputs(model))
    text = re.sub(r"0x[0-9a-f]+", "", str(traced.jaxpr))  # addresses of functions
    return text, [np.asarray(constant).tobytes() for constant in traced.consts]


def _inputs(model: Model) -> Any:
    if model.backbone.takes == "tokens":
        row = jax.ShapeDtypeStruct((1, 8), "int32")
        return {"token_ids": row, "padding_mask": row}
    return jax.ShapeDtypeStruct((1, *model.preprocessing.image_size_px, 3), "float32")


def arrays(model: Model) -> dict[str, Any]:
    """Returns all values of the model: of variables, its pooler, and heads adapters remember."""
    merged = tuple(f"adapters/{name}/" for name, _ in model.adapters.merged)
    found = {n: v.value for n, v in model.variables().items() if not n.startswith(merged)}
    found |= _pooler_arrays(model)
    for name, entry in _apart(model).items():
        values = entry.head.values if entry.head else {}
        found |= {f"{_HEADS}{name}/{leaf}": value for leaf, value in values.items()}
    return found


def write_weights(path: Path, model: Model) -> None:
    """Writes every value under its structural name, in its own dtype, as safetensors."""
    # safetensors copies raw memory, so a strided array would be written scrambled.
    values = {name: np.asarray(value, order="C") for name, value in arrays(model).items()}
    safetensors.numpy.save_file(values, path, metadata={"format": "tunekit"})


def read_weights(path: Path, model: Model) -> None:
    """Fills the model from the file, whole or not at all.

    Raises:
        ModelError: the file is missing or damaged, or its tensors are not those of the model.
    """
    tensors, variables = read_tensors(path), model.variables()
    own = {name: t for name, t in tensors.items() if not name.startswith(_HEADS)}
    if wrong := mismatches(own, {**variables, **_pooler_arrays(model)}, dtypes=True):
        raise ModelError(f"{path} does not fit the model beside it:\n  {listed(wrong)}")
    for name, variable in variables.items():
        variable.assign(tensors[name])
    if model.backbone.pooler is not None:
        read = {name: tensors[f"{_POOLER}{name}"] for name in ("kernel", "bias")}
        pooler = replace(model.backbone.pooler, **read)
        model.backbone = replace(model.backbone, pooler=pooler)
    adapters = model.adapters
    for name, entry in adapters.entries.items():
        if entry.head is not None:
            start = f"{_HEADS}{name}/"
            values: Any = {
                n.removeprefix(start): t for n, t in tensors.items() if n.startswith(start)
            }
            head = replace(entry.head, values=values)
            adapters = adapters.with_entry(name, replace(entry, head=head))
    model.take_adapters(adapters)


def _architecture(model: keras.Model) -> dict[str, Any]:
    try:
        with hub.tensorflow_hidden():
            config = keras.saving.serialize_keras_object(model)
        # Through text, as it will be read: what JSON cannot hold fails here, by name.
        return json.loads(json.dumps(config))
    except (TypeError, ValueError, NotImplementedError) as error:
        raise ModelError(f"the architecture of {model.name!r} is not JSON: {error}") from error


def _built(config: Mapping[str, Any]) -> keras.Model:
    text = json.dumps(config)
    if "keras_hub" in text:
        hub.keras_hub()  # registers its classes
    if "tunekit>" in text:
        importlib.import_module("tunekit.models.loading")  # registers ours
    try:
        with hub.tensorflow_hidden(), without_values():
            return keras.saving.deserialize_keras_object(json.loads(text), safe_mode=True)
    except Exception as error:
        raise ModelError(_unbuildable(text, str(error))) from error


def _unbuildable(text: str, reason: str) -> str:
    register = "keras.saving.register_keras_serializable"
    if '"__lambda__"' in text:
        names = re.findall(r'"class_name": "Lambda", "config": \{"name": "([^"]+)"', text)
        return (
            f"layer {', '.join(map(repr, names))} is a Lambda around a Python function, which no "
            f"file can hold safely. Write it as a Layer class decorated with @{register}()"
        )
    unknown = re.search(r"Could not locate class '([^']+)'", reason)
    if unknown:
        return (
            f"the layer class {unknown[1]!r} is unknown to Keras. Decorate it with @{register}() "
            "and import the module that defines it first"
        )
    return f"Keras cannot build the architecture again: {reason}"


@contextmanager
def _policy(name: str) -> Iterator[None]:
    """In this block layers without a dtype of their own in their config take this one."""
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(name)
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)
