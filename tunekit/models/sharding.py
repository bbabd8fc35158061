"""How each variable is shared by a mesh of devices, read off the structure of any network.

| axis | what it shares |
|---|---|
| ``tensor`` | a layer's product: queries, keys, values and the way up of an MLP by their outputs (heads, width), the way back by its inputs, as Megatron does (Shoeybi et al. 2019, arXiv 1909.08053, section 3); token tables and language heads by the vocabulary; convolutions by their channels out |
| ``fsdp`` | every larger variable along its longest dimension that divides (Rajbhandari et al. 2019, arXiv 1910.02054, stage 3); XLA gathers it where a layer needs it |
| ``data`` | nothing: each group of devices has a copy |

Where a dimension does not divide, the variable is whole there. An adapter's factors lie as the
sides of the kernel that they stand beside.
"""  # noqa: E501

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax
import keras
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from tunekit.errors import Issue, ModelError, RecipeError, SelectionError
from tunekit.methods.intercept import Call, Wrap
from tunekit.methods.linear import DenseForm, linear_form
from tunekit.methods.part import LayerRole
from tunekit.models.layer_roles import layer_roles
from tunekit.models.placement import BATCH_AXES, MESH_AXES
from tunekit.rules import matching

if TYPE_CHECKING:
    from tunekit.models.model import Model

Axes = tuple[str | None, ...]

SMALLEST_SHARED = 1 << 12
"""Numbers below which a variable is whole on every device: to gather it costs more than it is."""
_BY_OUTPUTS: frozenset[LayerRole] = frozenset(
    {"query", "key", "value", "qkv", "mlp_up", "mlp_gate", "convolution"}
)
_BY_INPUTS: frozenset[LayerRole] = frozenset({"attention_output", "mlp_down"})


def layout_specs(
    model: Model, sizes: Mapping[str, int], own: Mapping[str, Axes] | None = None
) -> dict[str, PartitionSpec]:
    """Returns how each variable of the model, its adapters' among them, is shared.

    Args:
        model: with its head and adapters; its variables may be shapes alone.
        sizes: devices along "data", "fsdp" and "tensor".
        own: from patterns of names to an axis for each dimension; the first that matches counts,
            and what none matches is shared as its layer says.

    Raises:
        RecipeError: a pattern matches nothing, or its axes do not fit what it matches.
    """
    shapes = {name: tuple(v.shape) for name, v in model.forward().variables.items()}
    asked = _asked(own or {}, shapes, sizes)
    by_tensor = _tensor_axes(model, shapes, sizes["tensor"]) if sizes["tensor"] > 1 else {}
    specs = {}
    for name, shape in shapes.items():
        axes = asked.get(name)
        if axes is None:
            axes = _shared(by_tensor.get(name, (None,) * len(shape)), shape, sizes["fsdp"])
        specs[name] = PartitionSpec(*axes)
    return specs


def _shared(axes: Axes, shape: tuple[int, ...], devices: int) -> Axes:
    """`axes` with "fsdp" at the longest dimension that is free and divides."""
    if devices == 1 or math.prod(shape) < SMALLEST_SHARED:
        return axes
    free = [i for i, n in enumerate(shape) if axes[i] is None and n % devices == 0]
    if not free:
        return axes
    longest = max(free, key=lambda i: shape[i])
    return tuple("fsdp" if i == longest else axis for i, axis in enumerate(axes))


def _tensor_axes(model: Model, shapes: Mapping[str, Any], devices: int) -> dict[str, Axes]:
    """Where "tensor" goes, for the variables that it shares."""
    layers = model.forward().layers
    found: dict[str, Axes] = {}
    for name, role in layer_roles(model.keras).items():
        sides = _sides(name, layers[name], role, devices)
        for leaf, axes in sides.items():
            if f"{name}/{leaf}" in shapes:
                found[f"{name}/{leaf}"] = axes
    for prefix, adapter in model.adapters.by_prefix.items():
        for part in adapter.parts:
            if part.name in layers:
                kernel = _kernel_axes(part.name, found, layers[part.name])
                for leaf in part.leaves:
                    name = f"{prefix}/{part.name}/{leaf.name}"
                    found[name] = _factor_axes(kernel, leaf.name, tuple(leaf.shape), devices)
    return {name: axes for name, axes in found.items() if any(axes)}


def _sides(name: str, layer: Any, role: LayerRole, devices: int) -> dict[str, Axes]:
    """The axes of a layer's kernel and bias, by the names of the variables."""
    if role == "embedding":
        divides = layer.input_dim % devices == 0
        return {"embeddings": ("tensor" if divides else None, None)}
    if role == "convolution":
        channels = layer.kernel.shape[-1]
        axis = "tensor" if channels % devices == 0 and layer.groups == 1 else None
        return {"kernel": (None,) * (len(layer.kernel.shape) - 1) + (axis,), "bias": (axis,)}
    if role not in _BY_OUTPUTS | _BY_INPUTS and name != "heads/lm_head":
        return {}
    try:
        form = linear_form(name, layer)
    except ModelError:
        return {}  # It is no plain product, so it is left whole.
    assert isinstance(form, DenseForm)
    if role in _BY_INPUTS:
        first = "tensor" if form.in_shape[0] % devices == 0 else None
        return {"kernel": _at(form, 0, first)}
    first = "tensor" if form.out_shape[0] % devices == 0 else None
    bias = getattr(layer, "bias", None)
    rest = (None,) * (0 if bias is None else len(bias.shape) - 1)
    return {"kernel": _at(form, len(form.in_shape), first), "bias": (first, *rest)}


def _at(form: DenseForm, place: int, axis: str | None) -> Axes:
    """The axes of a kernel of which the `place`-th side, in the order in, out, has `axis`."""
    where = form.kernel_axes[place]
    return tuple(axis if i == where else None for i in range(len(form.kernel_axes)))


def _kernel_axes(
    name: str, found: Mapping[str, Axes], layer: keras.Layer
) -> tuple[str | None, str | None]:
    """The axes of the two sides of a layer's matrix, [in, out]."""
    axes = found.get(f"{name}/kernel") or found.get(f"{name}/embeddings")
    if axes is None:
        return None, None
    try:
        form = linear_form(name, layer)
    except ModelError:
        return None, None
    if not isinstance(form, DenseForm):
        return axes[0] if len(axes) == 2 else None, axes[-1]
    sides = [axes[place] for place in form.kernel_axes]
    return sides[0], sides[len(form.in_shape)]


def _factor_axes(
    kernel: tuple[str | None, str | None], leaf: str, shape: tuple[int, ...], devices: int
) -> Axes:
    """The axes of an adapter's leaf: of [in, R] as the kernel's inputs, of [R, out] as its outputs.

    A factor's side has the axes of a kernel's flattened, of which the shared one is the outermost:
    contiguous parts of one are those of the other.
    """
    axes: list[str | None] = [None] * len(shape)
    if leaf.endswith("_a") and len(shape) == 2 and shape[0] % devices == 0:
        axes[0] = kernel[0]
    if leaf.endswith("_b") and len(shape) == 2 and shape[1] % devices == 0:
        axes[1] = kernel[1]
    return tuple(axes)


def _asked(
    own: Mapping[str, Axes], shapes: Mapping[str, tuple[int, ...]], sizes: Mapping[str, int]
) -> dict[str, Axes]:
    """What the user's rules say of the variables that they match."""
    if not own:
        return {}
    issues = []
    for pattern, axes in own.items():
        if unknown := [axis for axis in axes if axis is not None and axis not in MESH_AXES]:
            message = f"expected {', '.join(MESH_AXES)} or null for each dimension, got {unknown}."
            issues.append(Issue(f"runtime.sharding.{pattern}", message))
    if issues:
        raise RecipeError(issues)
    matched: dict[str, Axes] = {}
    try:
        for pattern, axes in own.items():
            for name in matching(pattern, shapes):
                matched.setdefault(name, axes)
    except SelectionError as error:
        raise RecipeError([Issue("runtime.sharding", str(error))]) from error
    for name, axes in matched.items():
        if message := _misfit(axes, shapes[name], sizes):
            issues.append(Issue("runtime.sharding", f"'{name}' {list(shapes[name])}: {message}"))
    if issues:
        raise RecipeError(issues)
    return matched


def _misfit(axes: Axes, shape: tuple[int, ...], sizes: Mapping[str, int]) -> str:
    if len(axes) != len(shape):
        return f"expected an axis or null for each of its {len(shape)} dimensions, got {len(axes)}."
    for axis, size in zip(axes, shape, strict=True):
        if axis is not None and size % sizes[axis]:
            return f"{size} does not divide by the {sizes[axis]} devices along '{axis}'."
    return ""


def batch_shared(model: Model, mesh: Mesh) -> dict[keras.Layer, Wrap]:
    """Returns the interceptions under which each device keeps to its rows of a batch.

    Without them XLA may share a product by the dimension along which its weights are shared, and
    then every device works on all rows.

    Args:
        model: whose blocks, and other layers at the top of the backbone, are held to it.
        mesh: of the devices.
    """
    body: Any = model.keras.get_layer("backbone")
    layers = {id(layer): layer for layer in body.layers}
    named = model.forward().layers
    for group in model.groups():
        if group.kind == "block":
            layers |= {id(named[name]): named[name] for name in group.layers if name in named}
    shards = mesh.shape["data"] * mesh.shape["fsdp"]
    wrap = functools.partial(_kept_to_rows, mesh, shards)
    return {
        layer: wrap for layer in layers.values() if not isinstance(layer, keras.layers.InputLayer)
    }


def _kept_to_rows(mesh: Mesh, shards: int, call: Call) -> Call:
    def kept_call(*args: Any, **kwargs: Any) -> Any:
        rows = _leading(args, kwargs)
        return jax.tree.map(
            lambda x: _by_rows(x, mesh) if _is_batch(x, rows, shards) else x, call(*args, **kwargs)
        )

    return kept_call


def _leading(args: Sequence[Any], kwargs: Mapping[str, Any]) -> int | None:
    """Rows of the first array that a layer is given."""
    arrays = [x for x in jax.tree.leaves((args, kwargs)) if isinstance(x, jax.Array) and x.ndim]
    return arrays[0].shape[0] if arrays else None


def _is_batch(x: Any, rows: int | None, shards: int) -> bool:
    return (
        isinstance(x, jax.Array) and x.ndim > 1 and x.shape[0] == rows and x.shape[0] % shards == 0
    )


def _by_rows(x: jax.Array, mesh: Mesh) -> jax.Array:
    """The same array, its rows shared by devices, and whole along "tensor" as between Megatron's.

    To leave the other dimensions to XLA (``UNCONSTRAINED``) gives wrong losses on a CPU mesh of all
    three axes (jaxlib 0.10.2).
    """
    return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, PartitionSpec(BATCH_AXES)))
