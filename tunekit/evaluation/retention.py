"""How far a language model has moved from its base, and what part of the way is worth going.

A dial takes the model from its base (0) through where training left it (1) and beyond: it scales
the adapters, or goes along the line between the weights before and after (Wortsman et al. 2022,
https://arxiv.org/abs/2109.01903, eq. 1).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tunekit.errors import DataError, ModelError, did_you_mean
from tunekit.models.forward import Forward
from tunekit.models.model import Model
from tunekit.names import structural_names

Values = Mapping[str, jax.Array]


@dataclass(frozen=True, eq=False)
class Dial:
    """A model between its base and where training left it."""

    turns: str
    """What it turns: "adapters" or "weights"."""
    base: Forward
    tuned: Forward
    base_values: Values
    at: Callable[[float], Values]
    """From a place on the dial to values of `tuned`: 0 is the base, 1 the tuned model."""


def adapter_dial(model: Model, scales: Sequence[float]) -> Dial:
    """Returns the dial of the adapters that act; the model is not changed.

    Raises:
        ModelError: none acts, or one cannot be scaled by one of `scales`.
    """
    acting = list(zip(model.adapters.active, model.adapters.acting, strict=True))
    if not acting:
        raise ModelError("expected an active adapter to scale, and none is; set_adapter(name).")
    for _, (adapter, weight) in acting:
        for scale in scales:
            if scale not in (0, 1):
                try:
                    adapter.check_weight(weight * scale)
                except ModelError as error:
                    raise ModelError(f"{error} Turn the dial by scales=(0, 1).") from error
    own = {name: variable.value for name, variable in structural_names(model.keras).items()}

    def at(scale: float) -> Values:
        scaled = {
            f"adapters/{name}/{leaf}": value
            for (name, _), (adapter, weight) in acting
            for leaf, value in adapter.values(weight * scale).items()
        }
        return {**own, **scaled}

    return Dial("adapters", Forward.of(model.keras), model.forward(), own, at)


def weight_dial(model: Model, base: Mapping[str, Any]) -> Dial:
    """Returns the dial along W(a) = (1 - a) base + a tuned; the model is not changed.

    Args:
        model: tuned.
        base: what its variables held before, by structural name; those left out did not change.

    Raises:
        ModelError: a name or shape is not of the model, or what changed is no number on a line.
    """
    own = {name: variable.value for name, variable in structural_names(model.keras).items()}
    for name, value in base.items():
        if name not in own or own[name].shape != np.shape(value):
            have = "no such variable" if name not in own else f"{own[name].shape}"
            raise ModelError(
                f"base: '{name}' has shape {np.shape(value)}, and the tuned model has {have}. Give "
                f"the model that training began from.{did_you_mean(name, own)}"
            )
    before = {name: jnp.asarray(value, own[name].dtype) for name, value in base.items()}
    changed = [name for name, value in before.items() if not bool(jnp.all(value == own[name]))]
    packed = [name for name in changed if not jnp.issubdtype(own[name].dtype, jnp.floating)]
    if packed:
        raise ModelError(
            f"base: '{packed[0]}' is of {own[packed[0]].dtype}, and between whole numbers there is "
            "no line. Compare models whose weights are not quantised."
        )

    def at(scale: float) -> Values:
        # Exact at both ends, as base + a (tuned - base) is not.
        line = {name: (1 - scale) * before[name] + scale * own[name] for name in changed}
        return {**own, **{name: value.astype(own[name].dtype) for name, value in line.items()}}

    plain = Forward.of(model.keras)
    return Dial("weights", plain, plain, {**own, **before}, at)


@dataclass(frozen=True)
class Distance:
    """A model on one set of texts."""

    loss: float
    """-log p of a token that counts, on average."""
    kl: float
    """KL(base || model) of what comes next, on average over the same tokens."""
    tokens: int


def distances(
    dial: Dial, scales: Sequence[float], batches: Iterable[Mapping[str, Any]], name: str
) -> list[Distance]:
    """Returns the model's distance from the texts and from its base, at each place of the dial.

    Logits of the base and of one other place are held at a time, and of one batch.

    Args:
        dial: the model.
        scales: places on it.
        batches: "token_ids", "padding_mask", "targets" and "loss_weights" [B, T].
        name: what an error calls the texts.

    Raises:
        DataError: no token counts.
    """
    base, tuned = jax.jit(_program(dial.base)), jax.jit(_compared(dial.tuned))
    alone = jax.jit(lambda log_p, *counted: _sums(log_p, log_p, *counted))
    sums, tokens = np.zeros((len(scales), 2)), 0
    for batch in batches:
        inputs = {key: jnp.asarray(batch[key]) for key in ("token_ids", "padding_mask")}
        counted = jnp.asarray(batch["targets"]), jnp.asarray(batch["loss_weights"])
        log_p = base(dict(dial.base_values), inputs)
        for place, scale in enumerate(scales):
            # Not every adapter that is scaled by 0 does nothing: a DoRA keeps its magnitudes.
            if scale == 0:
                found = alone(log_p, *counted)
            else:
                found = tuned(dict(dial.at(scale)), inputs, log_p, *counted)
            sums[place] += np.asarray(found)
        tokens += int(np.asarray(batch["loss_weights"]).sum())
    if not tokens:
        raise DataError(
            f"{name}: expected tokens to compare models on, and none of its texts has one that "
            "counts: prompts fill all of max_length. Raise it, or give other texts."
        )
    return [Distance(float(loss), max(float(kl), 0.0), tokens) for loss, kl in sums / tokens]


def _program(forward: Forward) -> Callable[..., jax.Array]:
    """Values and inputs to log probabilities, float32 [B, T, V]."""

    def log_probabilities(values: Any, inputs: Any) -> jax.Array:
        logits: Any = forward(values, inputs, training=False)[0]
        return jax.nn.log_softmax(logits.astype(jnp.float32))

    return log_probabilities


def _compared(forward: Forward) -> Callable[..., jax.Array]:
    """Values, inputs and the base's log probabilities to `_sums`."""
    log_probabilities = _program(forward)
    return lambda values, inputs, log_p, *counted: _sums(
        log_p, log_probabilities(values, inputs), *counted
    )


def _sums(log_p: jax.Array, log_q: jax.Array, targets: jax.Array, weights: jax.Array) -> jax.Array:
    """Sums of the loss of q and of KL(p || q) over the tokens that count, [2]."""
    loss = -jnp.take_along_axis(log_q, targets[..., None], axis=-1)[..., 0]
    kl = jnp.sum(jnp.exp(log_p) * (log_p - log_q), axis=-1)
    # Chosen and not multiplied: at padding anything may stand.
    chosen = jnp.where(weights > 0, jnp.stack([loss, kl]), 0.0)
    return jnp.sum(chosen * weights, axis=(1, 2))


@dataclass(frozen=True)
class RetentionRow:
    """The model at one place of the dial."""

    scale: float
    """0 is the base, 1 the tuned model."""
    loss: float
    """On the new task, of a token that counts."""
    perplexity: float
    """e to that loss."""
    retained_loss: float
    """On the retention set."""
    retained_perplexity: float
    """e to that loss."""
    kl: float
    """KL(base || model) of a token of the retention set, in nats."""

    def to_json(self) -> dict[str, float]:
        """Returns the row as plain numbers."""
        return asdict(self)


def pareto_front(rows: Sequence[RetentionRow]) -> tuple[RetentionRow, ...]:
    """Returns the rows that no other beats on the new task without losing more of the old.

    Ordered by retained loss; of equal rows the first stays.
    """
    front: list[RetentionRow] = []
    for row in sorted(rows, key=lambda row: (row.retained_loss, row.loss)):
        if not front or row.loss < front[-1].loss:
            front.append(row)
    return tuple(front)
