"""What is put into a network's own values for good or for now: adapters merged, kernels packed.

`Model` has these functions as its methods; each is done whole or not at all.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from tunekit.errors import ModelError
from tunekit.methods.merge_forecast import MergeForecast, merge_forecast
from tunekit.methods.quantize import (
    QuantizationReport,
    dequantized_kernel,
    is_quantized,
    quantize_layers,
    quantize_structure,
    repacked,
)
from tunekit.models.adapters import AdapterSet
from tunekit.models.forward import assign_all
from tunekit.models.inference import Inference
from tunekit.models.inputs import Inputs, batches, token_columns
from tunekit.models.spec import Quantization

if TYPE_CHECKING:
    from tunekit.models.model import Model


def merge(
    model: Model, items: Inputs | None = None, *, least_agreement: float = 0.95, seed: int = 0
) -> Model:
    """Puts the adapters that act into the network's own values; returns the model.

    The values before are kept, so that `unmerge` is exact.

    Args:
        model: whose adapters are merged.
        items: examples as for `logits`; needed where the backbone is quantised, and the merged
            kernels are quantised again.
        least_agreement: share of their predictions that must stay the same there.
        seed: of the random rounding there, which keeps small changes in the mean.

    Raises:
        ModelError: a method cannot be merged, or too many predictions would change. Nothing has
            changed then.
    """
    forecast_and_merge(model, items, least_agreement=least_agreement, seed=seed)
    return model


def forecast_and_merge(
    model: Model, items: Inputs | None, *, least_agreement: float, seed: int = 0
) -> MergeForecast | None:
    """Merges as `merge` does; returns what was forecast, `None` where nothing is packed."""
    changed, found = _merged_values(model, seed), None
    if quantized_layers(model):
        if items is None:
            raise ModelError(
                "the backbone is quantised: merging rounds the sums at random. Give merge() "
                "some examples, of which it forecasts what changes, or least_agreement=0 and any."
            )
        found = _forecast(model, items, changed)
        if found.top1_agreement < least_agreement:
            raise ModelError(
                f"merging into the quantised backbone was not done: {found}, and expected at "
                f"least {least_agreement:.1%} agreement. Keep the adapter apart, merge into a "
                "backbone that is not quantised, or lower least_agreement."
            )
    before = {name: model._inference.variables[name].value for name in changed}
    merged = replace(model.adapters, active=(), merged=model.adapters.active, before_merge=before)
    _put_values(model, merged, changed)
    return found


def unmerge(model: Model) -> Model:
    """Gives the network its values before `merge` back, bit for bit; returns the model.

    Raises:
        ModelError: nothing is merged.
    """
    adapters = model.adapters
    if not adapters.merged:
        raise ModelError("nothing is merged into the network, so there is nothing to take out.")
    apart = replace(adapters, active=adapters.merged, merged=(), before_merge={})
    return _put_values(model, apart, adapters.before_merge)


def forecast(model: Model, items: Inputs, *, seed: int = 0) -> MergeForecast:
    """Returns how far predictions would move by `merge`: KL divergence and agreement.

    Args:
        model: whose adapters would be merged.
        items: examples as for `logits`.
        seed: as for `merge`.
    """
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


def _put_values(model: Model, adapters: AdapterSet, values: Mapping[str, jax.Array]) -> Model:
    """The model has these adapters, and the network these values: both or neither."""
    with model.restored_on_error():
        model.take_adapters(adapters)
        assign_all(model._inference.variables, values)
    return model


def quantize(model: Model, mode: Quantization) -> QuantizationReport:
    """Packs the backbone's kernels for good; embeddings, norms and heads stay as they are.

    Args:
        model: whose backbone is packed.
        mode: "int8", "int4", or "nf4", 4 bits in the levels of a normal distribution.

    Returns:
        What it saved, and the error that it brought.

    Raises:
        ModelError: an adapter is merged, or no kernel can be packed.
    """
    return _packed(model, mode, quantize_layers)


def make_room_for_packed(model: Model, mode: Quantization) -> None:
    """The backbone has variables for packed kernels, whose values come from a file."""
    _packed(model, mode, quantize_structure)


def _packed(model: Model, mode: Quantization, pack: Callable[..., Any]) -> Any:
    model.adapters.check_not_merged("quantize")
    layers = {n: layer for n, layer in model._inference.layers.items() if n.startswith("backbone/")}
    report = pack(layers, mode)
    # Programs and groups are of the variables that were.
    model._inference, model._groups = Inference(model.keras), None
    model.features = None
    return report


def quantization_of(model: Model) -> Quantization | None:
    """How the backbone's kernels are packed; `None` where they are not."""
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
