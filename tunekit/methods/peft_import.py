"""From what PEFT wrote to the leaves of an adapter here: names, shapes, and biases as differences.

PEFT's weights are [out, in] and, of a convolution, [out, in, height, width]; leaves are matrices
[in, out], a convolution's inputs in the order height, width, in.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np

from tunekit.errors import ModelError, did_you_mean
from tunekit.folder import listed
from tunekit.methods.linear import ConvForm, EmbeddingForm, LinearForm, linear_form
from tunekit.methods.part import Places
from tunekit.methods.peft_config import (
    PeftSpec,
    Sizes,
    by_pattern,
    check_config,
    ia3_spec,
    is_named,
    is_target,
    lora_spec,
    vera_spec,
)
from tunekit.methods.peft_files import PREFIX, PeftFiles
from tunekit.methods.peft_names import Family, Module, family_of, modules_of
from tunekit.methods.vera import SHARED

# Endings of tensors' names; the first that fits counts.
_KINDS = {
    ".lora_A.weight": "lora_a",
    ".lora_B.weight": "lora_b",
    ".lora_embedding_A": "embedding_a",
    ".lora_embedding_B": "embedding_b",
    ".lora_magnitude_vector": "magnitude",
    ".ia3_l": "scale",
    ".vera_lambda_b": "lambda_b",
    ".vera_lambda_d": "lambda_d",
    ".base_layer.bias": "bias",
    ".base_layer.weight": "weight",
    ".bias": "bias",
}
Tensors = dict[str, np.ndarray]


@dataclass(frozen=True, eq=False)
class Imported:
    """An adapter that PEFT wrote, in the terms of a network here."""

    spec: PeftSpec
    leaves: Mapping[str, np.ndarray]
    """By layer and leaf: "backbone/block/query/lora_a"."""
    head: Mapping[str, np.ndarray]
    """Whole tensors of the task's head, as torch has them: "classifier.weight" [C, D]."""


@dataclass(eq=False)
class _Sorted:
    """The tensors of the file by the module that they belong to."""

    modules: dict[Module, Tensors] = field(default_factory=dict)
    paths: dict[Module, str] = field(default_factory=dict)
    """As the file spells them, which is how the config's patterns were meant."""
    shared: Tensors = field(default_factory=dict)
    head: Tensors = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)


def to_leaves(files: PeftFiles, family: str, places: Places) -> Imported:
    """Returns the spec and the leaves of the adapter on this network.

    Args:
        files: what PEFT wrote.
        family: of the backbone, a Hugging Face ``model_type``.
        places: the network; its targets do not matter.

    Raises:
        ModelError: the config asks for what tunekit does not do, or tensors are missing, of other
            modules than the network has, or of other shapes: all are named, up to ten.
    """
    check_config(files.config, files.place)
    names = family_of(family)
    modules = modules_of(names, places.layers)
    found = _sorted(files, names, modules)
    kind = files.config["peft_type"]
    for module in modules:
        adapted = found.modules.get(module, {}).keys() - {"bias", "weight"}
        if module.in_block and not adapted and is_target(files.config, module):
            found.wrong.append(f"missing: all tensors of {module.path}, one of target_modules")
    read = {"LORA": _lora, "IA3": _ia3, "VERA": _vera}[kind]
    spec, leaves = read(files, found, places)
    if found.wrong or not leaves:
        base = files.config.get("base_model_name_or_path") or "a base it does not name"
        raise ModelError(
            f"{files.place}, trained on {base}, does not fit this '{family}':\n  "
            + listed(found.wrong or ["it holds no tensor of an adapter"])
        )
    assert spec is not None
    return Imported(spec, leaves, found.head)


def _sorted(files: PeftFiles, family: Family, modules: list[Module]) -> _Sorted:
    found = _Sorted()
    by_path = {path: module for module in modules for path in module.spellings}
    for name, tensor in files.tensors.items():
        if name in ("base_model.vera_A", "base_model.vera_B"):
            found.shared[name[-6:].lower()] = tensor
            continue
        if ".original_module." in name or ".modules_to_save." in name:
            continue  # bias="all" writes these beside the head's own
        key = name.removeprefix(PREFIX)
        ending = next((ending for ending in _KINDS if key.endswith(ending)), "")
        path = key.removesuffix(ending)
        if path in by_path and ending:
            module = by_path[path]
            found.paths[module] = path
            found.modules.setdefault(module, {})[_KINDS[ending]] = tensor
        elif _of_head(key, family, files):
            found.head[key] = tensor
        else:
            near = did_you_mean(path, by_path)
            found.wrong.append(f"not in the model: {name}.{near}")
    return found


def _of_head(key: str, family: Family, files: PeftFiles) -> bool:
    plain = key.removeprefix(family.body)
    saved = (*family.head, *(files.config.get("modules_to_save") or ()))
    whole = plain.endswith((".weight", ".bias")) and ".lora_" not in plain
    return whole and any(f".{plain}".startswith(f".{module}.") for module in (*saved, "pooler"))


def _lora(
    files: PeftFiles, found: _Sorted, places: Places
) -> tuple[PeftSpec | None, dict[str, np.ndarray]]:
    config = files.config
    leaves: dict[str, np.ndarray] = {}
    sizes: dict[str, Sizes] = {}
    for module, tensors in found.modules.items():
        layers = _layers(module, found)
        if "bias" in tensors and layers:
            leaves |= _biases(module, layers, tensors.pop("bias"), places, found)
        if not tensors or not layers:
            continue
        path = found.paths[module]
        forms = {layer: linear_form(layer, places.layers[layer]) for layer in layers}
        if "weight" in tensors:
            _check_base(path, forms, tensors.pop("weight"), places, found)
        if is_tied(forms, places):
            found.wrong.append(
                f"{path}: PEFT adapts the embedding alone; here the language head shares it and "
                "would be adapted too"
            )
            continue
        size = Sizes(
            by_pattern(config.get("rank_pattern") or {}, path, config.get("r", 8)),
            by_pattern(config.get("alpha_pattern") or {}, path, config.get("lora_alpha", 8)),
        )
        wanted = _lora_shapes(forms, size.rank, dora=bool(config.get("use_dora")))
        if _fit(path, tensors, wanted, found):
            root = config.get("use_rslora", False)
            scaling = size.alpha / (math.sqrt(size.rank) if root else size.rank)
            leaves |= _factors(tensors, forms, scaling)
            sizes |= dict.fromkeys(layers, size)
    return (lora_spec(config, sizes) if sizes else None), leaves if sizes else {}


def _lora_shapes(
    forms: Mapping[str, LinearForm], rank: int, *, dora: bool
) -> dict[str, tuple[int, ...]]:
    """The shapes of a module's tensors in PEFT's file, for layers that share its outputs."""
    form = next(iter(forms.values()))
    out = sum(each.out_features for each in forms.values())
    if isinstance(form, EmbeddingForm):
        shapes = {"embedding_a": (rank, form.in_features), "embedding_b": (out, rank)}
    elif isinstance(form, ConvForm):
        pixel = (1,) * len(form.shape[:-2])
        shapes = {
            "lora_a": (rank, form.shape[-2], *form.shape[:-2]),
            "lora_b": (out, rank // form.groups, *pixel),
        }
        return shapes | ({"magnitude": (1, out, *pixel)} if dora else {})
    else:
        shapes = {"lora_a": (rank, form.in_features), "lora_b": (out, rank)}
    return shapes | ({"magnitude": (out,)} if dora else {})


def _factors(
    tensors: Tensors, forms: Mapping[str, LinearForm], scaling: float
) -> Iterator[tuple[str, np.ndarray]]:
    """The leaves of each layer: the first factor whole, of the others its own share of outputs."""
    ends = np.cumsum([form.out_features for form in forms.values()])[:-1]
    for kind, tensor in tensors.items():
        if kind.endswith("_a"):
            matrix = np.moveaxis(tensor, (0, 1), (-1, -2)).reshape(-1, len(tensor))
            shares = [matrix] * len(forms)
        elif kind.endswith("_b"):
            shares = np.split(tensor.reshape(len(tensor), -1).T, ends, axis=1)
        else:
            shares = np.split(tensor.reshape(-1), ends)
        yield from ((f"{layer}/{kind}", s) for layer, s in zip(forms, shares, strict=True))
    yield from ((f"{layer}/scaling", np.float32(scaling)) for layer in forms)  # type: ignore[misc]


def _biases(
    module: Module, layers: list[str], whole: np.ndarray, places: Places, found: _Sorted
) -> dict[str, np.ndarray]:
    """What is added to each layer's own bias; PEFT keeps the sum."""
    own = {layer: own_bias(layer, places) for layer in layers}
    if any(bias is None for bias in own.values()):
        found.wrong.append(f"not in the model: a bias of {module.path}")
        return {}
    sizes = [bias.size for bias in own.values() if bias is not None]
    if not _fit(found.paths[module], {"bias": whole}, {"bias": (sum(sizes),)}, found):
        return {}
    shares = np.split(whole, np.cumsum(sizes)[:-1])
    leaves = {
        f"{layer}/bias": share.reshape(bias.shape) - bias
        for share, (layer, bias) in zip(shares, own.items(), strict=True)
        if bias is not None
    }
    return leaves | {f"{layer}/bias_scaling": np.ones((), np.float32) for layer in layers}


def own_bias(layer: str, places: Places) -> np.ndarray | None:
    """Returns the layer's own bias, or a norm's shift, as float32."""
    for name in (f"{layer}/bias", f"{layer}/beta"):
        if name in places.weights:
            return np.asarray(places.weights[name], np.float32)
    return None


def _ia3(
    files: PeftFiles, found: _Sorted, places: Places
) -> tuple[PeftSpec | None, dict[str, np.ndarray]]:
    leaves: dict[str, np.ndarray] = {}
    for module, tensors in found.modules.items():
        layers = _layers(module, found)
        forms = {layer: linear_form(layer, places.layers[layer]) for layer in layers}
        inputs = is_named(files.config.get("feedforward_modules"), module)
        roles = {places.roles.get(layer) for layer in layers}
        if inputs != (roles == {"mlp_down"}):
            found.wrong.append(
                f"{module.path} is scaled at its {'inputs' if inputs else 'outputs'} "
                "(feedforward_modules); tunekit scales an MLP's last layer at its inputs and "
                "every other at its outputs"
            )
            continue
        wanted = ia3_shape(forms, inputs=inputs)
        if _fit(found.paths[module], tensors, {"scale": wanted}, found):
            ends = np.cumsum([form.out_features for form in forms.values()])[:-1]
            vector = tensors["scale"].reshape(-1)
            shares = np.split(vector, ends) if len(forms) > 1 else [vector]
            leaves |= {f"{n}/scale": share for n, share in zip(forms, shares, strict=True)}
            leaves |= {f"{n}/scaling": np.ones((), np.float32) for n in forms}
    return ia3_spec([n.removesuffix("/scale") for n in leaves if n.endswith("/scale")]), leaves


def ia3_shape(forms: Mapping[str, LinearForm], *, inputs: bool) -> tuple[int, ...]:
    """Returns the shape of a module's vector in PEFT's file."""
    form = next(iter(forms.values()))
    out = sum(each.out_features for each in forms.values())
    if isinstance(form, ConvForm):
        channels = form.shape[-2] * form.groups if inputs else out
        return (1, channels, *(1,) * len(form.shape[:-2]))
    return (1, form.in_features) if inputs else (out, 1)


def _vera(
    files: PeftFiles, found: _Sorted, places: Places
) -> tuple[PeftSpec | None, dict[str, np.ndarray]]:
    rank = files.config.get("r", 256)
    leaves: dict[str, np.ndarray] = {}
    targets: list[str] = []
    rows = columns = 0
    for module, tensors in found.modules.items():
        layers = _layers(module, found)
        if len(layers) != 1:
            found.wrong.append(
                f"{module.path} is {len(layers)} layers here, which VeRA's shared factors cannot "
                "be divided among"
            )
            continue
        form = linear_form(layers[0], places.layers[layers[0]])
        wanted = {"lambda_b": (form.out_features,), "lambda_d": (rank,)}
        if _fit(found.paths[module], tensors, wanted, found):
            leaves |= {f"{SHARED}/{layers[0]}/{name}": tensor for name, tensor in tensors.items()}
            targets += layers
            rows, columns = max(rows, form.in_features), max(columns, form.out_features)
    for name, wanted in (("vera_a", (rank, rows)), ("vera_b", (columns, rank))):
        if _fit(
            "base_model",
            {n: t for n, t in found.shared.items() if n == name},
            {name: wanted},
            found,
        ):
            leaves[f"{SHARED}/{name}"] = found.shared[name].T
    leaves[f"{SHARED}/scaling"] = np.ones((), np.float32)
    return vera_spec(files.config, targets), leaves if targets else {}


def _layers(module: Module, found: _Sorted) -> list[str]:
    layers = [layer for layer in module.layers if layer is not None]
    if len(layers) < len(module.layers):
        found.wrong.append(f"not in the model: a part of {module.path}; it has {layers}")
        return []
    return layers


def _fit(
    path: str, tensors: Tensors, wanted: Mapping[str, tuple[int, ...]], found: _Sorted
) -> bool:
    """Whether the tensors are those wanted; what is wrong is noted."""
    endings = {kind: ending for ending, kind in reversed(_KINDS.items())}
    wrong = []
    for kind, shape in wanted.items():
        name = path + endings.get(kind, f".{kind}")
        if kind not in tensors:
            wrong.append(f"missing: {name} {list(shape)}")
        elif tensors[kind].shape != shape:
            got = list(tensors[kind].shape)
            wrong.append(f"{name}: expected shape {list(shape)}, got {got}")
    wrong += [
        f"unexpected: {path}{endings.get(kind, kind)}" for kind in tensors if kind not in wanted
    ]
    found.wrong.extend(wrong)
    return not wrong


def _check_base(
    path: str,
    forms: Mapping[str, LinearForm],
    theirs: np.ndarray,
    places: Places,
    found: _Sorted,
) -> None:
    """PEFT writes the base's own embedding beside its adapter, which may have been changed."""
    ((layer, form),) = forms.items()
    kernel = places.weights.get(f"{layer}/{form.kernel_name}")
    if kernel is None:
        return
    ours = np.asarray(form.matrix(kernel), np.float32)
    ours = ours if isinstance(form, EmbeddingForm) else ours.T
    if ours.shape != theirs.shape:
        found.wrong.append(
            f"{path}.base_layer.weight: expected shape {list(ours.shape)}, got "
            f"{list(theirs.shape)}: the vocabulary was resized"
        )
    elif not np.allclose(ours, theirs, rtol=1e-2, atol=1e-3):
        found.wrong.append(f"{path}.base_layer.weight: other values than this base's own")


def is_tied(forms: Mapping[str, LinearForm], places: Places) -> bool:
    """Whether these layers are an embedding that the language head shares."""
    tied = "heads/lm_head" in places.layers and "heads/lm_head/kernel" not in places.weights
    return tied and any(isinstance(form, EmbeddingForm) for form in forms.values())
