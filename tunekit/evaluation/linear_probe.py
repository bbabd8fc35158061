"""Linear probes: what a linear classifier can read from features, at several depths at once.

A probe is multinomial logistic regression on standardised features. All probes of a model are
fitted together: narrow features are padded with zeros, on which an L2 penalty leaves no weight.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

PENALTIES = (1e-3, 1e-2, 1e-1, 1.0, 10.0)
"""Tried by cross-validation, since no one L2 penalty suits features of every width."""
FOLDS = 3
TOLERANCE = 1e-4
"""Largest part of the gradient at which a fit has ended: scikit-learn's default."""
MAX_ITERATIONS = 200
MEMORY = 10
"""Steps that L-BFGS remembers."""
NEWTON_STEPS = 5
_TOGETHER_BYTES = 2**30

Parameters = dict[str, jax.Array]


class _Fit(NamedTuple):
    """A regression on its way."""

    parameters: Parameters
    logits: jax.Array
    gradient: Parameters
    history: Any


@dataclass(frozen=True, eq=False)
class LinearProbe:
    """A fitted probe, and which of the examples it never saw it got right."""

    kernel: np.ndarray
    """float32 [D, C], of raw features: ``logits = features @ kernel + bias``."""
    bias: np.ndarray
    """float32 [C]."""
    l2: float
    """The penalty that cross-validation chose."""
    correct: np.ndarray
    """bool [N]."""

    @property
    def accuracy(self) -> float:
        """Share of the examples that it got right."""
        return float(self.correct.mean())

    @property
    def standard_error(self) -> float:
        """Of the accuracy: sqrt(p (1 - p) / n) with n = N + 1 and p = (right + 1/2) / n.

        The half on either side (Agresti and Coull 1998, for one standard error) keeps a few
        examples, all of them right, from being taken for certainty.
        """
        n = len(self.correct) + 1
        p = (self.correct.sum() + 0.5) / n
        return float((p * (1 - p) / n) ** 0.5)


def fit_probes(
    train: Mapping[str, np.ndarray],
    train_labels: np.ndarray,
    test: Mapping[str, np.ndarray],
    test_labels: np.ndarray,
    *,
    classes: int,
    seed: int = 0,
) -> dict[str, LinearProbe]:
    """Returns the probe of each kind of features, fitted to `train` and judged on `test`.

    The penalty of each has the least loss in cross-validation within `train`; the probe is then
    fitted to all of it.

    Args:
        train: features float32 [N, D] by name; D may differ.
        train_labels: class numbers [N].
        test: features [M, D] by the same names.
        test_labels: class numbers [M].
        classes: C.
        seed: of the division into folds.
    """
    scales = {name: _Scale.of(features) for name, features in train.items()}
    width = max(scale.basis.shape[1] for scale in scales.values())
    stacked = np.zeros((len(train), len(train_labels), width), np.float32)
    for row, (name, scale) in zip(stacked, scales.items(), strict=True):
        row[:, : scale.basis.shape[1]] = (train[name] - scale.centre) @ scale.basis
    kernels, biases, chosen = _fit(stacked, train_labels, classes, seed)
    probes = {}
    for i, (name, scale) in enumerate(scales.items()):
        kernel = scale.basis @ kernels[i, : scale.basis.shape[1]]
        bias = biases[i] - scale.centre @ kernel
        correct = (test[name] @ kernel + bias).argmax(axis=1) == test_labels
        probes[name] = LinearProbe(kernel, bias, PENALTIES[chosen[i]], correct)
    return probes


class _Scale(NamedTuple):
    """From features [N, D] to the coordinates that are fitted: ``(features - centre) @ basis``."""

    centre: np.ndarray
    basis: np.ndarray
    """[D, min(N, D)]: makes every column's standard deviation 1, a constant one's 0."""

    @classmethod
    def of(cls, features: np.ndarray) -> _Scale:
        """Returns the scale of N examples with D features.

        Where D is greater than N the coordinates are those in the space that the examples span,
        in which the optimal kernels lie: fewer numbers, the same fit.
        """
        centre, deviation = features.mean(axis=0), features.std(axis=0)
        constant = deviation <= 1e-6 * np.abs(centre) + 1e-12
        scale = np.where(constant, 0, 1 / np.where(constant, 1, deviation)).astype(np.float32)
        count, width = features.shape
        if width <= count:
            return cls(centre, np.diag(scale))
        span, _ = np.linalg.qr(((features - centre) * scale).T)
        return cls(centre, scale[:, None] * span)


def _fit(
    features: np.ndarray, labels: np.ndarray, classes: int, seed: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns kernels [K, D, C], biases [K, C] and numbers of penalties [K] of K features."""
    count, _, width = features.shape
    trains = np.ones((FOLDS + 1, len(labels)), np.float32)
    fold_of = _folds(labels, seed)
    trains[:FOLDS] = fold_of != np.arange(FOLDS)[:, None]
    weights = np.tile(trains, (len(PENALTIES), 1))
    l2 = np.repeat(np.asarray(PENALTIES, np.float32), FOLDS + 1)
    fit_bytes = 4 * 2 * (MEMORY + 3) * len(l2) * width * classes
    together = int(np.clip(_TOGETHER_BYTES // fit_bytes, 1, count))
    one = partial(_cross_validated, labels=labels, weights=weights, l2=l2, classes=classes)
    # Parts of them at a time where all do not fit into memory.
    kernels, biases, losses = jax.jit(lambda each: jax.lax.map(one, each, batch_size=together))(
        features
    )
    chosen = np.asarray(losses).argmin(axis=1)
    rows = np.arange(count)
    return np.asarray(kernels)[rows, chosen], np.asarray(biases)[rows, chosen], chosen


def _cross_validated(
    features: jax.Array, *, labels: Any, weights: Any, l2: Any, classes: int
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Kernels [P, D, C] and biases [P, C] fitted to everything, and out-of-fold losses [P]."""
    kernels, biases = logistic_regression(features, labels, weights, l2, classes=classes)
    logits = _matmul(features, kernels) + biases[:, None]
    held_out = (1 - weights) * _losses(logits, labels)
    losses = held_out.sum(axis=1).reshape(-1, FOLDS + 1).sum(axis=1)
    return kernels[FOLDS :: FOLDS + 1], biases[FOLDS :: FOLDS + 1], losses


def logistic_regression(
    features: jax.Array,
    labels: Any,
    weights: Any,
    l2: Any,
    *,
    classes: int,
    tolerance: float = TOLERANCE,
) -> tuple[jax.Array, jax.Array]:
    """Returns the kernels [M, D, C] and biases [M, C] of M regressions on the same features.

    Each is the minimum, by full-batch L-BFGS, of

        sum_i w_i CE(x_i W + b, y_i) / sum_i w_i + l2 / 2 |W|^2,

    which is that of scikit-learn's ``LogisticRegression(C=1 / (l2 * sum_i w_i))``; of two classes
    scikit-learn keeps one column, whose penalty is twice this one at the same C.

    Args:
        features: float32 [N, D].
        labels: class numbers [N].
        weights: float32 [M, N], of each example in each regression.
        l2: float32 [M].
        classes: C.
        tolerance: largest part of the gradient at which a fit has ended.
    """
    fit = partial(_minimum, features, jax.nn.one_hot(labels, classes), tolerance)
    return jax.vmap(fit)(jnp.asarray(weights), jnp.asarray(l2))


def _minimum(
    features: jax.Array,
    targets: jax.Array,
    tolerance: float,
    weight: jax.Array,
    l2: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """Returns the kernel [D, C] and bias [C] of one regression, from zero by L-BFGS."""
    weight = (weight / weight.sum())[:, None]
    precondition = optax.scale_by_lbfgs(memory_size=MEMORY)

    def gradient_at(parameters: Parameters, logits: jax.Array) -> Parameters:
        residuals = weight * (jax.nn.softmax(logits) - targets)
        kernel = _matmul(features.T, residuals) + l2 * parameters["kernel"]
        return {"kernel": kernel, "bias": residuals.sum(axis=0)}

    def goes_on(fit: _Fit) -> jax.Array:
        steepest = optax.tree.norm(fit.gradient, ord=jnp.inf)
        return (fit.history.count < MAX_ITERATIONS) & (steepest > tolerance)

    def step(fit: _Fit) -> _Fit:
        uphill, history = precondition.update(fit.gradient, fit.history, fit.parameters)
        way = optax.tree.scale(-1, uphill)
        slope = _matmul(features, way["kernel"]) + way["bias"]
        penalty = (
            l2 * jnp.vdot(fit.parameters["kernel"], way["kernel"]),
            l2 * jnp.vdot(way["kernel"], way["kernel"]),
        )
        length = _step_length(fit.logits, slope, targets, weight, penalty)
        parameters = optax.tree.add_scale(fit.parameters, length, way)
        logits = fit.logits + length * slope
        return _Fit(parameters, logits, gradient_at(parameters, logits), history)

    start = {"kernel": jnp.zeros((features.shape[1], targets.shape[1]))}
    start["bias"] = jnp.zeros(targets.shape[1])
    logits = jnp.zeros_like(targets)
    first = _Fit(start, logits, gradient_at(start, logits), precondition.init(start))
    fitted = jax.lax.while_loop(goes_on, step, first).parameters
    return fitted["kernel"], fitted["bias"]


def _step_length(
    logits: jax.Array,
    slope: jax.Array,
    targets: jax.Array,
    weight: jax.Array,
    penalty: tuple[jax.Array, jax.Array],
) -> jax.Array:
    """Returns how far to go along a way on which the logits are ``logits + length * slope``.

    There the objective is a convex function of one number, and what it costs to follow does not
    depend on the width of the features: Newton's method, kept between the ends known so far.
    """

    def newton(_: int, carried: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        length, low, high = carried
        p = jax.nn.softmax(logits + length * slope)
        mean = jnp.sum(p * slope, axis=1, keepdims=True)
        first = jnp.sum(weight * (p - targets) * slope) + penalty[0] + length * penalty[1]
        second = jnp.sum(weight * p * (slope - mean) ** 2) + penalty[1]
        low, high = jnp.where(first < 0, length, low), jnp.where(first < 0, high, length)
        following = length - first / jnp.maximum(second, jnp.finfo(jnp.float32).tiny)
        inside = (following > low) & (following < high)
        return jnp.where(inside, following, jnp.minimum((low + high) / 2, 2 * length)), low, high

    ends = (jnp.float32(1), jnp.float32(0), jnp.float32(jnp.inf))
    return jax.lax.fori_loop(0, NEWTON_STEPS, newton, ends)[0]


def _losses(logits: jax.Array, labels: Any) -> jax.Array:
    """Cross-entropies [..., N] of logits [..., N, C]."""
    right = jnp.asarray(labels)[:, None]
    log_p = jax.nn.log_softmax(logits)
    right = jnp.broadcast_to(right, (*logits.shape[:-1], 1))
    return -jnp.take_along_axis(log_p, right, axis=-1)[..., 0]


def _matmul(features: Any, kernel: jax.Array) -> jax.Array:
    # Accelerators round float32 factors to fewer bits by default, and the fit would never settle.
    return jnp.matmul(features, kernel, precision="highest")


def _folds(labels: np.ndarray, seed: int) -> np.ndarray:
    """The fold of each example: each class is spread over the folds as evenly as may be."""
    order = np.random.default_rng(seed).permutation(len(labels))
    by_class = order[np.argsort(labels[order], kind="stable")]
    folds = np.empty(len(labels), int)
    folds[by_class] = np.arange(len(labels)) % FOLDS
    return folds
