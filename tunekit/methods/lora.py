"""LoRA and its kin on one layer: two small products on activations, never ``W + B A``.

``y = W x + s B A x`` (Hu et al. 2021, https://arxiv.org/abs/2106.09685, eq. 3), here with inputs on
the left: ``y = x W + s (x A) B``, A [in, R], B [R, out]. The backward pass then needs no gradient
of W, which ``W + s A B`` in training would pay for in full.

DoRA (Liu et al. 2024, https://arxiv.org/abs/2402.09353, eq. 5) scales each output of that to a
trained magnitude m: ``y = (m / |V|) (x V)``, ``V = W + s A B``, the norms |V| of V's columns held
constant in the gradient (section 4.3). They are computed from W, A and B without forming V.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import keras

from tunekit.errors import ModelError
from tunekit.methods.intercept import Call, Wrap
from tunekit.methods.linear import EmbeddingForm, LinearForm, before_activation
from tunekit.methods.part import Layers, Leaf, Values


@dataclass(frozen=True)
class LoRAPart:
    """Two factors beside one layer."""

    name: str
    form: LinearForm
    rank: int
    dropout: float = 0.0
    """Fraction of the inputs of A dropped in training; DoRA's direction keeps them."""
    dora: bool = False
    from_start: bool = False
    """Whether what counts is the way from the values that the factors began with."""

    @property
    def layers(self) -> tuple[str, ...]:
        """The one layer."""
        return (self.name,)

    @property
    def leaves(self) -> tuple[Leaf, ...]:
        """The factors, what they began with, the magnitude, the scale and the dropout's seed."""
        form, rank = self.form, self.rank
        a = (form.in_features, rank)
        b = (rank // form.groups, form.out_features)
        first, second = self.factor_names
        leaves = [Leaf(first, a), Leaf(second, b), Leaf("scaling", (), "constant")]
        if self.from_start:
            leaves += [Leaf("start_a", a, "constant"), Leaf("start_b", b, "constant")]
        if self.dora:
            leaves.append(Leaf("magnitude", (form.out_features,)))
        if self.dropout:
            leaves.append(Leaf("seed", (2,), "seed"))
        return tuple(leaves)

    @property
    def factor_names(self) -> tuple[str, str]:
        """Of the two leaves; PEFT too tells an embedding's factors from a linear map's."""
        if isinstance(self.form, EmbeddingForm):
            return "embedding_a", "embedding_b"
        return "lora_a", "lora_b"

    def wraps(
        self, layers: Layers, values: Values, *, training: bool, per_example: bool
    ) -> Mapping[keras.Layer, Wrap]:
        """Returns the interception of the layer."""
        layer = layers[self.name]
        change = functools.partial(self._changed, layer, values, training, per_example)
        return {layer: functools.partial(_around, layer, self, change, values, per_example)}

    def merged(self, layers: Layers, weights: Values, values: Values) -> dict[str, jax.Array]:
        """Returns the layer's kernel with the update in it."""
        kernel_name = f"{self.name}/{self.form.kernel_name}"
        matrix = self._base_matrix(layers[self.name], weights.get(kernel_name))
        delta = self.delta(values)
        whole = matrix + delta
        if self.dora:
            whole = whole * (values["magnitude"] / jnp.linalg.norm(whole, axis=0))
        return {kernel_name: self.form.kernel(whole)}

    def delta(self, values: Values) -> jax.Array:
        """Returns what is added to the kernel's matrix, float32 [in, out]."""
        a, b, scaling = self.factors(values)
        groups = self.form.groups
        if groups == 1:
            return scaling * (a @ b)
        # Columns of one group's outputs are sums over that group's share of R.
        a, b = a.reshape(a.shape[0], groups, -1), b.reshape(b.shape[0], groups, -1)
        return scaling * jnp.einsum("igr,rgo->igo", a, b).reshape(a.shape[0], -1)

    def factors(self, values: Values) -> tuple[Any, Any, Any]:
        """Returns A, B and scale; beside A and B what is subtracted of a start, negated in B."""
        first, second = self.factor_names
        a, b = values[first], values[second]
        if self.from_start:
            # Side by side: one product of twice the width is quicker than two.
            a = _beside(a, values["start_a"], self.form.groups)
            b = jnp.concatenate([b, -values["start_b"]], axis=-2)
        return a, b, values["scaling"]

    def _changed(
        self,
        layer: keras.Layer,
        values: Values,
        training: bool,
        per_example: bool,
        inputs: Any,
        outputs: Any,
    ) -> Any:
        a, b, scaling = self.factors(values)
        x = self._dropped(inputs, values) if training and self.dropout else inputs
        hidden = self.form.product(x, a.astype(outputs.dtype), per_example=per_example)
        update = self.form.outputs(
            hidden * _over(scaling, hidden), b.astype(outputs.dtype), per_example=per_example
        )
        if not self.dora:
            return outputs + update
        share = self._magnitude_share(layer, values, per_example)
        share = self.form.vector(share, outputs, per_example=per_example).astype(outputs.dtype)
        bias = getattr(layer, "bias", None)
        plain = outputs if bias is None else outputs - jnp.asarray(bias).astype(outputs.dtype)
        return outputs + (share - 1) * plain + share * update

    def _magnitude_share(self, layer: keras.Layer, values: Values, per_example: bool) -> Any:
        """``m / |V|`` for each output; |V| takes no gradient."""
        norms = functools.partial(self.norms, layer)
        factors = {name: v for name, v in values.items() if name not in ("magnitude", "seed")}
        factors = jax.lax.stop_gradient(factors)
        return values["magnitude"] / (jax.vmap(norms)(factors) if per_example else norms(factors))

    def norms(self, layer: keras.Layer, values: Values) -> jax.Array:
        """Returns the norms of the columns of ``W + s A B``, float32 [out].

        ``|w|^2 + 2 s w'Ab + s^2 b'(A'A)b``: no matrix of W's size but W itself.
        """
        a, b, scaling = self.factors(values)
        kernel = jax.lax.stop_gradient(self._base_matrix(layer, None))
        squares = jnp.sum(kernel * kernel, axis=0)
        across = jnp.sum((a.T @ kernel) * b, axis=0)
        own = jnp.sum(b * ((a.T @ a) @ b), axis=0)
        return jnp.sqrt(jnp.maximum(squares + 2 * scaling * across + scaling**2 * own, 1e-12))

    def _base_matrix(self, layer: Any, kernel: Any) -> Any:
        if kernel is None:
            kernel = jnp.asarray(getattr(layer, self.form.kernel_name))
        return self.form.matrix(jnp.asarray(kernel)).astype("float32")

    def _dropped(self, inputs: Any, values: Values) -> Any:
        if isinstance(self.form, EmbeddingForm):
            return inputs  # tokens; PEFT drops nothing of an embedding either
        keep = jax.random.bernoulli(values["seed"], 1 - self.dropout, inputs.shape)
        return jnp.where(keep, inputs / (1 - self.dropout), 0).astype(inputs.dtype)


def _around(
    layer: keras.Layer, part: LoRAPart, change: Call, values: Values, per_example: bool, call: Call
) -> Call:
    if not isinstance(part.form, EmbeddingForm):
        return before_activation(layer, call, change)
    reversible = isinstance(layer, keras.layers.ReversibleEmbedding)

    def lookup(inputs: Any, *args: Any, **kwargs: Any) -> Any:
        outputs = call(inputs, *args, **kwargs)
        reverse = reversible and (kwargs.get("reverse", False) or (args and args[0]))
        if not reverse:
            return change(inputs, outputs)
        return _reversed(layer, part, values, per_example, inputs, outputs)

    return lookup


def _reversed(
    layer: Any, part: LoRAPart, values: Values, per_example: bool, inputs: Any, outputs: Any
) -> Any:
    """The table used from the other side, as a language head: ``h W'`` gains ``s (h B') A'``."""
    if not layer.tie_weights:
        return outputs
    if layer.logit_soft_cap is not None or part.dora:
        raise ModelError(
            f"'{part.name}' is also the language head, of which "
            f"{'DoRA' if part.dora else 'capped logits'} cannot be adapted through the embedding. "
            f"Leave it out of the targets: '!{part.name}'."
        )
    a, b, scaling = part.factors(values)
    turned = functools.partial(jnp.swapaxes, axis1=-1, axis2=-2)
    hidden = part.form.outputs(
        inputs.astype(outputs.dtype), turned(b).astype(outputs.dtype), per_example=per_example
    )
    hidden = hidden * _over(scaling, hidden)
    return outputs + part.form.outputs(
        hidden, turned(a).astype(outputs.dtype), per_example=per_example
    )


def _over(scaling: Any, hidden: Any) -> Any:
    """The scale in the dtype of `hidden`; behind it as many axes as make it broadcast."""
    scaling = scaling.astype(hidden.dtype)
    return scaling.reshape(-1, *(1,) * (hidden.ndim - 1)) if scaling.ndim else scaling


def _beside(a: Any, start: Any, groups: int) -> Any:
    """Both [in, R] factors side by side, group by group."""
    lead = a.shape[:-1]
    both = [x.reshape(*lead, groups, -1) for x in (a, start)]
    return jnp.concatenate(both, axis=-1).reshape(*lead, -1)
