"""What the two factors of a LoRA begin with: random, the matrix's own directions, or its errors.

A LoRA of scaling s turns a matrix W [in, out] into ``W + s (a b - a0 b0)``, where (a0, b0) are what
an initialisation took from W itself. PEFT subtracts those from W; here W stays as it is.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy.linalg import eigh

from tunekit.errors import ModelError

RandomInit = Literal["default", "gaussian", "orthogonal"]
WeightInit = Literal["pissa", "olora"]


@dataclass(frozen=True, eq=False)
class InitialFactors:
    """The factors that a LoRA begins with, float32."""

    a: np.ndarray
    """[in, R]"""
    b: np.ndarray
    """[R, out]"""
    start: tuple[np.ndarray, np.ndarray] | None = None
    """(a0, b0) to subtract, equal to (a, b): a fresh adapter changes nothing. `None` where ``a b``
    is zero by itself, or, after LoftQ, is meant to act from the first step."""


def random_factors(
    init: RandomInit,
    shape: tuple[int, int],
    rank: int,
    rng: np.random.Generator,
    *,
    embedding: bool = False,
) -> InitialFactors:
    """Returns random factors whose product is zero, drawn as PEFT draws them.

    "default" is Kaiming-uniform: a in +-1/sqrt(in). "gaussian" has a standard deviation of 1/R.
    Both have b zero; for an embedding both mean a zero, b standard normal, so that a token's update
    is a row of a. "orthogonal" (https://datta0.github.io/posts/rethink-lora-init) gives a and b
    row spaces orthogonal to each other, so both are nonzero: ``a b`` is zero to rounding only.

    Args:
        init: which.
        shape: (in, out) of the matrix; (vocabulary, width) of an embedding.
        rank: R.
        rng: what is drawn from.
        embedding: whether the matrix is looked up, not multiplied by.

    Raises:
        ModelError: "orthogonal" with an odd rank.
    """
    rows, columns = shape
    if init == "orthogonal":
        return _orthogonal(shape, rank, rng)
    if embedding:
        return _initial(np.zeros((rows, rank)), rng.standard_normal((rank, columns)))
    if init == "gaussian":
        a = rng.standard_normal((rows, rank)) / rank
    else:
        bound = rows**-0.5
        a = rng.uniform(-bound, bound, (rows, rank))
    return _initial(a, np.zeros((rank, columns)))


def _orthogonal(shape: tuple[int, int], rank: int, rng: np.random.Generator) -> InitialFactors:
    if rank % 2:
        raise ModelError(
            f"init 'orthogonal' halves the rank between the factors and needs an even one; got "
            f"{rank}: set rank to {rank + 1}, or init to 'default'."
        )
    rows, columns = shape
    basis = np.linalg.qr(rng.standard_normal((rank, rank)))[0]
    a = rng.standard_normal((rows, rank // 2)) @ basis[0::2] / 10
    b = basis[1::2].T @ rng.standard_normal((rank // 2, columns)) / 10
    return _initial(a, b)


def weight_factors(
    init: WeightInit, matrix: np.ndarray, rank: int, scaling: float
) -> InitialFactors:
    """Returns factors made of the matrix's own directions, and the same to subtract.

    "pissa": ``s a b`` is the best rank-R approximation of W, its singular values shared evenly
    (Meng et al. 2024, arXiv 2404.02948, eq. 2-4). "olora": with ``W^T = Q U``, U triangular, b^T is
    Q's first R columns and a^T U's first R rows (Büyükakyüz 2024, arXiv 2406.01775); as in PEFT the
    scaling does not enter.

    Args:
        init: which.
        matrix: W [in, out].
        rank: R.
        scaling: s.

    Raises:
        ModelError: the matrix has fewer than R directions.
    """
    _check_rank(init, matrix, rank)
    if init == "pissa":
        a, b = _balanced(matrix, rank, scaling)
    else:
        q, r = np.linalg.qr(np.asarray(matrix, np.float64).T)
        a, b = r[:rank].T, q[:, :rank].T
    taken = _initial(a, b)
    return InitialFactors(taken.a, taken.b, start=(taken.a, taken.b))


def loftq_factors(
    matrix: np.ndarray, quantised: np.ndarray, rank: int, scaling: float
) -> InitialFactors:
    """Returns factors with which the quantised matrix is nearest to the one it was made from.

    ``s a b`` is the best rank-R approximation of ``W - Q(W)``, one step of LoftQ (Li et al. 2023,
    arXiv 2310.08659, algorithm 1, T=1), so a fresh adapter does change the quantised network. PEFT
    leaves the scaling out, and is right at alpha = rank alone.

    Args:
        matrix: W [in, out], before quantisation.
        quantised: Q(W) [in, out], dequantised.
        rank: R.
        scaling: s.

    Raises:
        ModelError: the matrix has fewer than R directions.
    """
    _check_rank("loftq", matrix, rank)
    return _initial(*_balanced(np.subtract(matrix, quantised, dtype=np.float64), rank, scaling))


def alternating_loftq(
    matrix: np.ndarray,
    quantise: Callable[[np.ndarray], np.ndarray],
    rank: int,
    scaling: float,
    steps: int,
) -> tuple[InitialFactors, np.ndarray]:
    """Returns LoftQ's factors after T steps, and the Q that belongs to them (algorithm 1).

    Each step quantises what the factors leave over, ``Q = quantise(W - s a b)``, and then fits the
    factors to ``W - Q``. The network must hold the Q returned, not the one of W.

    Args:
        matrix: W [in, out].
        quantise: takes a matrix and returns what its quantised form stands for.
        rank: R.
        scaling: s.
        steps: T, at least 1; one step is `loftq_factors`.

    Raises:
        ModelError: the matrix has fewer than R directions.
    """
    quantised = quantise(matrix)
    factors = loftq_factors(matrix, quantised, rank, scaling)
    for _ in range(steps - 1):
        quantised = quantise((matrix - scaling * (factors.a @ factors.b)).astype(matrix.dtype))
        factors = loftq_factors(matrix, quantised, rank, scaling)
    return factors, quantised


def leading_directions(matrix: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns the largest singular values of a matrix with their vectors, in float64.

    The eigenvectors of the smaller Gram matrix in float64 take a quarter of the time of a whole SVD
    at 2048 x 2048. Values below 1e-7 of the largest are beyond its resolution, and given as zero
    with a zero vector on the longer side.

    Args:
        matrix: [M, N].
        count: K; fewer come back where the matrix is smaller.

    Returns:
        left [M, K], values [K] descending, right [K, N].
    """
    matrix = np.asarray(matrix, np.float64)
    if matrix.shape[0] > matrix.shape[1]:
        left, values, right = leading_directions(matrix.T, count)
        return right.T, values, left.T
    size = len(matrix)
    first = max(size - count, 0)
    squares, left = eigh(matrix @ matrix.T, subset_by_index=[first, size - 1])
    values, left = np.sqrt(np.maximum(squares[::-1], 0)), left[:, ::-1]
    values = np.where(values > 1e-7 * values[0], values, 0)
    inverse = np.divide(1, values, out=np.zeros_like(values), where=values > 0)
    return left, values, inverse[:, None] * (left.T @ matrix)


def _balanced(matrix: np.ndarray, rank: int, scaling: float) -> tuple[np.ndarray, np.ndarray]:
    """Returns (a, b) with ``scaling a b`` nearest to the matrix, the values' roots in each."""
    left, values, right = leading_directions(matrix, rank)
    roots = np.sqrt(values / scaling)
    return left * roots, roots[:, None] * right


def _check_rank(init: str, matrix: np.ndarray, rank: int) -> None:
    most = min(matrix.shape)
    if rank > most:
        raise ModelError(
            f"init {init!r} takes the factors from the matrix, and one of "
            f"{matrix.shape[0]} x {matrix.shape[1]} has {most} directions, not {rank}: set its "
            f"rank to at most {most} by rank_pattern, or init to 'default'."
        )


def _initial(a: np.ndarray, b: np.ndarray) -> InitialFactors:
    return InitialFactors(a.astype(np.float32), b.astype(np.float32))
