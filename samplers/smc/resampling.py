"""Resampling: how many copies of each particle are kept, given the weights.

Every scheme here is unbiased: with normalised weights W and M copies in all, E[copies of i] = M·W_i. They differ in
the variance of the copies: systematic and SSP have the smallest there is for one particle, φ(1 − φ) with φ the
fraction of M·W_i; stratified and residual are never worse than multinomial. Sources: Douc, Cappé and Moulines 2005,
"Comparison of resampling schemes for particle filtering"; Gerber, Chopin and Whiteley 2019, "Negative association,
ordering and convergence of resampling methods" (SSP); Del Moral 2004 (killing).

Weights and indices are float64 and int64 arrays of the host, so that every process and device finds the same indices
bit by bit.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from pathline.interpolants import unknown_name

from ..numerics import Array

_MASK = (1 << 64) - 1

Indices = np.ndarray[Any, np.dtype[np.int64]]
Scheme = Callable[[Array, int, np.random.Generator], Indices]
"""(normalised weights (N,), number of copies M, generator) -> indices (M,) of the particles to keep."""


def multinomial(weights: Array, count: int, generator: np.random.Generator) -> Indices:
    """`count` independent choices, through sorted uniforms made of exponential spacings."""
    spacings = np.cumsum(-np.log1p(-generator.random(count + 1)))
    return _inverse(weights, spacings[:-1] / spacings[-1])


def stratified(weights: Array, count: int, generator: np.random.Generator) -> Indices:
    """One uniform in each of `count` equal strata."""
    return _inverse(weights, (np.arange(count) + generator.random(count)) / count)


def systematic(weights: Array, count: int, generator: np.random.Generator) -> Indices:
    """One uniform for all strata: every particle gets ⌊M·W⌋ or ⌈M·W⌉ copies. Depends on the order of the particles."""
    return _inverse(weights, (np.arange(count) + generator.random()) / count)


def residual(weights: Array, count: int, generator: np.random.Generator) -> Indices:
    """⌊M·W⌋ copies for sure, the rest multinomial."""
    expected, sure = _parts(weights, count)
    rest = expected - sure
    kept = np.repeat(np.arange(len(weights), dtype=np.int64), sure.astype(np.int64))
    missing = count - len(kept)
    if missing == 0:
        return kept
    return np.sort(np.concatenate([kept, multinomial(rest / rest.sum(), missing, generator)]))


def ssp(weights: Array, count: int, generator: np.random.Generator) -> Indices:
    """Srinivasan's sampling process: ⌊M·W⌋ or ⌈M·W⌉ copies, negatively associated, whatever the order.

    A sequential pass over the particles, unlike the other schemes: about half a second for a million of them.
    """
    expected, sure = _parts(weights, count)
    copies, rest = sure.astype(np.int64).tolist(), (expected - sure).tolist()
    draws = generator.random(len(rest)).tolist()
    i = 0
    for j in range(1, len(rest)):
        gain, loss = min(rest[j], 1.0 - rest[i]), min(rest[i], 1.0 - rest[j])
        if draws[j] * (gain + loss) < loss:  # so that the mean of both stays
            j_done = rest[j] <= 1.0 - rest[i]
            rest[i], rest[j] = rest[i] + gain, rest[j] - gain
        else:
            j_done = rest[i] > 1.0 - rest[j]
            rest[i], rest[j] = rest[i] - loss, rest[j] + loss
        done, i = (j, i) if j_done else (i, j)
        copies[done] += rest[done] > 0.5
    copies[i] += rest[i] > 0.5
    return np.repeat(np.arange(len(copies), dtype=np.int64), copies)


def killing(weights: Array, count: int, generator: np.random.Generator) -> Indices:
    """Keep particle i with probability W_i / max W, else put one drawn by weight in its place; M = N only."""
    if count != len(weights):
        raise ValueError(f"killing replaces particles one for one; it cannot make {count} of {len(weights)}")
    redrawn = generator.permutation(multinomial(weights, count, generator))
    kept = generator.random(count) * weights.max() < weights
    return np.sort(np.where(kept, np.arange(count, dtype=np.int64), redrawn))


SCHEMES: dict[str, Scheme] = {
    "multinomial": multinomial,
    "stratified": stratified,
    "systematic": systematic,
    "residual": residual,
    "ssp": ssp,
    "killing": killing,
}


def scheme_by_name(scheme: str | Scheme) -> Scheme:
    """A scheme of `SCHEMES`, or the callable given.

    Raises
    ------
    ValueError
        Unknown name.
    """
    if callable(scheme):
        return scheme
    if scheme not in SCHEMES:
        raise unknown_name("resampler", scheme, SCHEMES)
    return SCHEMES[scheme]


def resample(
    weights: Array, count: int | None = None, *, scheme: str | Scheme = "systematic", seed: int = 0, step: int = 0
) -> Indices:
    """Indices of the particles to keep.

    Parameters
    ----------
    weights : (N,) float64
        Not negative, finite, some positive; divided by their sum.
    count : int, optional
        Number M of copies in all, default N.
    scheme : name of `SCHEMES`, or a callable
    seed, step : int
        Key of the uniforms: the same indices wherever and whenever it is called.

    Returns
    -------
    (M,) int64. With M = N survivors stay in their own places and further copies fill the places of the others, so that
    little moves between processes, and equal weights give 0..N−1 (but for multinomial choices).

    Raises
    ------
    ValueError
        Impossible weights or an unknown scheme.
    """
    weights = np.asarray(weights, dtype=np.float64)
    total = weights.sum() if weights.ndim == 1 and len(weights) else np.nan
    if not (np.isfinite(total) and total > 0 and (weights >= 0).all()):
        raise ValueError("weights must be a non-empty vector, finite, not negative and not all 0")
    count = len(weights) if count is None else count
    if count < 1:
        raise ValueError(f"count={count!r} is not possible; it must be at least 1")
    generator = np.random.Generator(np.random.Philox(key=np.array([seed & _MASK, (step + 1) & _MASK], dtype=np.uint64)))
    chosen = scheme_by_name(scheme)(weights / total, count, generator)
    return _in_place(chosen) if count == len(weights) else chosen


def _parts(weights: Array, count: int) -> tuple[Array, Array]:
    """M·W and its whole part; what is whole up to rounding counts as whole."""
    expected = count * weights
    near = np.rint(expected)
    expected = np.where(np.abs(expected - near) < 1e-12 * count, near, expected)
    return expected, np.floor(expected)


def _inverse(weights: Array, uniforms: Array) -> Indices:
    """Indices at which the cumulated weights pass sorted uniforms; a sum that stops short of 1 counts as 1."""
    found = np.searchsorted(np.cumsum(weights), uniforms, side="right")
    return np.minimum(found, np.flatnonzero(weights)[-1]).astype(np.int64)


def _in_place(chosen: Indices) -> Indices:
    """The same copies, every survivor in its own place."""
    count = len(chosen)
    copies = np.bincount(chosen, minlength=count)
    placed = np.arange(count, dtype=np.int64)
    placed[copies == 0] = np.repeat(np.arange(count), np.maximum(copies - 1, 0))
    return placed
