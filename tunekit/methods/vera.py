"""VeRA: one frozen random pair of factors for all layers, and trained vectors that scale it.

``y = W x + s b * (B (d * (A x)))`` (Kopiczko et al. 2024, arXiv 2310.11454, eq. 2), here with
inputs on the left. As in PEFT, A and B are as large as the largest layer needs, and every layer
uses their first rows and columns. A and B are drawn from a seed, d begins at a small constant and b
at zero: a fresh adapter changes nothing.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import keras
import numpy as np

from tunekit.errors import ModelError
from tunekit.methods.ia3 import float_kernel, scaled
from tunekit.methods.intercept import Call, Wrap
from tunekit.methods.linear import DenseForm, before_activation, linear_form
from tunekit.methods.part import Layers, Leaf, Placed, Places, Values
from tunekit.methods.spec import VeRA

SHARED = "shared"
"""Name of the part, which sits on no one layer."""


@dataclass(frozen=True)
class VeRAPart:
    """All the layers of one adapter: they share the factors "vera_a" [in, R], "vera_b" [R, out].

    Each layer's vectors are the leaves "<layer>/lambda_d" [R] and "<layer>/lambda_b" [out].
    """

    targets: tuple[tuple[str, DenseForm], ...]
    rank: int
    dropout: float = 0.0
    """Fraction of the inputs of A dropped in training."""
    name: str = SHARED

    @property
    def layers(self) -> tuple[str, ...]:
        """The targets."""
        return tuple(target for target, _ in self.targets)

    @property
    def leaves(self) -> tuple[Leaf, ...]:
        """The factors, the vectors of each layer, the strength and the dropout's seed."""
        rows = max(form.in_features for _, form in self.targets)
        columns = max(form.out_features for _, form in self.targets)
        leaves = [
            Leaf("vera_a", (rows, self.rank), "constant"),
            Leaf("vera_b", (self.rank, columns), "constant"),
            Leaf("scaling", (), "constant"),
        ]
        for target, form in self.targets:
            leaves.append(Leaf(f"{target}/lambda_d", (self.rank,)))
            leaves.append(Leaf(f"{target}/lambda_b", (form.out_features,)))
        if self.dropout:
            leaves.append(Leaf("seed", (2,), "seed"))
        return tuple(leaves)

    def wraps(
        self, layers: Layers, values: Values, *, training: bool, per_example: bool
    ) -> dict[keras.Layer, Wrap]:
        """Returns the interceptions of all the layers."""
        wraps: dict[keras.Layer, Wrap] = {}
        for place, (target, form) in enumerate(self.targets):
            drops = training and self.dropout > 0
            dropped = functools.partial(self._dropped, place, values) if drops else None
            own = _of_layer(target, form, values)
            change = functools.partial(_changed, form, own, dropped, per_example)
            layer = layers[target]
            wraps[layer] = functools.partial(_before_activation, layer, change)
        return wraps

    def _dropped(self, place: int, values: Values, inputs: Any) -> Any:
        """The inputs of one layer less those dropped, which differ from layer to layer."""
        seed = jax.random.fold_in(values["seed"], place)
        keep = jax.random.bernoulli(seed, 1 - self.dropout, inputs.shape)
        return jnp.where(keep, inputs / (1 - self.dropout), 0).astype(inputs.dtype)

    def merged(self, layers: Layers, weights: Values, values: Values) -> dict[str, jax.Array]:
        """Returns each kernel with its update ``s A diag(d) B diag(b)`` in it.

        Raises:
            ModelError: a kernel is of integers.
        """
        merged = {}
        for target, form in self.targets:
            name = f"{target}/{form.kernel_name}"
            own = _of_layer(target, form, values)
            delta = (own["vera_a"] * own["lambda_d"]) @ (own["vera_b"] * own["lambda_b"])
            kernel = float_kernel(layers[target], name, weights)
            merged[name] = kernel + form.kernel(own["scaling"] * delta)
        return merged


def place(spec: VeRA, places: Places, rng: np.random.Generator) -> list[Placed]:
    """Returns the one part of the adapter, for all its targets.

    The factors depend on `spec` and the largest target alone, so that adapters of one network can
    share them; A is Kaiming-uniform over its inputs and B over the rank, as in PEFT.

    Raises:
        ModelError: a target is not a dense layer.
    """
    del rng
    targets = tuple((name, _form(name, places.layers[name])) for name in places.targets)
    part = VeRAPart(targets, spec.rank, spec.dropout)
    projections = np.random.default_rng(spec.projection_seed)
    values: dict[str, np.ndarray] = {"scaling": np.ones((), np.float32)}
    for leaf in part.leaves:
        if leaf.name in ("vera_a", "vera_b"):
            bound = (6 / leaf.shape[0]) ** 0.5
            values[leaf.name] = projections.uniform(-bound, bound, leaf.shape).astype(np.float32)
        elif leaf.role == "weight":
            first = spec.d_initial if leaf.name.endswith("/lambda_d") else 0.0
            values[leaf.name] = np.full(leaf.shape, first, np.float32)
    return [Placed(part, values)]


def _form(name: str, layer: keras.Layer) -> DenseForm:
    form = linear_form(name, layer)
    if not isinstance(form, DenseForm):
        raise ModelError(
            f"VeRA is not defined on '{name}' ({type(layer).__name__}): its layers share one pair "
            "of factors, and only dense layers are alike enough. Leave it out of the targets: "
            f"'!{name}', or use LoRA."
        )
    return form


def _of_layer(target: str, form: DenseForm, values: Values) -> dict[str, Any]:
    """The layer's own vectors, and its share of the factors."""
    return {
        "vera_a": values["vera_a"][..., : form.in_features, :],
        "vera_b": values["vera_b"][..., : form.out_features],
        "lambda_d": values[f"{target}/lambda_d"],
        "lambda_b": values[f"{target}/lambda_b"],
        "scaling": values["scaling"],
    }


def _changed(
    form: DenseForm,
    own: Values,
    dropped: Callable[[Any], Any] | None,
    per_example: bool,
    inputs: Any,
    outputs: Any,
) -> Any:
    x = inputs if dropped is None else dropped(inputs)
    hidden = form.product(x, own["vera_a"], per_example=per_example)
    strength = own["scaling"][..., None] * own["lambda_d"]
    update = form.outputs(scaled(hidden, strength), own["vera_b"], per_example=per_example)
    return outputs + scaled(update, own["lambda_b"])


def _before_activation(layer: keras.Layer, change: Callable[[Any, Any], Any], call: Call) -> Call:
    return before_activation(layer, call, change)
