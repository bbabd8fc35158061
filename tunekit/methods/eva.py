"""EVA: a LoRA's first factor from what its layer is fed, and ranks by how much that explains.

Explained variance adaptation (Paischer et al. 2024, arXiv 2410.07170): the right singular vectors
of a layer's inputs, found batch by batch, are the directions in which its update can see most.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import keras
import numpy as np

from tunekit.errors import ModelError
from tunekit.methods.factors import leading_directions
from tunekit.methods.intercept import Call, Wrap, intercept
from tunekit.methods.linear import ConvForm, DenseForm, LinearForm, linear_form


@contextmanager
def captured_inputs(
    layers: Mapping[str, keras.Layer], mask: Any = None, most_rows: int = 512
) -> Iterator[dict[str, jax.Array]]:
    """Within the block every call of a layer adds the rows [N, in] that its matrix multiplies.

    The rows are traced where the call is: return them from the function that is compiled. Of a
    convolution they are patches.

    Args:
        layers: by structural name; built.
        mask: [B, T], true where a token counts; for layers that are fed B x T rows.
        most_rows: of one call; more are thinned evenly.

    Raises:
        ModelError: a layer multiplies nothing that it is fed (an embedding), or is a convolution
            in groups, each of which has directions of its own.
    """
    forms = {name: _form(name, layer) for name, layer in layers.items()}
    captured: dict[str, jax.Array] = {}

    def capture(name: str) -> Wrap:
        def wrap(call: Call) -> Call:
            def recorded_call(inputs: Any, *args: Any, **kwargs: Any) -> Any:
                rows = _evenly(_rows(forms[name], inputs), mask, most_rows)
                before = [captured[name]] if name in captured else []
                captured[name] = jnp.concatenate([*before, rows])
                return call(inputs, *args, **kwargs)

            return recorded_call

        return wrap

    with intercept({layer: capture(name) for name, layer in layers.items()}):
        yield captured


def eva_factors(
    inputs_by_layer: Iterable[Mapping[str, np.ndarray]],
    rank: int,
    rho: float = 1.0,
    tau: float = 0.99,
) -> dict[str, np.ndarray]:
    """Returns the first factor a [in, R] of every layer, R its own; the second one is zero.

    The columns are the leading principal directions of the inputs, orthonormal. All layers have
    `rank` on average: the directions with the largest shares of their layer's variance are taken,
    whichever layer they are of, at most ``rho * rank`` in one. A layer may get none (R = 0), and
    one whose inputs have fewer directions gets no more than they are.

    Batches are taken until every direction chosen has settled, or there are no more. What is kept
    of a layer is ``rho * rank`` directions, whatever the batches' number and size.

    Args:
        inputs_by_layer: batches of rows [N, in] by the layer's name; any number of rows.
        rank: on average.
        rho: how many times the average a layer may have; 1 gives all the same.
        tau: a direction has settled where its cosine with the one before the last batch is at
            least this.

    Raises:
        ModelError: there is no batch, or a layer's inputs are not finite.
    """
    most = round(rank * rho)
    seen: dict[str, _Seen] = {}
    ranks: dict[str, int] = {}
    for inputs in inputs_by_layer:
        before = dict(seen)
        for name, rows in inputs.items():
            seen[name] = _updated(name, seen.get(name), np.asarray(rows, np.float64), most)
        ranks = allocated_ranks({name: one.shares for name, one in seen.items()}, rank * len(seen))
        if all(_settled(before.get(name), one, ranks[name], tau) for name, one in seen.items()):
            break
    if not seen:
        raise ModelError(
            "init 'eva' starts from what the layers are fed, and came to no batch: give it at "
            "least one, or set init to 'default'."
        )
    return {name: one.directions[: ranks[name]].T.astype(np.float32) for name, one in seen.items()}


def allocated_ranks(shares: Mapping[str, np.ndarray], budget: int) -> dict[str, int]:
    """Returns each layer's rank where the largest shares of all are taken, `budget` of them.

    Args:
        shares: of each layer's variance, one a direction, descending.
        budget: sum of the ranks, unless there are fewer shares.
    """
    candidates = [(-share, name) for name, layer in shares.items() for share in layer]
    # The sort is stable: of equal shares the earlier layer's come first.
    chosen = [name for _, name in sorted(candidates, key=lambda pair: pair[0])[:budget]]
    return {name: chosen.count(name) for name in shares}


@dataclass(frozen=True, eq=False)
class _Seen:
    """What is kept of the rows of one layer."""

    count: int
    mean: np.ndarray
    """[in]"""
    scatter: float
    """Sum of the squared distances from the mean."""
    values: np.ndarray
    """[K] singular values of the centred rows."""
    directions: np.ndarray
    """[K, in], orthonormal."""

    @property
    def shares(self) -> np.ndarray:
        """[K]: the fraction of the variance that each direction explains."""
        return self.values**2 / max(self.scatter, np.finfo(np.float64).tiny)


def _updated(name: str, seen: _Seen | None, rows: np.ndarray, most: int) -> _Seen:
    """Returns what is kept once these rows are seen too (Ross et al. 2008, section 3.1).

    The rows before stand in as their directions times their values. One row more stands for the
    distance between the means before and now.
    """
    if not np.isfinite(rows).all():
        raise ModelError(
            f"{name}: init 'eva' needs finite inputs, and this layer is fed NaN or infinity; look "
            "for them in the data or in the network's weights."
        )
    if not len(rows):
        return seen or _Seen(0, np.zeros(rows.shape[1]), 0.0, np.zeros(0), rows)
    mean = rows.mean(axis=0)
    centred = rows - mean
    scatter = float(np.square(centred).sum())
    count = len(rows)
    if seen is not None:
        total = seen.count + count
        apart = np.sqrt(seen.count * count / total) * (seen.mean - mean)
        centred = np.vstack([seen.values[:, None] * seen.directions, centred, apart])
        scatter += seen.scatter + float(np.square(apart).sum())
        mean = (seen.count * seen.mean + count * mean) / total
        count = total
    _, values, directions = leading_directions(centred, most)
    real = values > 0
    return _Seen(count, mean, scatter, values[real], directions[real])


def _settled(before: _Seen | None, now: _Seen, rank: int, tau: float) -> bool:
    """Whether more rows have left the first R directions where they were, up to their sign."""
    if before is None or before is now or len(before.directions) != len(now.directions):
        return False
    cosines = np.abs((before.directions[:rank] * now.directions[:rank]).sum(axis=1))
    return bool((cosines >= tau).all())


def _form(name: str, layer: keras.Layer) -> LinearForm:
    form = linear_form(name, layer)
    if not isinstance(form, DenseForm | ConvForm) or form.groups > 1:
        raise ModelError(
            f"'{name}' is a {type(layer).__name__} that does not multiply all it is fed by one "
            f"matrix, so init 'eva' is impossible on it: leave it out of the targets ('!{name}'), "
            "or set init to 'default'."
        )
    return form


def _rows(form: LinearForm, inputs: Any) -> jax.Array:
    """Returns the rows [N, in] that the layer's matrix multiplies."""
    if isinstance(form, ConvForm):  # a convolution by the identity gives the patches themselves
        identity = jnp.eye(form.in_features, dtype=inputs.dtype)
        inputs = form.product(inputs, identity, per_example=False)
    return inputs.reshape(-1, form.in_features)


def _evenly(rows: jax.Array, mask: Any, most: int) -> jax.Array:
    """Returns at most so many rows, evenly spaced among those that count; shapes are static."""
    count = rows.shape[0]
    if mask is None or mask.size != count:
        mask = jnp.ones(count, bool)
    counting_first = jnp.argsort(~jnp.asarray(mask, bool).reshape(-1), stable=True)
    last = jnp.maximum(jnp.sum(mask) - 1, 0)
    picked = jnp.linspace(0, last, min(count, most)).round().astype("int32")
    return rows[counting_first[picked]]
