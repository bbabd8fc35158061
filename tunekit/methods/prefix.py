"""Prefix tuning: learned keys and values before those of every attention."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import keras
import numpy as np

from tunekit.errors import ModelError
from tunekit.methods.dummy_positions import around_network, in_front, replacing, unmergeable
from tunekit.methods.intercept import Call, Wrap
from tunekit.methods.linear import DenseForm, linear_form
from tunekit.methods.part import Layers, Leaf, Placed, Places, Values
from tunekit.methods.spec import PrefixTuning


@dataclass(frozen=True)
class PrefixPart:
    """P learned outputs of one key or value layer, before those of the text.

    ``attention(q, [P_k; K], [P_v; V])`` (Li and Liang 2021, arXiv 2101.00190, section 4; He et al.
    2022, arXiv 2110.04366, eq. 4), the vectors trained themselves, not through an MLP. Rotary
    embeddings turn a learned key j by its position j as they turn any key: the keys of PEFT's
    files, which are put into the cache behind that, are these after the turn, and all that one form
    can say the other can. Fresh ones act too: they take a share of the attention.
    """

    name: str
    length: int
    """Positions P."""
    form: DenseForm
    dummies: bool
    """Whether there are dummy positions whose outputs these replace; else there are none, and keys
    and values outnumber the queries, as an attention without mask or cache allows."""

    @property
    def layers(self) -> tuple[str, ...]:
        """The one layer."""
        return (self.name,)

    @property
    def leaves(self) -> tuple[Leaf, ...]:
        """The vectors."""
        return (Leaf("prefix", (self.length, *self.form.out_shape)),)

    def wraps(
        self, layers: Layers, values: Values, *, training: bool, per_example: bool
    ) -> dict[keras.Layer, Wrap]:
        """Returns the interception of the layer."""
        del training
        learned = values["prefix"]
        if self.dummies:
            return {layers[self.name]: replacing(learned, self.length, per_example=per_example)}

        def wrap(call: Call) -> Call:
            return lambda *args, **kwargs: in_front(
                learned, call(*args, **kwargs), per_example=per_example
            )

        return {layers[self.name]: wrap}

    def merged(self, layers: Layers, weights: Values, values: Values) -> dict[str, jax.Array]:
        """Has nothing to return.

        Raises:
            ModelError: always; it is more positions, not other weights.
        """
        raise unmergeable(f"the prefix at '{self.name}'", f"{self.length} more positions")


@dataclass(frozen=True)
class PrefixPositions:
    """The P dummy positions of a whole text network; attentions without a prefix do not see them.

    Comes once, beside the prefixes. It has no values, and adds nothing to any one layer.
    """

    name: str
    prepended: int
    """Positions P that a generator puts before the text; see `with_dummies`."""
    blind: tuple[str, ...]
    """Attention layers that have no prefix."""
    leaves: tuple[Leaf, ...] = ()
    layers: tuple[str, ...] = ()

    def wraps(
        self, layers: Layers, values: Values, *, training: bool, per_example: bool
    ) -> dict[keras.Layer, Wrap]:
        """Returns the interceptions of the backbone and of the attentions without a prefix."""
        del values, training, per_example
        hidden = {layers[name]: self._hiding(name) for name in self.blind}
        return {**around_network(layers, self.prepended), **hidden}

    def _hiding(self, name: str) -> Wrap:
        def wrap(call: Call) -> Call:
            def masked(*args: Any, **kwargs: Any) -> Any:
                mask = kwargs.get("attention_mask")
                if mask is None:
                    raise ModelError(
                        f"a prefix in a part of the depth is impossible here: '{name}' takes no "
                        "attention_mask to hide its positions elsewhere. Give within='all'."
                    )
                seen = jnp.arange(mask.shape[-1]) >= self.prepended
                return call(*args, **{**kwargs, "attention_mask": mask * seen.astype(mask.dtype)})

            return masked

        return wrap

    def merged(self, layers: Layers, weights: Values, values: Values) -> dict[str, jax.Array]:
        """Returns nothing: the prefixes say that they cannot be merged."""
        return {}


def place(spec: PrefixTuning, places: Places, rng: np.random.Generator) -> list[Placed]:
    """Returns a prefix at the key and the value of each attention among the targets.

    Raises:
        ModelError: an attention has no key and value layers of its own, or there is none.
    """
    tokens = places.takes == "tokens"
    targets = [name for name in places.targets if places.roles[name] in ("key", "value")]
    having = {_attention(name) for name in targets}
    if not targets:
        raise ModelError(_why_impossible(set(places.roles.values())))
    placed = [_prefix(name, spec.length, places.layers, tokens, rng) for name in targets]
    if not tokens:
        return placed
    every = {_attention(name) for name, role in places.roles.items() if role == "key"}
    positions = PrefixPositions("backbone", spec.length, tuple(sorted(every - having)))
    return [*placed, Placed(positions, {})]


def _prefix(
    name: str, length: int, layers: Layers, tokens: bool, rng: np.random.Generator
) -> Placed:
    form = linear_form(name, layers[name])
    if not isinstance(form, DenseForm):
        raise ModelError(
            f"prefix tuning is impossible at '{name}', a {type(layers[name]).__name__}: keys and "
            "values are no row of positions there. Use LoRA."
        )
    attention = layers.get(_attention(name))
    if not tokens and any("rotary" in method for method in dir(type(attention))):
        raise ModelError(
            f"prefix tuning is impossible at '{name}': {type(attention).__name__} turns every key "
            "by the place of its patch, and a learned key has none. Use VisualPrompt or LoRA."
        )
    part = PrefixPart(name, length, form, dummies=tokens)
    (leaf,) = part.leaves
    # As small as what transformers begin with: no learned key stands out at first.
    first = rng.normal(scale=0.02, size=leaf.shape)
    return Placed(part, {leaf.name: first.astype(np.float32)})


def _attention(name: str) -> str:
    return name.rpartition("/")[0]


def _why_impossible(roles: set[Any]) -> str:
    if "qkv" in roles:
        why = "query, key and value come out of one layer, not each out of its own"
    else:
        why = "it has no attention, so there are no keys and values"
    return f"prefix tuning is impossible on this network: {why}. Use LoRA."
