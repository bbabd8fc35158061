"""Several LoRAs made into one, matrix by matrix."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from tunekit.errors import ModelError, did_you_mean
from tunekit.methods.factors import leading_directions

CombineKind = Literal["linear", "cat", "svd", "ties", "dare_linear", "dare_ties"]


@dataclass(frozen=True, eq=False)
class Factors:
    """What a LoRA adds to one matrix: ``scaling a b``."""

    a: np.ndarray
    """[in, R]"""
    b: np.ndarray
    """[R, out]; [R / G, out] of a convolution in G groups, each with its own share of R and out."""
    scaling: float = 1.0
    """alpha / R, or alpha / sqrt(R), times whatever the user set."""

    @property
    def groups(self) -> int:
        """G; 1 of anything but a convolution in groups."""
        return self.a.shape[1] // self.b.shape[0]

    def by_group(self) -> list[Factors]:
        """Returns the factors of each group; they alone where there are no groups."""
        columns = zip(
            np.split(self.a, self.groups, axis=1),
            np.split(self.b, self.groups, axis=1),
            strict=True,
        )
        return [Factors(a, b, self.scaling) for a, b in columns]

    @property
    def delta(self) -> np.ndarray:
        """The matrix [in, out] that is added."""
        blocks = [group.a @ group.b for group in self.by_group()]
        return np.float32(self.scaling) * np.concatenate(blocks, axis=1)


_Weighted = tuple[float, Factors]


def combine(
    factors: Sequence[Mapping[str, Factors]],
    weights: Sequence[float],
    kind: CombineKind,
    *,
    rank: int | None = None,
    density: float = 0.2,
    seed: int = 0,
) -> dict[str, Factors]:
    """Returns one adapter made of several, of scaling 1.

    A layer that only some of them have is made of those; layers may come to differ in rank.

    * "linear" adds factor to factor, each times the root of its weight and scaling, as PEFT does.
      Cheap, and rough: the product also has the cross terms ``a_i b_j``. All need one rank.
    * "cat" puts the factors side by side: exactly the weighted sum of the deltas, at the sum of
      their ranks.
    * "svd" is the rank-R matrix nearest to that sum; no matrix as large as W is formed.
    * "ties" keeps the largest entries of each delta, elects a sign for every entry by their sum,
      and averages those that agree, times their weights (Yadav et al. 2023, arXiv 2306.01708).
    * "dare_linear" and "dare_ties" drop entries of each delta at random, divide the others by the
      density, and add them or go on as "ties" does (Yu et al. 2024, arXiv 2311.03099).

    The last three work on the deltas and then take the nearest rank-R matrix, PEFT's ``*_svd``.

    Args:
        factors: of each adapter, by the layer's structural name.
        weights: of each adapter; a negative one takes away.
        kind: how.
        rank: the most that a layer gets; `None` is the largest rank it has in any adapter. "linear"
            and "cat" do not ask it.
        density: the fraction of entries kept by the last three.
        seed: of the entries dropped; the same for a layer whatever other layers there are.

    Raises:
        ModelError: the arguments do not fit together, or the adapters are of different networks.
    """
    _check(factors, weights, kind, rank, density)
    names = dict.fromkeys(name for adapter in factors for name in adapter)
    combined = {}
    for name in names:
        present = [
            (float(weight), adapter[name])
            for weight, adapter in zip(weights, factors, strict=True)
            if name in adapter
        ]
        _check_shapes(name, present, kind)
        rng = np.random.default_rng((seed, zlib.crc32(name.encode())))
        combined[name] = _of_layer(present, kind, rank, density, rng)
    return combined


def _of_layer(
    present: Sequence[_Weighted],
    kind: CombineKind,
    rank: int | None,
    density: float,
    rng: np.random.Generator,
) -> Factors:
    """Returns one layer's factors; a convolution's groups are matrices of their own."""
    most = rank or max(one.a.shape[1] for _, one in present)
    share = max(most // present[0][1].groups, 1)
    weights = [weight for weight, _ in present]
    parts = [
        _of_matrix(list(zip(weights, group, strict=True)), kind, share, density, rng)
        for group in zip(*(one.by_group() for _, one in present), strict=True)
    ]
    return _factors(
        np.concatenate([part.a for part in parts], axis=1),
        np.concatenate([part.b for part in parts], axis=1),
    )


def _of_matrix(
    present: Sequence[_Weighted],
    kind: CombineKind,
    most: int,
    density: float,
    rng: np.random.Generator,
) -> Factors:
    """Returns factors of at most that rank."""
    if kind == "linear":
        return _linear(present)
    if kind == "cat":
        return _side_by_side(present)
    if kind == "svd":
        return _nearest_product(_side_by_side(present), most)
    weights = [weight for weight, _ in present]
    deltas = [one.delta for _, one in present]
    if kind == "ties":
        deltas = [trimmed(delta, density) for delta in deltas]
    else:
        deltas = [dropped(delta, density, rng) for delta in deltas]
    if kind == "dare_linear":
        delta = sum(weight * delta for weight, delta in zip(weights, deltas, strict=True))
    else:
        delta = agreeing_mean(deltas, weights)
    left, values, right = leading_directions(np.asarray(delta), most)
    return _factors(left, values[:, None] * right)


def _linear(present: Sequence[_Weighted]) -> Factors:
    strengths = np.array([weight * one.scaling for weight, one in present])
    roots = np.sqrt(np.abs(strengths))
    signed = np.sign(strengths) * roots
    return _factors(
        sum(root * one.a for root, (_, one) in zip(signed, present, strict=True)),
        sum(root * one.b for root, (_, one) in zip(roots, present, strict=True)),
    )


def _side_by_side(present: Sequence[_Weighted]) -> Factors:
    return _factors(
        np.concatenate([weight * one.scaling * one.a for weight, one in present], axis=1),
        np.concatenate([one.b for _, one in present], axis=0),
    )


def _nearest_product(wide: Factors, rank: int) -> Factors:
    """Returns the rank-R factors nearest to a product, from QRs of its factors and a small SVD."""
    rows, upper = np.linalg.qr(wide.a.astype(np.float64))
    columns, lower = np.linalg.qr(wide.b.T.astype(np.float64))
    left, values, right = np.linalg.svd(upper @ lower.T, full_matrices=False)
    return _factors(rows @ left[:, :rank], values[:rank, None] * right[:rank] @ columns.T)


def trimmed(delta: np.ndarray, density: float) -> np.ndarray:
    """Returns the delta with zeros for all but its largest entries, that fraction of them."""
    kept = int(density * delta.size)
    if kept == 0:
        return np.zeros_like(delta)
    sizes = np.abs(delta)
    least = np.partition(sizes, delta.size - kept, axis=None)[delta.size - kept]
    return np.where(sizes >= least, delta, 0)


def dropped(delta: np.ndarray, density: float, rng: np.random.Generator) -> np.ndarray:
    """Returns the delta with random zeros and the rest divided by the density, equal on average."""
    kept = rng.random(delta.shape, np.float32) < density
    return np.where(kept, delta / np.float32(density), 0)


def agreeing_mean(deltas: Sequence[np.ndarray], weights: Sequence[float]) -> np.ndarray:
    """Returns each entry's mean, weighted, over the deltas that have the sign of their sum there.

    The weights do not vote: they multiply what is averaged, as in PEFT.
    """
    elected = np.where(sum(deltas) >= 0, 1, -1)
    total = np.zeros_like(deltas[0])
    voters = np.zeros(elected.shape, np.int32)
    for weight, delta in zip(weights, deltas, strict=True):
        agrees = np.sign(delta) == elected
        total += np.where(agrees, np.float32(weight) * delta, 0)
        voters += agrees
    return total / np.maximum(voters, 1)


def _check(
    factors: Sequence[Mapping[str, Factors]],
    weights: Sequence[float],
    kind: str,
    rank: int | None,
    density: float,
) -> None:
    kinds = get_args(CombineKind)
    if kind not in kinds:
        raise ModelError(
            f"adapters are combined by one of {', '.join(kinds)}; got {kind!r}."
            f"{did_you_mean(kind, kinds)}"
        )
    if not factors or len(factors) != len(weights):
        raise ModelError(
            f"combining takes one weight for each of one or more adapters; got {len(factors)} "
            f"adapters and {len(weights)} weights."
        )
    if rank is not None and rank < 1:
        raise ModelError(f"the combined adapter's rank is at least 1, or None; got {rank}.")
    if not 0 < density <= 1:
        raise ModelError(f"density is the fraction of entries kept, in (0, 1]; got {density}.")


def _check_shapes(name: str, present: Sequence[_Weighted], kind: CombineKind) -> None:
    shapes = {(one.a.shape[0], one.b.shape[1]) for _, one in present}
    if len(shapes) > 1:
        found = " and ".join(f"{rows} x {columns}" for rows, columns in sorted(shapes))
        raise ModelError(
            f"{name}: the adapters change matrices of {found}; combine adapters of one network."
        )
    ranks = [one.a.shape[1] for _, one in present]
    if kind == "linear" and len(set(ranks)) > 1:
        raise ModelError(
            f"{name}: 'linear' adds factor to factor and needs one rank; the adapters have "
            f"{', '.join(map(str, ranks))}. Use 'svd', or 'cat', which is exact."
        )


def _factors(a: np.ndarray | float, b: np.ndarray | float) -> Factors:
    return Factors(np.asarray(a, np.float32), np.asarray(b, np.float32))
