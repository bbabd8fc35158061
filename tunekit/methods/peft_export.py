"""From the leaves of an adapter to what PEFT reads: the way back from `peft_import`.

GPT-2's query, key and value are one module in PEFT. Their three LoRAs become one, exactly: where
they still share A, their B lie side by side; else A are stacked, B are the blocks of a diagonal,
and the rank is the sum of the ranks.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tunekit.errors import ModelError
from tunekit.folder import listed
from tunekit.methods.linear import ConvForm, EmbeddingForm, LinearForm, linear_form
from tunekit.methods.part import Places
from tunekit.methods.peft_config import (
    PeftSpec,
    Sizes,
    lora_config,
    short_names,
    vera_config,
)
from tunekit.methods.peft_files import PREFIX, PeftFiles
from tunekit.methods.peft_import import ia3_shape, is_tied, own_bias
from tunekit.methods.peft_names import Family, Module, family_of, modules_of
from tunekit.methods.spec import IA3, LoRA, VeRA
from tunekit.methods.vera import SHARED

Leaves = Mapping[str, np.ndarray]
_ByLayer = Mapping[str, Leaves]
_Written = tuple[dict[str, Any], dict[str, np.ndarray], list[str]]
"""A method's own part of the config, its tensors, and the modules that have them."""


@dataclass(frozen=True)
class Origin:
    """What the config says of the model that the adapter is for."""

    base: str = ""
    """Name or folder of the Hugging Face model."""
    task: str | None = None
    """PEFT's task type: "CAUSAL_LM", "SEQ_CLS", "FEATURE_EXTRACTION"..."""


@dataclass(frozen=True, eq=False)
class _Factors:
    """The LoRA of a whole module: matrices [in, R] and [R, out]."""

    a: np.ndarray
    b: np.ndarray
    scaling: float
    magnitude: np.ndarray | None = None


def to_peft(
    spec: PeftSpec,
    leaves: Leaves,
    family: str,
    places: Places,
    *,
    origin: Origin | None = None,
    head: Leaves | None = None,
) -> PeftFiles:
    """Returns what PEFT's files hold of an adapter; dropout's seeds are left out.

    Args:
        spec: of the adapter.
        leaves: by layer and leaf.
        family: of the backbone, a Hugging Face ``model_type``.
        places: the network.
        origin: of the model; `None` says nothing of it.
        head: tensors of the task's head as torch has them: "classifier.weight" [C, D].

    Raises:
        ModelError: PEFT cannot say what the adapter does: layers that it has no names for are
            named, up to ten.
    """
    names = family_of(family)
    modules = modules_of(names, places.layers)
    by_layer = _by_layer({n: np.asarray(v) for n, v in leaves.items()})
    known = {layer for module in modules for layer in module.layers}
    unknown = [layer for layer in by_layer if layer not in known and layer != SHARED]
    if unknown:
        raise ModelError(
            f"PEFT's files have no names for these layers of a '{family}':\n  {listed(unknown)}\n"
            "Leave them out of the targets, or save the whole model: result.save(path)."
        )
    adapted = {module: by_layer.keys() & set(module.layers) for module in modules}
    adapted = {module: layers for module, layers in adapted.items() if layers}
    write = {"lora": _lora, "ia3": _ia3, "vera": _vera}[spec.name]
    config, tensors, targets = write(spec, by_layer, list(adapted), places)
    known_paths = [module.path for module in modules]
    saved = _head(names, head or {})
    origin = origin or Origin()
    config |= {
        "base_model_name_or_path": origin.base,
        "task_type": origin.task,
        "inference_mode": True,
        "target_modules": short_names(targets, known_paths),
        "modules_to_save": saved or None,
        "fan_in_fan_out": names.transposed,
    }
    if "feedforward_modules" in config:
        config["feedforward_modules"] = short_names(config["feedforward_modules"], known_paths)
    named = {f"{PREFIX}{name}": tensor for name, tensor in {**tensors, **(head or {})}.items()}
    if isinstance(spec, VeRA):  # beside the modules, not in one
        named |= {f"base_model.vera_{x}": by_layer[SHARED][f"vera_{x.lower()}"].T for x in "AB"}
    return PeftFiles(config, {n: np.asarray(t, np.float32) for n, t in named.items()})


def _by_layer(leaves: Leaves) -> dict[str, dict[str, np.ndarray]]:
    """Leaves by layer; those of VeRA's one part by the layers that they are for."""
    found: dict[str, dict[str, np.ndarray]] = {}
    for name, value in leaves.items():
        layer, _, leaf = name.rpartition("/")
        layer = layer.removeprefix(f"{SHARED}/")
        if leaf != "seed":
            found.setdefault(layer, {})[leaf] = value
    return found


def _head(family: Family, head: Leaves) -> list[str]:
    """The modules that hold the tensors of the head; BERT's pooler is below its body."""
    modules = {
        module: [key for key in head if key.removeprefix(family.body).startswith(f"{module}.")]
        for module in (*family.head, "pooler")
    }
    if odd := [key for key in head if not any(key in keys for keys in modules.values())]:
        raise ModelError(f"expected tensors of {', '.join(family.head)} as the head, got {odd}.")
    return [module for module, keys in modules.items() if keys]


def _lora(spec: LoRA, by_layer: _ByLayer, modules: Sequence[Module], places: Places) -> _Written:
    tensors: dict[str, np.ndarray] = {}
    sizes: dict[str, Sizes] = {}
    for module in modules:
        layers = [layer for layer in module.layers if layer is not None]
        own = [by_layer.get(layer, {}) for layer in layers]
        has_factors = any(_names(leaves) for leaves in own)
        if any("bias" in leaves for leaves in own):
            name = f"{module.path}.base_layer.bias" if has_factors else f"{module.path}.bias"
            tensors[name] = _whole_bias(layers, own, places)
        if not has_factors:
            continue
        forms = _forms(module, places)
        _check_tied(module, forms, places)
        factors = _of_module(list(forms.values()), own, layers, places)
        rank = factors.a.shape[1]
        root = math.sqrt(rank) if spec.rslora else rank
        sizes[module.path] = Sizes(rank, _alpha(factors.scaling, root))
        tensors |= _tensors(module.path, next(iter(forms.values())), factors)
    return lora_config(spec, sizes), tensors, list(sizes)


def _alpha(scaling: float, root: float) -> float:
    """What gives the float32 `scaling` when divided by `root`: 8 for 8 / 3 and 3, not 8.0000001."""
    short = float(f"{scaling * root:.7g}")
    return short if np.float32(short / root) == np.float32(scaling) else scaling * root


def _names(leaves: Leaves) -> tuple[str, str] | None:
    """Names of the two factors among a layer's leaves, if it has them."""
    pairs = (("lora_a", "lora_b"), ("embedding_a", "embedding_b"))
    return next((pair for pair in pairs if pair[0] in leaves), None)


def _of_module(
    forms: Sequence[LinearForm],
    own: Sequence[Leaves],
    layers: Sequence[str],
    places: Places,
) -> _Factors:
    """The LoRAs of the layers that share a module's outputs, as one."""
    parts = [_of_layer(form, leaves) for form, leaves in zip(forms, own, strict=True)]
    have = [part for part in parts if part is not None]
    first = have[0]
    scaling = first.scaling
    wide = [part.b * (part.scaling / scaling) for part in have]
    if len(have) == len(parts) and all(np.array_equal(part.a, first.a) for part in have):
        a, b = first.a, np.concatenate(wide, axis=1)
    else:
        a = np.concatenate([part.a for part in have], axis=1)
        b = _diagonal(parts, wide, [form.out_features for form in forms])
    if first.magnitude is None:
        return _Factors(a, b, scaling)
    norms = [
        _norms(layer, form, places) if part is None else part.magnitude
        for part, form, layer in zip(parts, forms, layers, strict=True)
    ]
    return _Factors(a, b, scaling, np.concatenate([n for n in norms if n is not None]))


def _of_layer(form: LinearForm, leaves: Leaves) -> _Factors | None:
    """The layer's own LoRA; what it began with, and does not count, as more of its rank."""
    names = _names(leaves)
    if names is None:
        return None
    a, b = (leaves[name] for name in names)
    if "start_a" in leaves:
        a = np.concatenate([a, leaves["start_a"]], axis=1)
        b = np.concatenate([b, -leaves["start_b"]], axis=0)
    return _Factors(a, b, float(leaves["scaling"]), leaves.get("magnitude"))


def _diagonal(
    parts: Sequence[_Factors | None], wide: Sequence[np.ndarray], outs: Sequence[int]
) -> np.ndarray:
    """B of the whole [sum of R, sum of out]: each part's for its own outputs, zero elsewhere."""
    rows = sum(len(b) for b in wide)
    whole = np.zeros((rows, sum(outs)), np.float32)
    remaining = iter(wide)
    row = column = 0
    for part, out in zip(parts, outs, strict=True):
        if part is not None:
            b = next(remaining)
            whole[row : row + len(b), column : column + out] = b
            row += len(b)
        column += out
    return whole


def _norms(layer: str, form: LinearForm, places: Places) -> np.ndarray:
    """DoRA's magnitude where nothing is adapted: the norm of each output's weights."""
    kernel = places.weights.get(f"{layer}/{form.kernel_name}")
    if kernel is None:
        raise ModelError(
            f"PEFT keeps '{layer}' in one module with adapted layers, and its DoRA needs the "
            "layer's kernel, which is quantised. Save from a model that is not."
        )
    return np.linalg.norm(np.asarray(form.matrix(kernel), np.float32), axis=0)


def _tensors(path: str, form: LinearForm, factors: _Factors) -> dict[str, np.ndarray]:
    a, b = factors.a.T, factors.b.T
    if isinstance(form, EmbeddingForm):
        return {f"{path}.lora_embedding_A": a, f"{path}.lora_embedding_B": b}
    magnitude = factors.magnitude
    if isinstance(form, ConvForm):
        pixel = (1,) * len(form.shape[:-2])
        a = np.moveaxis(a.reshape(-1, *form.shape[:-1]), -1, 1)
        b = b.reshape(*b.shape, *pixel)
        magnitude = None if magnitude is None else magnitude.reshape(1, -1, *pixel)
    tensors = {f"{path}.lora_A.weight": a, f"{path}.lora_B.weight": b}
    if magnitude is not None:
        tensors[f"{path}.lora_magnitude_vector"] = magnitude
    return tensors


def _whole_bias(layers: Sequence[str], own: Sequence[Leaves], places: Places) -> np.ndarray:
    """The biases of a module, the network's own and what is added to them."""
    whole = []
    for layer, leaves in zip(layers, own, strict=True):
        bias = own_bias(layer, places)
        assert bias is not None, f"{layer} has a difference from a bias that it has not"
        if "bias" in leaves:
            bias = bias + leaves["bias_scaling"] * leaves["bias"]
        whole.append(bias.reshape(-1))
    return np.concatenate(whole)


def _ia3(spec: IA3, by_layer: _ByLayer, modules: Sequence[Module], places: Places) -> _Written:
    del spec
    tensors: dict[str, np.ndarray] = {}
    feedforward = []
    for module in modules:
        forms = _forms(module, places)
        inputs = {places.roles.get(layer) for layer in forms} == {"mlp_down"}
        vectors = [_scale(by_layer.get(layer), form) for layer, form in forms.items()]
        shape = ia3_shape(forms, inputs=inputs)
        tensors[f"{module.path}.ia3_l"] = np.concatenate(vectors).reshape(shape)
        feedforward += [module.path] if inputs else []
    config = {"peft_type": "IA3", "feedforward_modules": feedforward, "init_ia3_weights": True}
    return config, tensors, [module.path for module in modules]


def _scale(leaves: Leaves | None, form: LinearForm) -> np.ndarray:
    """A layer's factors, its strength among them; ones where nothing is scaled."""
    if leaves is None:
        return np.ones(form.out_features, np.float32)
    return 1 + leaves["scaling"] * (leaves["scale"] - 1)


def _vera(spec: VeRA, by_layer: _ByLayer, modules: Sequence[Module], places: Places) -> _Written:
    del places
    tensors: dict[str, np.ndarray] = {}
    scaling = by_layer[SHARED]["scaling"]
    for module in modules:
        if len(module.layers) > 1:
            raise ModelError(
                f"{module.path} is {len(module.layers)} layers here, for which VeRA's shared "
                "factors are not those of the whole in PEFT. Use LoRA, or leave them out of the "
                f"targets: {', '.join(map(str, module.layers))}."
            )
        layer = next(iter(module.layers))
        own = by_layer[str(layer)]
        tensors[f"{module.path}.vera_lambda_b"] = own["lambda_b"] * scaling
        tensors[f"{module.path}.vera_lambda_d"] = own["lambda_d"]
    return vera_config(spec), tensors, [module.path for module in modules]


def _forms(module: Module, places: Places) -> dict[str, LinearForm]:
    """The layers of a module as linear maps."""
    layers = [layer for layer in module.layers if layer is not None]
    return {layer: linear_form(layer, places.layers[layer]) for layer in layers}


def _check_tied(module: Module, forms: Mapping[str, LinearForm], places: Places) -> None:
    if is_tied(forms, places):
        raise ModelError(
            f"'{next(iter(forms))}' is also the language head, and PEFT would adapt {module.path} "
            "for the one use alone. Leave the embedding out of the targets."
        )
