"""What is done to a model's adapters while it lives; the methods of `Model`, each whole or not."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from tunekit.errors import ModelError
from tunekit.folder import listed, mismatches
from tunekit.methods.adapter import Adapter, part_values
from tunekit.methods.attach import attach
from tunekit.methods.combine import CombineKind, Factors, combine
from tunekit.methods.eva import captured_inputs
from tunekit.methods.lora import LoRAPart
from tunekit.methods.merge_forecast import MergeForecast, merge_forecast
from tunekit.methods.part import Placed
from tunekit.methods.quantize import (
    QuantizationReport,
    dequantized_kernel,
    is_quantized,
    quantization_residual,
    quantize_layers,
    quantize_structure,
    repacked,
)
from tunekit.methods.spec import AdapterSpec, LoRA, adapter_spec
from tunekit.models import adapter_files
from tunekit.models.adapters import AdapterSet, Named, SavedHead, weights_of
from tunekit.models.forward import Forward, assign_all
from tunekit.models.inference import Inference
from tunekit.models.inputs import Inputs, batches, token_columns
from tunekit.models.spec import Quantization
from tunekit.models.targets import places_of, targets_of

if TYPE_CHECKING:
    from tunekit.models.model import Model


def add(
    model: Model,
    name: str,
    spec: AdapterSpec | str,
    *,
    seed: int,
    inputs: Iterable[Any] | None,
    quantize: Quantization | None,
) -> Model:
    """See `Model.add_adapter`."""
    model.adapters.check_free(name)
    spec = adapter_spec(spec)
    adapter = fresh_adapter(
        model,
        spec,
        seed=seed,
        layer_inputs=None if inputs is None else _layer_inputs(model, inputs),
        quantise=None
        if quantize is None
        else lambda matrix: np.asarray(quantization_residual(matrix, quantize)[0]),
    )
    return model.take_adapters(_with_present_head(model).added(name, adapter))


def fresh_adapter(model: Model, spec: AdapterSpec, *, seed: int, **starts: Any) -> Adapter:
    """Returns a fresh adapter for the layers that the spec's targets name, not put on the model.

    Args:
        model: the network.
        spec: of the adapter.
        seed: of random values.
        starts: what some LoRAs begin with, as `attach` takes it.

    Raises:
        ModelError: the method is impossible on a layer, or lacks what it begins with.
        SelectionError: the targets name no layer.
    """
    return attach(spec, places_of(model, targets_of(spec, model)), seed=seed, **starts)


def activate(model: Model, names: Named) -> Model:
    """See `Model.set_adapter`."""
    weights = weights_of(names)
    adapters = _with_present_head(model).activated(weights)
    head = next((adapters[name].head for name in reversed(weights) if adapters[name].head), None)
    if head is not None:
        last = next(name for name in reversed(weights) if adapters[name].head is head)
        adapters = adapters.with_entry(last, replace(adapters[last], head=None))
    return _put(model, adapters, head)


def _with_present_head(model: Model) -> AdapterSet:
    """The set in which the adapters that act remember the head that the model has now."""
    adapters = model.adapters
    if not model.labels:
        return adapters
    head = present_head(model)
    for name, _ in adapters.active:
        adapters = adapters.with_entry(name, replace(adapters[name], head=head))
    return adapters


def present_head(model: Model) -> SavedHead:
    """Returns the head that the model has now; its arrays are not copied."""
    values = {n: v for n, v in model._inference.values().items() if n.startswith("heads/")}
    return SavedHead(model.labels, model.head_spec, model.multi_label, values)


def _put(model: Model, adapters: AdapterSet, head: SavedHead | None) -> Model:
    """The model has these adapters and, where there is one, this head: both or neither."""
    if head is None:
        return model.take_adapters(adapters)
    with model.restored_on_error():
        if (model.labels, model.head_spec) != (head.labels, head.spec):
            model._take_head(head.labels, head.spec, 0)
        own = {n: v for n, v in model._inference.variables.items() if n.startswith("heads/")}
        if wrong := mismatches(head.values, own):
            raise ModelError(f"the adapter's head does not fit its labels:\n  {listed(wrong)}")
        model.multi_label = head.multi_label
        model.take_adapters(adapters)
        assign_all(own, head.values)
    return model


def _put_values(model: Model, adapters: AdapterSet, values: Mapping[str, jax.Array]) -> Model:
    """The model has these adapters, and the network these values: both or neither."""
    with model.restored_on_error():
        model.take_adapters(adapters)
        assign_all(model._inference.variables, values)
    return model


def save(model: Model, folder: Path, name: str | None, recipe: Any) -> Path:
    """See `Model.save_adapter`."""
    if name is None:
        active = [each for each, _ in model.adapters.active]
        if len(active) != 1:
            have = ", ".join(map(repr, model.adapters.entries)) or "none"
            raise ModelError(f"name the adapter to save: {len(active)} are active, of {have}.")
        (name,) = active
    entry = _with_present_head(model)[name]
    head = entry.head or (present_head(model) if model.labels else None)
    return adapter_files.save(model, entry, head, folder, recipe)


def load(model: Model, folder: Path, name: str | None, *, check_base: bool) -> Model:
    """See `Model.load_adapter`."""
    name = folder.expanduser().resolve().name if name is None else name
    model.adapters.check_free(name)
    loaded = adapter_files.load(model, folder, check_base=check_base)
    return _put(model, _with_present_head(model).added(name, loaded.adapter), loaded.head)


def combine_into(
    model: Model,
    names: Mapping[str, float] | Sequence[str],
    name: str,
    kind: CombineKind,
    *,
    rank: int | None,
    density: float,
    seed: int,
) -> Model:
    """See `Model.combine_adapters`."""
    model.adapters.check_free(name)
    weights = weights_of(names)
    adapters = [model.adapters[each].adapter for each in weights]
    factors = [_factors(each, adapter) for each, adapter in zip(weights, adapters, strict=True)]
    combined = combine(factors, list(weights.values()), kind, rank=rank, density=density, seed=seed)
    parts = {part.name: part for adapter in adapters for part in adapter.parts}
    placed = [_placed(parts[layer], each) for layer, each in combined.items()]
    first: Any = adapters[0].spec
    spec = replace(
        first,
        rank=max(each.part.rank for each in placed),  # type: ignore[attr-defined]
        init="default",
        rank_pattern={},
        alpha_pattern={},
        targets=tuple(combined),
        within="all",
    )
    return model.take_adapters(_with_present_head(model).added(name, Adapter.of(spec, placed)))


def _factors(name: str, adapter: Adapter) -> dict[str, Factors]:
    plain = isinstance(adapter.spec, LoRA) and not adapter.spec.dora
    if not plain or not all(isinstance(part, LoRAPart) for part in adapter.parts):
        raise ModelError(
            f"adapter {name!r} is no plain LoRA (of low-rank updates alone, without magnitudes or "
            "biases), and only those can be combined; set_adapter([...]) lets any act together."
        )
    values = adapter.values()
    found = {}
    for part in adapter.parts:
        assert isinstance(part, LoRAPart)
        a, b, scaling = part.factors(part_values(part, values))
        found[part.name] = Factors(np.asarray(a), np.asarray(b), float(scaling))
    return found


def _placed(part: Any, factors: Factors) -> Placed:
    part = replace(part, rank=factors.a.shape[1], dropout=0.0, from_start=False)
    a, b = part.factor_names
    scaling = np.asarray(factors.scaling, np.float32)
    return Placed(part, {a: factors.a, b: factors.b, "scaling": scaling})


def merge(
    model: Model, items: Inputs | None, least_agreement: float, seed: int = 0
) -> MergeForecast | None:
    """See `Model.merge`; returns what it forecast, `None` where nothing is packed."""
    changed, forecast = _merged_values(model, seed), None
    if quantized_layers(model):
        if items is None:
            raise ModelError(
                "the backbone is quantised: merging rounds the adapter away in part. Give merge() "
                "some examples, of which it forecasts what changes, or least_agreement=0 and any."
            )
        forecast = _forecast(model, items, changed)
        if forecast.top1_agreement < least_agreement:
            raise ModelError(
                f"merging into the quantised backbone was not done: {forecast}, and expected at "
                f"least {least_agreement:.1%} agreement. Keep the adapter apart, merge into a "
                "backbone that is not quantised, or lower least_agreement."
            )
    before = {name: model._inference.variables[name].value for name in changed}
    merged = replace(model.adapters, active=(), merged=model.adapters.active, before_merge=before)
    _put_values(model, merged, changed)
    return forecast


def forecast_of(model: Model, items: Inputs, seed: int = 0) -> MergeForecast:
    """See `Model.merge_forecast`."""
    return _forecast(model, items, _merged_values(model, seed))


def _forecast(model: Model, items: Inputs, changed: Mapping[str, jax.Array]) -> MergeForecast:
    apart = model.logits(items)
    values = model._inference.values()
    count, parts = batches(model.backbone, items, 32)
    together = [model._inference({**values, **changed}, part) for part in parts]
    merged = np.concatenate([np.asarray(x, np.float32) for x in together])[:count]
    weights = None
    if model.backbone.takes == "tokens" and apart.ndim == 3:
        weights = jnp.asarray(token_columns(model.backbone, items)["padding_mask"])
    return merge_forecast(jnp.asarray(apart), jnp.asarray(merged), weights)


def quantize(
    model: Model, mode: Quantization, *, structure_only: bool = False
) -> QuantizationReport | None:
    """See `Model.quantize`; `structure_only` makes room for packed values and packs none."""
    model.adapters.check_not_merged("quantize")
    layers = {n: layer for n, layer in model._inference.layers.items() if n.startswith("backbone/")}
    report = (quantize_structure if structure_only else quantize_layers)(layers, mode)
    # Programs and groups are of the variables that were.
    model._inference, model._groups = Inference(model.keras), None
    model.features = None
    return report


def quantization_of(model: Model) -> Quantization | None:
    """See `Model.quantization`."""
    layers = model._inference.layers
    packed: Any = [vars(layers[name])["_kernel"] for name in quantized_layers(model)[:1]]
    return packed[0].form.mode if packed else None


def quantized_layers(model: Model) -> tuple[str, ...]:
    """Returns the names of the layers whose kernels are packed."""
    return tuple(n for n, layer in model._inference.layers.items() if is_quantized(layer))


def packed_kernels(model: Model) -> dict[str, tuple[int, ...]]:
    """Returns the shape that each packed kernel had, by the name that it had."""
    layers: Any = model._inference.layers
    return {f"{name}/kernel": layers[name].kernel.shape for name in quantized_layers(model)}


def _merged_values(model: Model, seed: int) -> dict[str, jax.Array]:
    """What the network's variables would hold with the active adapters merged into them."""
    adapters = model.adapters
    adapters.check_not_merged("merge")
    if not adapters.active:
        raise ModelError("no adapter is active, so there is nothing to merge.")
    weights, layers = model._inference.values(), model._inference.layers
    kernels = {f"{n}/kernel": dequantized_kernel(layers[n]) for n in quantized_layers(model)}
    changed: dict[str, jax.Array] = {}
    for adapter, weight in adapters.acting:
        # One adapter's change is the network of the next: the way they act while apart.
        known = {**weights, **kernels, **changed}
        changed |= adapter.merged(layers, known, adapter.values(weight))
    new = repacked(layers, changed, seed=seed)
    return {name: value.astype(weights[name].dtype) for name, value in new.items()}


def unmerge(model: Model) -> Model:
    """See `Model.unmerge`."""
    adapters = model.adapters
    if not adapters.merged:
        raise ModelError("nothing is merged into the network, so there is nothing to take out.")
    apart = replace(adapters, active=adapters.merged, merged=(), before_merge={})
    return _put_values(model, apart, adapters.before_merge)


def mixed_logits(
    model: Model, count: int, parts: Iterator[Any], names: Sequence[str | None]
) -> np.ndarray:
    """Returns logits of a batch in which each example has an adapter, and its head, of its own."""
    if len(names) != count:
        raise ModelError(
            f"adapters: expected a name for each of {count} examples, got {len(names)}"
        )
    entries = _with_present_head(model)
    used = list(dict.fromkeys(name for name in names if name is not None))
    if not used:
        raise ModelError("adapters: all are None; use adapters_disabled() for the network alone.")
    template = entries[used[0]].adapter
    if other := next((n for n in used if entries[n].adapter.parts != template.parts), None):
        raise ModelError(
            f"adapters {used[0]!r} and {other!r} differ in method, rank or layers, and one batch "
            "holds adapters of one shape; give them batches of their own."
        )
    stacks = [entries[name].adapter.values() for name in used]
    heads = [_head_values(model, entries, name) for name in used]
    if None in names:
        stacks.append(_without_effect(model, template))
        heads.append(_head_values(model, entries, None))
    rows = [len(used) if name is None else used.index(name) for name in names]
    stacked = jax.tree.map(lambda *each: jnp.stack(each), *stacks)
    # The arrays of one head, whichever adapters have it, are the same ones.
    own_heads = any(head[name] is not value for head in heads for name, value in heads[0].items())
    stacked_heads = jax.tree.map(lambda *each: jnp.stack(each), *heads) if own_heads else {}
    values = model._inference.values()
    outputs, done = [], 0
    for part in parts:
        size = len(jax.tree.leaves(part)[0])
        here = np.asarray((rows[done:] + [rows[-1]] * size)[:size], np.int32)
        outputs.append(
            model._inference.each_its_own(values, part, template, stacked, stacked_heads, here)
        )
        done += size
    return np.concatenate([np.asarray(each, np.float32) for each in outputs])[:count]


def _without_effect(model: Model, adapter: Adapter) -> dict[str, jax.Array]:
    """Values with which the adapter does nothing; refused by methods without a scale."""
    if not isinstance(adapter.spec, LoRA):
        adapter.check_weight(0.0)
    values, layers = adapter.values(0.0), model._inference.layers
    for part in adapter.parts:
        if isinstance(part, LoRAPart) and part.dora:  # Its magnitudes are no part of the scale.
            norms = part.norms(layers[part.name], part_values(part, values))
            values[f"{part.name}/magnitude"] = norms
    return values


def _head_values(model: Model, entries: AdapterSet, name: str | None) -> Mapping[str, jax.Array]:
    """The head of an adapter; the model's own where it remembers none."""
    head = entries[name].head if name is not None else None
    if head is None:
        return present_head(model).values if model.labels else {}
    if (head.labels, head.spec) != (model.labels, model.head_spec):
        raise ModelError(
            f"adapter {name!r} has a head for other labels than the model's now ({head.labels} and "
            f"{model.labels}); one batch has logits of one shape. Give it a batch of its own."
        )
    return head.values


def _layer_inputs(
    model: Model, inputs: Iterable[Any]
) -> Callable[[Sequence[str]], Iterator[dict[str, np.ndarray]]]:
    """From layers' names to batches of what goes into them, in the network without adapters."""

    def found(names: Sequence[str]) -> Iterator[dict[str, np.ndarray]]:
        forward = Forward.of(model.keras)
        layers = {name: forward.layers[name] for name in names}

        @jax.jit
        def rows(values: Any, batch: Any) -> dict[str, jax.Array]:
            mask = batch.get("padding_mask") if isinstance(batch, dict) else None
            floats = batch if isinstance(batch, dict) else batch.astype("float32")
            with captured_inputs(layers, mask) as captured:
                forward(values, floats, training=False)
            return dict(captured)

        values = forward.values()
        for batch in inputs:
            yield {name: np.asarray(x) for name, x in rows(values, batch).items()}

    return found
