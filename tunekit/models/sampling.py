"""How the next token is chosen from its logits.

What a sampler says reaches the compiled program as numbers, so another temperature compiles
nothing.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tunekit.errors import ModelError

Controls = dict[str, Any]
"""A sampler's numbers, each an array without axes."""
_ALL = np.iinfo(np.int32).max


@dataclass(frozen=True)
class Greedy:
    """The likeliest token, always.

    Example:
        >>> Greedy(repetition_penalty=1.1).controls()["temperature"]
        0.0
    """

    repetition_penalty: float = 1.0
    """Logits of tokens that the text holds already are divided by it, negative ones multiplied
    (Keskar et al. 2019, arXiv 1909.05858, section 4.1). 1 changes nothing."""

    def __post_init__(self) -> None:
        """Checks the number.

        Raises:
            ModelError: it is not above 0.
        """
        _check(self, repetition_penalty=(0.0, math.inf))

    def controls(self) -> Controls:
        """Returns the numbers that the program takes."""
        return Sampling(repetition_penalty=self.repetition_penalty).controls() | {
            "temperature": np.float32(0.0)
        }


@dataclass(frozen=True)
class Sampling:
    """A token drawn from ``softmax(logits / temperature)``, of which the unlikely ones are cut off.

    What is cut off goes in the order of the fields, as in transformers; tokens exactly as likely as
    the last one kept are kept with it.

    Example:
        >>> sampler = Sampling(temperature=0.7, top_p=0.9)
    """

    temperature: float = 1.0
    """Above 0; less makes the likely likelier."""
    top_k: int | None = None
    """Keeps the k likeliest; None keeps all."""
    top_p: float = 1.0
    """Keeps the fewest of the likeliest that together reach this probability (Holtzman et al.
    2020, arXiv 1904.09751); above 0, and 1 keeps all."""
    min_p: float = 0.0
    """Keeps those at least this many times as likely as the likeliest (Nguyen et al. 2024, arXiv
    2407.01082); 0 keeps all."""
    repetition_penalty: float = 1.0
    """As of `Greedy`; it comes before all else."""

    def __post_init__(self) -> None:
        """Checks each number.

        Raises:
            ModelError: one is outside of its range.
        """
        above_zero = (0.0, math.inf)
        _check(self, temperature=above_zero, top_p=(0.0, 1.0), repetition_penalty=above_zero)
        if not 0 <= self.min_p <= 1:
            raise ModelError(f"min_p: expected a number from 0 to 1, got {self.min_p}.")
        if self.top_k is not None and (self.top_k != int(self.top_k) or self.top_k < 1):
            raise ModelError(f"top_k: expected a whole number from 1 on or None, got {self.top_k}.")

    def controls(self) -> Controls:
        """Returns the numbers that the program takes."""
        numbers = {field.name: getattr(self, field.name) for field in fields(self)}
        top_k = np.int32(_ALL if self.top_k is None else self.top_k)
        return {n: np.float32(x) for n, x in numbers.items() if n != "top_k"} | {"top_k": top_k}


Sampler = Greedy | Sampling


def choose(logits: jax.Array, seen: jax.Array, keys: jax.Array, controls: Controls) -> jax.Array:
    """Returns one token for each row, int32 [B]; the likeliest where the temperature is 0.

    Args:
        logits: float32 [B, V].
        seen: bool [B, V], the tokens that a row's text holds.
        keys: [B], of the rows' draws.
        controls: of a sampler.
    """
    logits = penalised(logits, seen, controls["repetition_penalty"])

    def drawn() -> jax.Array:
        return jax.vmap(jax.random.categorical)(keys, cut_off(logits, controls))

    def likeliest() -> jax.Array:
        return jnp.argmax(logits, axis=-1)

    return jax.lax.cond(controls["temperature"] > 0, drawn, likeliest).astype(jnp.int32)


def penalised(logits: jax.Array, seen: jax.Array, penalty: Any) -> jax.Array:
    """Returns logits [B, V] of which those of the tokens `seen` are less likely."""
    less = jnp.where(logits > 0, logits / penalty, logits * penalty)
    return jnp.where(seen, less, logits)


def cut_off(logits: jax.Array, controls: Controls) -> jax.Array:
    """Returns logits [B, V] over the temperature, -inf where a token is not to be drawn."""
    logits = logits / controls["temperature"]
    falling = -jnp.sort(-logits, axis=-1)
    ranks = jnp.arange(falling.shape[-1])[None]
    last = jnp.minimum(controls["top_k"], falling.shape[-1]) - 1
    kept = falling >= jnp.take_along_axis(falling, jnp.full((len(falling), 1), last), axis=-1)
    shares = jax.nn.softmax(jnp.where(kept, falling, -jnp.inf), axis=-1)
    # A token stays while those before it do not reach top_p yet; the first one always does.
    before = jnp.cumsum(shares, axis=-1) - shares
    kept &= (before < controls["top_p"]) | (controls["top_p"] >= 1) | (ranks == 0)
    kept &= (shares >= controls["min_p"] * shares[:, :1]) | (ranks == 0)
    # Kept are the first of `falling`, so the last of them is the least that logits may be.
    count = jnp.sum(kept, axis=-1, keepdims=True)
    return jnp.where(logits >= jnp.take_along_axis(falling, count - 1, axis=-1), logits, -jnp.inf)


def _check(sampler: Any, **ranges: tuple[float, float]) -> None:
    for name, (above, most) in ranges.items():
        value = getattr(sampler, name)
        if not above < value <= most or not math.isfinite(value):
            upper = "" if most == math.inf else f" and at most {most:g}"
            hint = " For the likeliest token take Greedy()." if name == "temperature" else ""
            raise ModelError(
                f"{name}: expected a number above {above:g}{upper}, got {value}.{hint}"
            )
