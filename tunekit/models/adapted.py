"""What is done to a model's adapters while it lives, whole or not at all: methods of `Model`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
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
from tunekit.methods.part import Placed
from tunekit.methods.quantize import quantization_residual
from tunekit.methods.spec import AdapterSpec, LoRA, adapter_spec
from tunekit.models import adapter_files
from tunekit.models.adapters import AdapterSet, Named, SavedHead, weights_of
from tunekit.models.forward import Forward, assign_all
from tunekit.models.spec import Quantization
from tunekit.models.targets import places_of, targets_of

if TYPE_CHECKING:
    from tunekit.models.model import Model


def add_adapter(
    model: Model,
    name: str,
    spec: AdapterSpec | str,
    *,
    seed: int = 0,
    inputs: Iterable[Any] | None = None,
    quantize: Quantization | None = None,
) -> Model:
    """Puts a fresh adapter on the model, which alone is active then; returns the model.

    Args:
        model: that gets it.
        name: how it is called from now on.
        spec: such as ``LoRA(rank=8, targets="attention")``, or a name: "lora", "ia3".
        seed: of random values.
        inputs: batches as `apply` takes them, for a LoRA of init "eva".
        quantize: how the backbone is about to be quantised, for a LoRA of init "loftq".

    Raises:
        ModelError: the name is taken, or the method is impossible on a layer.
        SelectionError: its targets name no layer.
    """
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


def remove_adapter(model: Model, name: str) -> Model:
    """Takes an adapter away; returns the model.

    Raises:
        ModelError: there is none of that name, or it is merged.
    """
    return model.take_adapters(model.adapters.without(name))


def set_adapter(model: Model, names: Named) -> Model:
    """Makes these adapters the ones that act, with the head of the last; returns the model.

    A head that the model has had since goes with the adapters that were active with it.

    Args:
        model: that has them.
        names: of one adapter; of several, an earlier one nearer to the layers; or names with a
            weight each, which multiplies the adapter's effect. Empty: none acts.

    Raises:
        ModelError: there is no such adapter, or it cannot be weighted.
    """
    weights = weights_of(names)
    adapters = _with_present_head(model).activated(weights)
    head = next((adapters[name].head for name in reversed(weights) if adapters[name].head), None)
    if head is not None:
        last = next(name for name in reversed(weights) if adapters[name].head is head)
        adapters = adapters.with_entry(last, replace(adapters[last], head=None))
    return _put(model, adapters, head)


@contextmanager
def adapters_disabled(model: Model) -> Iterator[Model]:
    """Within the block no adapter acts; the head stays."""
    before = model.adapters
    model.take_adapters(replace(before, active=()))
    try:
        yield model
    finally:
        model.take_adapters(replace(model.adapters, active=before.active))


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


def save_adapter(
    model: Model, folder: str | Path, name: str | None = None, recipe: Any = None
) -> Path:
    """Writes an adapter with its head to a folder, and returns the folder.

    LoRA, IA3 and VeRA are written as PEFT writes them, for PEFT and all that reads its files.

    Args:
        model: that has it.
        folder: new, empty, or of an earlier adapter; it appears whole or not at all.
        name: of the adapter; `None` is the one that is active.
        recipe: kept with it, as a tree of JSON values.

    Raises:
        ModelError: no adapter of that name, PEFT cannot say what it does, or the folder holds
            other things.
    """
    if name is None:
        active = [each for each, _ in model.adapters.active]
        if len(active) != 1:
            have = ", ".join(map(repr, model.adapters.entries)) or "none"
            raise ModelError(f"name the adapter to save: {len(active)} are active, of {have}.")
        (name,) = active
    entry = _with_present_head(model)[name]
    head = entry.head or (present_head(model) if model.labels else None)
    return adapter_files.save(model, entry, head, Path(folder), recipe)


def load_adapter(
    model: Model, folder: str | Path, name: str | None = None, *, check_base: bool = True
) -> Model:
    """Adds the adapter of a folder, with its head, and makes it active; returns the model.

    Args:
        model: that gets it.
        folder: that `save_adapter` or PEFT wrote.
        name: that it gets; `None` is the folder's.
        check_base: whether to refuse a network of other weights than it was trained on.

    Raises:
        ModelError: the folder holds no adapter for this network. Nothing has changed then.
    """
    folder = Path(folder)
    name = folder.expanduser().resolve().name if name is None else name
    model.adapters.check_free(name)
    loaded = adapter_files.load(model, folder, check_base=check_base)
    return _put(model, _with_present_head(model).added(name, loaded.adapter), loaded.head)


def combine_adapters(
    model: Model,
    names: Mapping[str, float] | Sequence[str],
    name: str,
    kind: CombineKind = "svd",
    *,
    rank: int | None = None,
    density: float = 0.2,
    seed: int = 0,
) -> Model:
    """Adds an adapter made of several LoRAs, which alone is active then; returns the model.

    Args:
        model: that has them.
        names: of the LoRAs, with a weight each or 1.
        name: of the new one.
        kind: "cat" adds the updates exactly (ranks add up), "svd" finds the nearest of `rank`,
            "linear" adds the factors, which is rough; "ties" keeps apart what disagrees (arXiv
            2306.01708), "dare_linear" and "dare_ties" first drop a part (arXiv 2311.03099).
        rank: of the result, for all but "cat" and "linear"; `None` is the largest of theirs.
        density: share of each update that the last three keep.
        seed: of what is dropped.

    Raises:
        ModelError: one is no plain LoRA, or the kind does not fit them.
    """
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
